# shellcheck shell=bash disable=SC2034,SC2153
# launch.sh --here: a run on the machine itself, from its start to its exit code.
# Sourced by launch.sh, never run.

# upload FILE FOLDER [TRIES]: best effort, a bucket that fails must not change the run's exit code.
# Nothing but the command holds the lock (8): what it leaves behind still has the TPU.
upload() {
  [[ -n ${BUCKET:-} ]] || return 0
  local try tries=${3:-1}
  for ((try = 1; try <= tries; try++)); do
    ! run gcloud storage cp "$1" "$BUCKET/$NAME/$2/$(hostname)" 8>&- || return 0
    ((try == tries)) || sleep "${UPLOAD_WAIT:-10}" 8>&-
  done
  echo "note: $1 was not uploaded"
}

# report WORD: `started`, an exit code, or `stopped` by the user; supervise.sh waits for it.
report() {
  echo "$1" >"$state/report"
  upload "$state/report" exit 10
}

# A hard preemption leaves no time for the log. One upload at a time: the last one is the end.
send_logs() {
  trap 'kill $! || true; exit 0' TERM
  while :; do
    sleep "$LOG_EVERY" &
    wait $!
    upload "$state/log" logs
  done
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
  JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$(cache_in "${BUCKET:-$STATE_ROOT}")}
  # CPU too: host offload and checkpoints place arrays there.
  JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu}
  if [[ -n ${HF_SECRET:-} ]]; then
    local secret=(gcloud secrets versions access latest --secret="$HF_SECRET")
    if [[ $DRY_RUN == 1 ]]; then run "${secret[@]}"; else # not by `run`: the answer is the secret
      HF_TOKEN=$("${secret[@]}" 8>&-)
    fi
  fi
  set +a
  [[ ! -d $ROOT/.venv ]] || PATH=$ROOT/.venv/bin:$PATH
  ulimit -n "$(ulimit -Hn)" || true
}

finish() {
  trap - EXIT
  [[ -z $sender ]] || { kill "$sender" && wait "$sender"; } 2>/dev/null || true
  echo "$1" >"$state/exit_code"
  upload "$state/log" logs
  if [[ -e $state/stopped ]]; then report stopped; else report "$1"; fi
  rm -f "$state/pid" # the number may be another process's soon
  exec >/dev/null 2>&1 3>&1
  local i # the last lines are in the log before we go, but an orphan may hold it open
  for ((i = 0; i < 25; i++)); do
    kill -0 "$logger" 2>/dev/null || break
    sleep 0.2
  done
  [[ $DRY_RUN != 1 ]] || rm -r "$state"
  exit "$1"
}

here() {
  require NAME ACCELERATOR
  check_name
  check_whole LOG_EVERY 300
  check_whole RESTARTS 100
  if [[ $DRY_RUN == 1 ]]; then state=$(mktemp -d); else state=$STATE_ROOT/$NAME; fi
  mkdir -p "$state"
  exec 8>"$state/lock"
  flock -n 8 || fail "NAME=$NAME runs here already" "one run a name" "another NAME, or stop that one"
  rm -f "$state/exit_code"
  echo $$ >"$state/pid"
  logger="" sender="" stopping=0 child=""
  if [[ ${DETACHED:-} == 1 ]]; then
    exec >>"$state/log" 2>&1 3>&1
  else
    exec > >(tee -a "$state/log" 8>&-) 2>&1 3>&1
    logger=$!
  fi
  unset DETACHED
  trap 'finish $?' EXIT # from here on every end is recorded
  trap 'stopping=1; [[ -z $child ]] || kill -TERM "$child" || true' TERM INT
  [[ ! -e $state/stopped ]] ||
    fail "NAME=$NAME was stopped here by STOP=1" "a new start by launch.sh from afar" "rm $state/stopped"
  tpu_facts "$ACCELERATOR"
  check_megascale
  check_command "$@"
  environment
  cd "$ROOT" || exit
  report started
  if [[ -n ${BUCKET:-} && $LOG_EVERY != 0 && $DRY_RUN != 1 ]]; then
    send_logs >/dev/null 2>&1 3>&1 8>&- &
    sender=$!
  fi
  repeat "$@"
}

# Until it ends with something else than 42, or is asked to stop.
repeat() {
  local code=42 restarts=0
  while ((stopping == 0)); do
    echo "$(date '+%F %T') $(hostname) starts: $(quoted "$@")"
    code=0
    if [[ $DRY_RUN == 1 ]]; then run "$@"; else
      "$@" 3>&- &
      child=$!
      ((stopping == 0)) || kill -TERM "$child" || true # it came between the lines
      wait "$child" || code=$?
      # A trapped signal ends the wait, not the child, which saves first.
      while kill -0 "$child" 2>/dev/null; do code=0 && wait "$child" || code=$?; done
    fi
    echo "$(date '+%F %T') $(hostname) exit code $code (0 done, 42 start again, else stop)"
    # 134: JAX ends itself where a host it waits for has gone; 143: our SIGTERM came before the
    # command could save. As good as preempted.
    ((code != 134 && (code != 143 || stopping == 0))) || code=42
    ((code == 42 && stopping == 0 && restarts++ < RESTARTS)) || break
    upload "$state/log" logs
    sleep "${RESTART_WAIT:-5}" 8>&-
  done
  exit "$code"
}
