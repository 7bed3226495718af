#!/usr/bin/env bash
# Run a command as an XPK workload on a GKE cluster. The cluster's nodes are BILLABLE.
#   CLUSTER=c IMAGE=us-docker.pkg.dev/p/r/alanything:1 PROJECT=p ZONE=us-east5-a NAME=t \
#     ACCELERATOR=v6e-16 bash tpu_scripts/xpk_workload.sh alanything train CONFIG --run-dir gs://...
# SLICES=2   SPOT=1   MAX_RESTARTS=50: after exit code 42 or a signal; other codes end the job
# BUCKET=gs://... keeps compiled programs over restarts   LIBTPU_INIT_ARGS: your compiler flags
# ENV_FILE=my.env for secrets   XPK_FLAGS="--dry-run ..." goes to xpk as it is
# The cluster, once: xpk cluster create --cluster=c --tpu-type=v6e-16 --num-slices=1 --spot ...

# shellcheck source=gcloud.sh
. "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"
stand_in CLUSTER my-cluster
stand_in IMAGE us-docker.pkg.dev/p/r/alanything:1
check_place ACCELERATOR CLUSTER IMAGE
tpu_facts "$ACCELERATOR"
check_megascale
[[ $DRY_RUN != 1 ]] || (($#)) || set -- alanything train CONFIG
check_command "$@"
[[ -z ${BUCKET:-} ]] || check_bucket
refuse HF_SECRET "the image has no gcloud to read it with" "unset HF_SECRET; ENV_FILE=my.env (lines HF_TOKEN=...)"

# Containers restart by XPK, not inside (RESTARTS=0). exec: XPK sends SIGTERM to its child only,
# which must be ours. One line: more would be cut silently.
# shellcheck disable=SC2034 # read by name
RESTARTS=0 JAX_COMPILATION_CACHE_DIR=${BUCKET:+$(cache_in "$BUCKET")}
inside="exec env $(settings NAME ACCELERATOR SLICES RESTARTS LIBTPU_INIT_ARGS JAX_COMPILATION_CACHE_DIR) \
bash tpu_scripts/launch.sh --here $(quoted "$@")"
[[ $inside != *$'\n'* ]] || fail "a command of several lines" "one line" "put it into a script in the image"
flags=(--tpu-type="$ACCELERATOR")
[[ $GENERATION != v7x ]] || flags=(--device-type="tpu7x-$TOPOLOGY")
[[ $SPOT != 1 ]] || flags+=(--spot)
[[ -z ${ENV_FILE:-} ]] || flags+=(--env-file="$ENV_FILE")
read -ra extra <<<"${XPK_FLAGS:-}"

echo "$NAME: $SLICES x $ACCELERATOR = $((SLICES * CHIPS)) chips ($TOPOLOGY each), of cluster $CLUSTER"
undo="$(quoted xpk workload delete --cluster="$CLUSTER" --workload="$NAME" "${WHERE[@]}" --force)"
echo "undo: $undo   (the cluster's nodes cost until they scale down: xpk cluster delete)"
# The grace period is what the checkpoint at SIGTERM has; 30 s, the default, is too short.
run xpk workload create --cluster="$CLUSTER" --workload="$NAME" "${WHERE[@]}" "${flags[@]}" \
  --num-slices="$SLICES" --docker-image="$IMAGE" --command="$inside" \
  --max-restarts="${MAX_RESTARTS:-50}" --termination-grace-period-seconds=120 "${extra[@]}"
echo "watch: kubectl logs --follow -l jobset.sigs.k8s.io/jobset-name=$NAME"
