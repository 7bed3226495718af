#!/usr/bin/env bash
# What exists (and costs), and on each worker the exit code and the last line of the log.
#   PROJECT=p ZONE=us-east5-a NAME=t bash tpu_scripts/status.sh

# shellcheck source=gcloud.sh
. "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"
check_place
if [[ $MODE == vm ]]; then state=$(node_state "$NAME"); else state=$(queue_state); fi
echo "$NAME: $state"
[[ $state != NONE ]] || exit 0
run gcloud compute tpus tpu-vm list "${WHERE[@]}" --filter="name~/$NAME(-[0-9]+)?\$" \
  --format="table(name.basename(),acceleratorType,state,health)"
if [[ $state == ACTIVE || $state == READY ]]; then
  on_workers "cd $STATE_ROOT/$NAME && \
echo \$(hostname): \$(if $ALIVE; then echo running; else cat exit_code 2>/dev/null || echo not running; fi) \
\$(tail -n 1 log)" || echo "a worker did not answer, or nothing was launched yet"
fi
undo
