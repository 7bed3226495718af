#!/usr/bin/env bash
# Run a command to its end on a TPU that may be taken away: BILLABLE, again and again.
#   PROJECT=p ZONE=us-east5-a NAME=t ACCELERATOR=v6e-16 SPOT=1 BUCKET=gs://my-bucket/runs \
#     bash tpu_scripts/supervise.sh alanything train CONFIG --run-dir gs://my-bucket/runs/t/out
# Sends the code, creates a queued resource whose hosts start the command by themselves, and
# looks every POLL=60 seconds. A TPU that died, or whose command asks for it (42), is deleted and
# created again with the same name, at most MAX_RESTARTS=20 times. When the command ends, or is
# stopped (STOP=1 launch.sh), the TPU is deleted; KEEP=1 keeps it. Hosts that have not started it
# SETUP_TIMEOUT=1800 seconds after they were there end the looking: somebody has to look at them.
# Run it in tmux on a machine that stays on. Exit code: the command's; 75 out of restarts.

# shellcheck source=gcloud.sh
. "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"
stand_in BUCKET gs://my-bucket/runs
check_place ACCELERATOR BUCKET
check_bucket
[[ $DRY_RUN != 1 ]] || (($#)) || set -- alanything train CONFIG
check_command "$@"
refuse_env_file
COMMAND=("$@")
tpu_facts "$ACCELERATOR"
[[ $MODE != vm ]] || fail "MODE=vm" "qr or flex: only they wait for capacity" "MODE=qr"
: "${POLL:=60}" "${MAX_RESTARTS:=20}" "${KEEP:=0}"
check_whole SETUP_TIMEOUT 1800
restarts=0 unready=0 failed=0 gone=0 created=1 active="" complete=0
trap 'echo "stopped looking; nothing was deleted, $NAME may cost money. $(undo)"; exit 130' INT TERM

say() { echo "$(date +%T) $NAME: $*"; }
send_code() { TO=bucket BUCKET=$BUCKET bash "$SCRIPTS/sync_code.sh"; }
create() { BUCKET=$BUCKET bash "$SCRIPTS/create.sh" "${COMMAND[@]}"; }
# Always the whole resource: nodes that look dead are not always reported so.
delete() { run gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet; }

# What the hosts last said, one word each: started, stopped, or an exit code.
reports() {
  local zeros
  printf -v zeros '0 %.0s' $(seq $((SLICES * HOSTS)))
  ask "$zeros" gcloud storage cat "$BUCKET/$NAME/exit/*" 2>/dev/null || true
}

# A suspended resource still uses quota, and its name is free only once it is gone.
restart() {
  [[ $(reports) != *stopped* ]] || { say "stopped by STOP=1" && finish 42; }
  if ((restarts >= MAX_RESTARTS)); then
    say "out of restarts (MAX_RESTARTS=$MAX_RESTARTS). Not deleted. $(undo)"
    exit 75
  fi
  restarts=$((restarts + 1)) unready=0 failed=0 gone=0 active="" complete=0
  say "restart $restarts of at most $MAX_RESTARTS"
  local looks
  for ((looks = 0; looks < 60; looks++)); do
    ((looks % 5)) || delete || say "could not be deleted; trying again"
    [[ $(queue_state NONE) != NONE ]] || break
    sleep "$POLL"
  done
  created=1
  create || { created=0 && say "could not be created"; }
}

finish() {
  say "the command ended with exit code $1; logs: FROM=bucket bash tpu_scripts/logs.sh"
  if [[ $KEEP == 1 ]]; then say "KEEP=1: not deleted. $(undo)"; else
    delete || say "it could not be deleted and may cost money. $(undo)"
  fi
  exit "$1"
}

# 0 only from every host; anything else at the second look, as a host that lost its peers to
# a preemption fails too, a little before gcloud tells of it. A bug goes before a stop, and
# that before 42, with which the others may have answered it.
check_hosts() {
  local words word bug="" all=$((SLICES * HOSTS)) zeros=0
  words=$(reports)
  for word in $words; do
    case $word in
      0) zeros=$((zeros + 1)) ;;
      started | stopped | 42) ;;
      *) bug=${bug:-$word} ;;
    esac
  done
  check_set_up "$(wc -w <<<"$words")" "$all"
  ((zeros < all)) || finish 0
  if [[ -z $bug && $words != *stopped* && $words != *42* ]]; then
    failed=0
    return
  fi
  failed=$((failed + 1))
  ((failed >= 2)) || return 0
  [[ -z $bug ]] || finish "$bug"
  restart # or the end, if it was stopped
}

# check_set_up REPORTED ALL: a host that cannot even report would be waited and paid for for ever.
check_set_up() {
  (($1 < $2)) || complete=1
  : "${active:=$SECONDS}"
  ((complete == 0 && SECONDS - active >= SETUP_TIMEOUT)) || return 0
  echo "$NAME is not deleted and costs money. $(undo)" >&2
  fail "$1 of $2 hosts of $NAME have started the command, SETUP_TIMEOUT=$SETUP_TIMEOUT s after they were there" \
    "a report of each in $BUCKET/$NAME/exit: they must reach the bucket and PyPI, and may write there" \
    "what a host says: sudo journalctl -u google-startup-scripts; tail $STATE_ROOT/$NAME/log"
}

nodes_ready() {
  local node state
  for node in $(node_names); do
    state=$(node_state "$node")
    [[ $state == READY || $state == UNKNOWN ]] || { say "node $node is $state" && return 1; }
  done
}

last=$(queue_state NONE)
case $last in
  NONE)
    send_code
    create
    ;;
  UNKNOWN) say "gcloud does not answer; nothing was started" && exit 1 ;;
  SUSPEND* | FAILED | PREEMPTED) # dead: it will be created again, with the code of today
    say "exists already ($last)"
    send_code
    ;;
  *) say "exists already ($last): only looking after it" ;;
esac
while :; do
  state=$(queue_state)
  [[ $state == "$last" ]] || say "$state"
  last=$state
  case $state in
    ACTIVE)
      if nodes_ready; then
        unready=0
        check_hosts
      else # twice: one look can fall into a short repair
        unready=$((unready + 1))
        ((unready < 2)) || restart
      fi
      ;;
    SUSPEND* | FAILED | PREEMPTED) restart ;;
    NONE) # not made by us, or deleted by somebody, who will have meant it
      ((created)) || restart
      gone=$((gone + 1))
      ((gone < 3)) || { say "deleted, and not by us: stopping" && exit 1; }
      ;;
    *) ;; # waiting, being made or deleted, or gcloud could not tell
  esac
  sleep "$POLL"
done
