#!/usr/bin/env bash
# Create a TPU: BILLABLE until delete.sh.
#   PROJECT=p ZONE=us-east5-a NAME=t ACCELERATOR=v6e-16 bash tpu_scripts/create.sh [COMMAND...]
# MODE=qr (default; queued) | vm (one node, now or never) | flex (queued, at most 7 days)
# SPOT=1 cheaper, may be taken away   SLICES=2 several slices (qr, flex)   DRY_RUN=1 only print
# VALID_FOR=6h leave the queue after   MAX_RUN=10h flex only   CREATE_FLAGS="--labels=team=a ..."
# With a COMMAND (and BUCKET=gs://..., the code there by TO=bucket sync_code.sh) each host runs it at
# boot, again after every reboot, until it ends: no ssh is needed. supervise.sh does all of that.
# HF_SECRET, LIBTPU_INIT_ARGS, JAX_VERSION, RESTARTS, LOG_EVERY go into it, as with launch.sh.

# shellcheck source=gcloud.sh
. "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"
check_place ACCELERATOR
tpu_facts "$ACCELERATOR"
check_megascale
[[ -n $RUNTIME ]] || fail "ACCELERATOR=$ACCELERATOR" "TPU7x is on GKE only" "use xpk_workload.sh or jobset.sh"
[[ $MODE != flex || $SPOT != 1 ]] || fail "MODE=flex with SPOT=1" "one of them" "SPOT=0"

flags=("${WHERE[@]}" --accelerator-type="$ACCELERATOR")
price="on demand"
if [[ $SPOT == 1 ]]; then flags+=(--spot) price="spot: may be taken away at any time"; fi
if [[ $MODE == flex ]]; then
  flags+=(--provisioning-model=flex-start --max-run-duration="${MAX_RUN:=10h}")
  price="flex-start: for $MAX_RUN, then taken away"
fi
[[ -z ${VALID_FOR:-} || $MODE == vm ]] || flags+=(--valid-until-duration="$VALID_FOR")
read -ra extra <<<"${CREATE_FLAGS:-}"
flags+=("${extra[@]}")

if (($#)); then
  check_command "$@"
  check_bucket
  refuse_env_file
  startup=$(mktemp)
  trap 'rm -f "$startup"' EXIT
  # shellcheck disable=SC2086 # SETTINGS is a list of names
  render "$SCRIPTS/startup.sh.tmpl" SETTINGS "$(settings $SETTINGS)" COMMAND "$(quoted "$@")" >"$startup"
  flags+=(--metadata-from-file=startup-script="$startup")
  if [[ $DRY_RUN == 1 ]]; then
    echo "startup script of every host:"
    sed 's/^/  | /' "$startup"
  fi
fi

echo "$NAME: $SLICES x $ACCELERATOR = $((SLICES * CHIPS)) chips ($TOPOLOGY each)" \
  "on $((SLICES * HOSTS)) hosts, $price"
echo "cost: per chip and hour from ready until deleted; prices: https://cloud.google.com/tpu/pricing"
undo

if (($#)); then # what an earlier try reported would be taken for this one's
  said=$(run gcloud storage rm --quiet "$BUCKET/$NAME/exit/**" 2>&1) ||
    [[ $said == *"matched no objects"* ]] ||
    echo "note: old reports may still be in $BUCKET/$NAME/exit: $said"
fi
case $MODE in
  vm) run gcloud compute tpus tpu-vm create "$NAME" "${flags[@]}" --version="$RUNTIME" ;;
  *)
    nodes=(--node-id="$NAME")
    ((SLICES == 1)) || nodes=(--node-count="$SLICES" --node-prefix="$NAME")
    [[ $MODE == flex ]] && alpha=alpha || alpha="" # flex-start is not in the stable gcloud
    run gcloud ${alpha:+"$alpha"} compute tpus queued-resources create "$NAME" "${nodes[@]}" "${flags[@]}" \
      --runtime-version="$RUNTIME" --async
    ;;
esac

if ((SLICES > 1)); then
  echo "slices meet at port 8482, closed by the automatic firewall: they would hang. Once a network:"
  echo "  gcloud compute firewall-rules create jax-8482 --project=$PROJECT --network=default" \
    "--source-ranges=10.0.0.0/8 --allow=tcp:8482"
fi
echo "next: bash tpu_scripts/wait_ready.sh"
