#!/usr/bin/env bash
# Rehearse a run of several hosts on this machine: N processes on CPU that talk over loopback.
#   N=2 bash tpu_scripts/local_multiprocess.sh alanything train configs/x.py --tiny --run-dir runs/x
# LOGS=runs/local: process-I.log of each   PORT=23456: the coordinator's, random unless set
# SIGTERM to one process rehearses a preemption: all save at the same step and exit with 42.
# Free. Undo: Ctrl-C ends all. Exit code: the first that is not 0.

# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[[ $DRY_RUN != 1 ]] || (($#)) || set -- alanything train CONFIG --tiny
check_command "$@"
: "${N:=2}" "${LOGS:=$ROOT/runs/local}" "${PORT:=$((20000 + RANDOM % 10000))}"
[[ $N =~ ^[1-9][0-9]?$ ]] || fail "N='$N'" "1 to 99 processes" "N=2"
[[ -z "${!MEGASCALE_@}" ]] || fail "${!MEGASCALE_@} set in this shell" "none on CPU" "unset \${!MEGASCALE_@}"
[[ ! -d $ROOT/.venv ]] || PATH=$ROOT/.venv/bin:$PATH
[[ $DRY_RUN == 1 ]] || mkdir -p "$LOGS"

export JAX_PLATFORMS=cpu ALANYTHING_COORDINATOR=127.0.0.1:$PORT ALANYTHING_NUM_PROCESSES=$N
pids=()
for ((i = 0; i < N; i++)); do
  echo "+ ALANYTHING_COORDINATOR=$ALANYTHING_COORDINATOR ALANYTHING_NUM_PROCESSES=$N" \
    "ALANYTHING_PROCESS_ID=$i JAX_PLATFORMS=cpu $(quoted "$@")"
  [[ $DRY_RUN != 1 ]] || continue
  ALANYTHING_PROCESS_ID=$i "$@" >"$LOGS/process-$i.log" 2>&1 3>&- &
  pids+=($!)
  echo "  process $i: pid $!, $LOGS/process-$i.log"
done
[[ $DRY_RUN != 1 ]] || exit 0
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM

result=0
while ((${#pids[@]})); do
  code=0 done_pid=""
  wait -n -p done_pid "${pids[@]}" || code=$?
  [[ -n ${done_pid:-} ]] || continue # a signal came; the processes have it and are saving
  left=()
  for pid in "${pids[@]}"; do [[ $pid == "$done_pid" ]] || left+=("$pid"); done
  pids=("${left[@]}")
  echo "pid $done_pid ended with exit code $code"
  ((result)) || result=$code
  # Peers of a crashed process would wait for it; after 42 they are still saving.
  if ((code != 0 && code != 42 && ${#pids[@]})); then
    sleep 2
    kill -TERM "${pids[@]}" 2>/dev/null || true
  fi
done
((result == 0)) || tail -n 5 "$LOGS"/process-*.log
exit "$result"
