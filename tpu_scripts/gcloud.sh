# shellcheck shell=bash
# What the scripts share that talk to gcloud: which resource, its state, its workers.
# Sourced, never run.
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[[ ${IAP:-0} == 1 ]] || IAP="" # IAP=1: ssh through the Identity-Aware Proxy

# The words that say which resource, for gcloud; checks PROJECT, ZONE, NAME, MODE, SLICES.
check_place() {
  require PROJECT ZONE NAME "$@"
  check_name
  [[ $ZONE =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] ||
    fail "ZONE='$ZONE'" "a zone: region and letter" "ZONE=us-east5-a (gcloud compute tpus locations list)"
  [[ $MODE =~ ^(vm|qr|flex)$ ]] ||
    fail "MODE='$MODE'" "vm (one node, now or never), qr (queued), flex (queued, up to 7 days)" "MODE=qr"
  check_slices
  [[ $MODE != vm || $SLICES == 1 ]] ||
    fail "MODE=vm with SLICES=$SLICES" "several slices only from queued resources" "MODE=qr"
  WHERE=(--project="$PROJECT" --zone="$ZONE")
}

undo() { echo "undo: PROJECT=$PROJECT ZONE=$ZONE NAME=$NAME MODE=$MODE bash tpu_scripts/delete.sh"; }

node_names() {
  local i
  if ((SLICES == 1)); then echo "$NAME"; else for ((i = 0; i < SLICES; i++)); do echo "$NAME-$i"; done; fi
}

# describe ANSWER GCLOUD_WORDS... : a state; NONE if there is no such resource, UNKNOWN if
# gcloud could not tell (no network, say), which must never be taken for dead.
describe() {
  local answer=$1 said
  shift
  if said=$(ask "$answer" gcloud compute tpus "$@" "${WHERE[@]}" 2>&1); then
    said=${said##*$'\n'} # warnings come first
    echo "${said:-UNKNOWN}"
  elif [[ $said == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo "gcloud: ${said##*$'\n'}" >&2
    echo UNKNOWN
  fi
}

queue_state() { describe "${1:-ACTIVE}" queued-resources describe "$NAME" --format='value(state.state)'; }
node_state() { describe READY tpu-vm describe "$1" --format='value(state)'; }

# on_workers COMMAND: on WORKER (all unless set) of every slice.
on_workers() {
  if [[ $MODE != vm ]]; then
    run gcloud compute tpus queued-resources ssh "$NAME" "${WHERE[@]}" --node=all --worker="${WORKER:-all}" \
      --batch-size=16 ${IAP:+--tunnel-through-iap} --command="$1"
  else # only alpha's tpu-vm can tunnel
    run gcloud ${IAP:+alpha} compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker="${WORKER:-all}" \
      ${IAP:+--tunnel-through-iap} --command="$1"
  fi
}

# For on_workers: true where the run is alive, and its number is in $pid. A number in a file
# may be another process by now.
# shellcheck disable=SC2034
ALIVE="pid=\$(cat $STATE_ROOT/${NAME:-}/pid 2>/dev/null) && grep -qs launch.sh /proc/\$pid/cmdline"

# to_workers FILE PATH: into each worker's home.
to_workers() {
  if [[ $MODE != vm ]]; then
    run gcloud compute tpus queued-resources scp "$1" "$NAME:$2" "${WHERE[@]}" --node=all --worker=all \
      --batch-size=16 ${IAP:+--tunnel-through-iap}
  else
    run gcloud ${IAP:+alpha} compute tpus tpu-vm scp "$1" "$NAME:$2" "${WHERE[@]}" --worker=all \
      ${IAP:+--tunnel-through-iap}
  fi
}
