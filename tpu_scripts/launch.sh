#!/usr/bin/env bash
# Start a command on all workers, detached: it outlives the ssh connection.
#   PROJECT=p ZONE=us-east5-a NAME=t ACCELERATOR=v6e-16 bash tpu_scripts/launch.sh \
#     alanything train configs/dpo_llama3_8b.py --run-dir gs://my-bucket/runs/t
# Exit codes of the command: 0 done, 42 start me again (RESTARTS=100 at most), any other: stop.
# ENV_FILE=my.env (KEY=value lines, for secrets) is copied; HF_SECRET=name is read on the worker.
# On the machine itself (startup scripts, containers): launch.sh --here COMMAND...
# Log and exit code are in /var/tmp/alanything/NAME there. Undo: STOP=1, which lets it save.

# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

from_afar() {
  # shellcheck source=gcloud.sh
  . "$SCRIPTS/gcloud.sh"
  check_place ACCELERATOR
  [[ $DRY_RUN != 1 ]] || (($#)) || set -- alanything train CONFIG
  if [[ ${STOP:-0} == 1 ]]; then
    on_workers "pid=\$(cat $STATE_ROOT/$NAME/pid); kill -TERM \$pid || sudo kill -TERM \$pid"
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
  local vars=(env "NAME=$NAME" "ACCELERATOR=$ACCELERATOR" "SLICES=$SLICES")
  [[ -z ${BUCKET:-} ]] || vars+=("BUCKET=$BUCKET")
  [[ -z ${HF_SECRET:-} ]] || vars+=("HF_SECRET=$HF_SECRET")
  [[ -z ${LIBTPU_INIT_ARGS:-} ]] || vars+=("LIBTPU_INIT_ARGS=$LIBTPU_INIT_ARGS")
  # `|| exit;`, not `&&`: a whole list in the background would keep the connection open.
  on_workers "cd alanything_jax || exit; $(quoted "${vars[@]}") setsid nohup \
bash tpu_scripts/launch.sh --here $(quoted "$@") >/dev/null 2>&1 </dev/null &"
  echo "started on every worker. Watch: bash tpu_scripts/logs.sh; bash tpu_scripts/status.sh"
  echo "undo: STOP=1 bash tpu_scripts/launch.sh; the TPU costs on until bash tpu_scripts/delete.sh"
}

upload() { # best effort: a bucket that fails must not change the run's exit code
  [[ -n ${BUCKET:-} ]] || return 0
  run gcloud storage cp "$1" "$BUCKET/$NAME/$2/$(hostname)" || echo "note: $1 was not uploaded"
}

environment() {
  set -a
  # shellcheck source=/dev/null
  [[ ! -f ~/.alanything.env ]] || . ~/.alanything.env
  local own=${LIBTPU_INIT_ARGS:-}
  # shellcheck source=presets/v6e.env
  . "$SCRIPTS/presets/$GENERATION.env"
  LIBTPU_INIT_ARGS+="${own:+ $own}" # yours come last and win
  # Restarts compile nothing anew. Host 0 writes and all read: in a bucket it serves every host.
  local cache=${BUCKET:-$STATE_ROOT}/jax_cache/$JAX_VERSION-$ACCELERATOR
  JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$cache}
  # CPU too: host offload and checkpoints place arrays there.
  JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu}
  if [[ -n ${HF_SECRET:-} ]]; then # not by `run`: the answer is the secret
    HF_TOKEN=$(gcloud secrets versions access latest --secret="$HF_SECRET")
  fi
  set +a
  [[ ! -d $ROOT/.venv ]] || PATH=$ROOT/.venv/bin:$PATH
  ulimit -n "$(ulimit -Hn)" || true
}

finish() {
  trap - EXIT
  echo "$1" >"$state/exit_code"
  upload "$state/log" logs
  upload "$state/exit_code" exit
  exec >/dev/null 2>&1 3>&1
  local i # the last lines are in the log before we go, but an orphan may hold it open
  for ((i = 0; i < 25; i++)); do
    kill -0 "$logger" 2>/dev/null || break
    sleep 0.2
  done
  exit "$1"
}

here() {
  require NAME ACCELERATOR
  check_name
  local code restarts=0
  state=$STATE_ROOT/$NAME
  mkdir -p "$state"
  exec 8>"$state/lock"
  flock -n 8 || fail "NAME=$NAME runs here already" "one run a name" "another NAME, or stop that one"
  rm -f "$state/exit_code"
  echo $$ >"$state/pid"
  exec > >(tee -a "$state/log" 8>&-) 2>&1 3>&1
  logger=$!
  trap 'finish $?' EXIT # from here on every end is recorded
  tpu_facts "$ACCELERATOR"
  check_megascale
  check_command "$@"
  environment
  cd "$ROOT"
  stopping=0 child=""
  trap 'stopping=1; [[ -z $child ]] || kill -TERM "$child" || true' TERM INT
  while :; do
    echo "$(date '+%F %T') $(hostname) starts: $(quoted "$@")"
    code=0
    if [[ $DRY_RUN == 1 ]]; then run "$@"; else
      "$@" 3>&- &
      child=$!
      wait "$child" || code=$?
      # A trapped signal ends the wait, not the child, which saves first.
      while kill -0 "$child" 2>/dev/null; do code=0 && wait "$child" || code=$?; done
    fi
    echo "$(date '+%F %T') $(hostname) exit code $code (0 done, 42 start again, else stop)"
    # 134: JAX ends itself where a host it waits for has gone; as good as preempted.
    ((code != 134)) || code=42
    ((code == 42 && stopping == 0 && restarts++ < ${RESTARTS:-100})) || break
    upload "$state/log" logs
    sleep "${RESTART_WAIT:-5}"
    ((stopping == 0)) || break
  done
  exit "$code"
}

if [[ ${1:-} == --here ]]; then here "${@:2}"; else from_afar "$@"; fi
