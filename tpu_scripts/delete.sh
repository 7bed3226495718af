#!/usr/bin/env bash
# Delete the TPU and what is on its disks; this ends its cost. Checkpoints in a bucket stay.
#   PROJECT=p ZONE=us-east5-a NAME=t bash tpu_scripts/delete.sh      YES=1 does not ask
# There is no undo: create.sh makes a new, empty one.

# shellcheck source=gcloud.sh
. "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"
check_place

if [[ ${YES:-0} != 1 && $DRY_RUN != 1 ]]; then
  [[ -t 0 ]] || fail "no terminal to ask on" "a yes beforehand" "YES=1 bash tpu_scripts/delete.sh"
  read -rp "Delete $NAME ($MODE) in $PROJECT, $ZONE, and its disks? Type its name: " answer
  [[ $answer == "$NAME" ]] || { echo "nothing deleted" && exit 1; }
fi
if [[ $MODE == vm ]]; then
  run gcloud compute tpus tpu-vm delete "$NAME" "${WHERE[@]}" --quiet
else # --force: its nodes as well
  run gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet
fi
echo "what still exists: gcloud compute tpus tpu-vm list $(quoted "${WHERE[@]}")"
