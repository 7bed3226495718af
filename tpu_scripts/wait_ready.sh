#!/usr/bin/env bash
# Wait until every node of the TPU is ready, or say why it will not be. Costs nothing itself.
#   PROJECT=p ZONE=us-east5-a NAME=t bash tpu_scripts/wait_ready.sh
# TIMEOUT=86400 seconds to wait at most   POLL=30 seconds between looks

# shellcheck source=gcloud.sh
. "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"
check_place

end=$((SECONDS + ${TIMEOUT:-86400}))
last=""
while :; do
  ready=1 state=ACTIVE
  [[ $MODE == vm ]] || state=$(queue_state)
  if [[ $state == ACTIVE ]]; then
    for node in $(node_names); do
      state=$(node_state "$node")
      [[ $state == READY ]] || { ready=0 && break; }
    done
  else
    ready=0
  fi
  [[ $state == "$last" ]] || echo "$(date +%T) $NAME: $state"
  last=$state
  ((ready)) && break
  case $state in # a queued resource that was suspended is never tried again
    FAILED | SUSPEND* | PREEMPTED | TERMINATED | STOP* | NONE)
      echo "$NAME will not become ready ($state). Delete it, then create it again." >&2
      [[ $state == NONE ]] || undo >&2
      exit 1
      ;;
  esac
  if ((SECONDS >= end)); then
    echo "$NAME is still $state after ${TIMEOUT:-86400} s; it stays in the queue. $(undo)" >&2
    exit 124
  fi
  sleep "${POLL:-30}"
done
undo
echo "next: bash tpu_scripts/sync_code.sh, then setup_vm.sh, then launch.sh COMMAND"
