#!/usr/bin/env bash
# Show a run's log. Changes nothing, costs nothing.
#   PROJECT=p ZONE=us-east5-a NAME=t bash tpu_scripts/logs.sh
# WORKER=0 (default) or all   LINES=50   FOLLOW=1 to keep reading (Ctrl-C stops the reading only)
# FROM=bucket BUCKET=gs://...: what the hosts uploaded; still there when the TPU is gone

# shellcheck source=gcloud.sh
. "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"
check_place
[[ ${WORKER:=0} =~ ^([0-9]+|all)$ ]] || fail "WORKER='$WORKER'" "a worker's number, or all" "WORKER=0"
if [[ ${FROM:-vm} == bucket ]]; then
  check_bucket
  run gcloud storage ls --long "$BUCKET/$NAME/logs/*"
  if [[ $WORKER == all ]]; then which="*"; else which="*-w-$WORKER"; fi
  run gcloud storage cat "$BUCKET/$NAME/logs/$which"
else
  if [[ ${FOLLOW:-0} == 1 ]]; then follow=" -f"; else follow=""; fi
  on_workers "tail -n ${LINES:-50}$follow $STATE_ROOT/$NAME/log"
fi
