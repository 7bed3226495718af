#!/usr/bin/env bash
# Start a command on all workers, detached: it outlives the ssh connection.
#   PROJECT=p ZONE=us-east5-a NAME=t ACCELERATOR=v6e-16 HF_SECRET=hf-token bash tpu_scripts/launch.sh \
#     alanything train configs/dpo_llama3_8b.py --data.path gs://my-bucket/pairs.jsonl --run-dir gs://my-bucket/runs/t
# Exit codes of the command: 0 done, 42 start me again (RESTARTS=100 at most), any other: stop.
# ENV_FILE=my.env (KEY=value lines, for secrets) is copied; HF_SECRET=name is read on the worker.
# With BUCKET=gs://... the log is uploaded every LOG_EVERY=300 seconds (0: at the end only).
# On the machine itself (startup scripts, containers): launch.sh --here COMMAND...
# Log and exit code are in /var/tmp/alanything/NAME there. Undo: STOP=1, which lets it save; it
# then stays stopped, over reboots and preemptions too, until it is launched again.

# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

from_afar() {
  # shellcheck source=gcloud.sh
  . "$SCRIPTS/gcloud.sh"
  check_place ACCELERATOR
  [[ $DRY_RUN != 1 ]] || (($#)) || set -- alanything train CONFIG
  if [[ ${STOP:-0} == 1 ]]; then # the mark first: a run that ends without it is started again
    on_workers "cd $STATE_ROOT/$NAME 2>/dev/null && { touch stopped 2>/dev/null || sudo touch stopped; }; \
if $ALIVE; then kill -TERM \$pid 2>/dev/null || sudo kill -TERM \$pid; else echo \$(hostname): not running; fi"
    return
  fi
  tpu_facts "$ACCELERATOR"
  check_megascale
  check_command "$@"
  [[ -z ${BUCKET:-} ]] || check_bucket
  if [[ -n ${ENV_FILE:-} ]]; then
    [[ -f $ENV_FILE ]] || fail "ENV_FILE='$ENV_FILE'" "a file with KEY=value lines" "ENV_FILE=\$HOME/my.env"
    on_workers "touch .alanything.env && chmod 600 .alanything.env"
    to_workers "$ENV_FILE" .alanything.env
  elif [[ -n ${HF_TOKEN:-} && -z ${HF_SECRET:-} ]]; then
    echo "note: HF_TOKEN is set here and is not sent; HF_SECRET or ENV_FILE would (README, Secrets)"
  fi
  # shellcheck disable=SC2086 # SETTINGS is a list of names
  on_workers "cd alanything_jax && env $(settings $SETTINGS) bash tpu_scripts/launch.sh --detach $(quoted "$@")"
  echo "started on every worker. Watch: bash tpu_scripts/logs.sh; bash tpu_scripts/status.sh"
  echo "undo: STOP=1 bash tpu_scripts/launch.sh; the TPU costs on until bash tpu_scripts/delete.sh"
}

# On a worker: start it and stay two seconds, so that what is refused is said to who asked.
detach() {
  require NAME
  local early said pid looks code=0
  rm -f "$STATE_ROOT/$NAME/stopped"
  early=$(mktemp)
  # 3>&-: with it open, the ssh connection would last as long as the run.
  DETACHED=1 setsid nohup bash "$0" --here "$@" >"$early" 2>&1 3>&- </dev/null &
  pid=$!
  for ((looks = 0; looks < 20; looks++)); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  kill -0 "$pid" 2>/dev/null || wait "$pid" || code=$?
  if ((code)); then
    said=$early
    [[ -s $early ]] || said=$STATE_ROOT/$NAME/log # it came as far as to have a log
    echo "error: $(hostname): $NAME ended at once, exit code $code; its last lines:" >&2
    tail -n 20 "$said" | sed 's/^/  | /' >&2
  fi
  rm "$early"
  return "$code"
}

case ${1:-} in
  --here)
    # shellcheck source=here.sh
    . "$SCRIPTS/here.sh"
    here "${@:2}"
    ;;
  --detach) detach "${@:2}" ;;
  *) from_afar "$@" ;;
esac
