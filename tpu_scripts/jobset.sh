#!/usr/bin/env bash
# The same as a JobSet for GKE without XPK: prints the manifest; APPLY=1 gives it to kubectl,
# which may start BILLABLE nodes.
#   IMAGE=us-docker.pkg.dev/p/r/alanything:1 NAME=t ACCELERATOR=v6e-16 \
#     bash tpu_scripts/jobset.sh alanything train CONFIG --run-dir gs://... > job.yaml
# SLICES=2   SPOT=1   MAX_RESTARTS=50   QUEUE=multislice-queue (Kueue's local queue)
# BUCKET=gs://... keeps compiled programs over restarts   LIBTPU_INIT_ARGS: your compiler flags
# CHIPS_PER_HOST=8 for v5e and v6e pools of 8-chip machines
# Secrets: kubectl create secret generic alanything --from-env-file=my.env   (once)

# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec 3>&2 # standard output is the manifest
stand_in IMAGE us-docker.pkg.dev/p/r/alanything:1
[[ $DRY_RUN != 1 ]] || (($#)) || set -- alanything train CONFIG
require NAME ACCELERATOR IMAGE
check_name
check_slices
check_megascale
check_command "$@"
[[ -z ${BUCKET:-} ]] || check_bucket
for name in HF_SECRET ENV_FILE; do
  refuse "$name" "pods read the Kubernetes secret 'alanything'" \
    "unset $name; kubectl create secret generic alanything --from-env-file=my.env"
done
own=${CHIPS_PER_HOST:-}
tpu_facts "$ACCELERATOR"
# GKE's pools of 8 chips have two machines of 4, unless they were made of 8-chip machines.
CHIPS_PER_HOST=${own:-$((CHIPS < 4 ? CHIPS : 4))}
[[ $CHIPS_PER_HOST =~ ^[148]$ && $((CHIPS % CHIPS_PER_HOST)) == 0 ]] ||
  fail "CHIPS_PER_HOST='$CHIPS_PER_HOST' for the $CHIPS chips of $ACCELERATOR" \
    "1, 4 or 8, and a divisor of $CHIPS" "unset CHIPS_PER_HOST"
HOSTS=$((CHIPS / CHIPS_PER_HOST))

json() { # words as a JSON list, which YAML reads as it is
  local word list=""
  for word; do
    [[ $word != *[[:cntrl:]]* ]] ||
      fail "a command of several lines" "one line" "put it into a script in the image"
    word=${word//\\/\\\\}
    list+=", \"${word//\"/\\\"}\""
  done
  echo "[${list#, }]"
}

spot="" queue=""
[[ $SPOT != 1 ]] || spot='cloud.google.com/gke-spot: "true"'
[[ -z ${QUEUE:-} ]] || queue="kueue.x-k8s.io/queue-name: $QUEUE"
# 42 and death by a signal (a lost peer, a node that goes away); all else a restart would repeat.
codes="42, $(seq -s ', ' 128 255)"
args=$(json "$@")
# shellcheck disable=SC2034 # read by name
JAX_COMPILATION_CACHE_DIR=${BUCKET:+$(cache_in "$BUCKET")}
more="" # variables of the container, if they are set
for name in LIBTPU_INIT_ARGS JAX_COMPILATION_CACHE_DIR; do
  [[ -n ${!name:-} ]] || continue
  value=$(json "${!name}")
  more+="- {name: $name, value: ${value:1:-1}}"$'\n                    '
done
manifest=$(render "$SCRIPTS/jobset.yaml.tmpl" NAME "$NAME" IMAGE "$IMAGE" COMMAND "$args" \
  ACCELERATOR "$ACCELERATOR" SLICES "$SLICES" HOSTS "$HOSTS" CHIPS_PER_HOST "$CHIPS_PER_HOST" \
  GKE_TPU "$GKE_TPU" TOPOLOGY "$TOPOLOGY" MAX_RESTARTS "${MAX_RESTARTS:-50}" CODES "$codes" \
  SPOT "$spot" QUEUE "$queue" MORE "$more")

{
  echo "$NAME: $SLICES x $ACCELERATOR = $((SLICES * CHIPS)) chips ($TOPOLOGY each)" \
    "on $((SLICES * HOSTS)) pods"
  echo "undo: kubectl delete jobset $NAME"
} >&2
printf '%s\n' "$manifest"
if [[ ${APPLY:-0} == 1 ]]; then
  run kubectl apply --filename=- <<<"$manifest"
else
  echo "nothing started; to start it: APPLY=1, or kubectl apply --filename=job.yaml" >&2
fi
