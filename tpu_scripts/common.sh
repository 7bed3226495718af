# shellcheck shell=bash disable=SC2034,SC2153
# What every script here shares: strict mode, dry runs, checks, rendering.
# Sourced, never run.
set -euo pipefail

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 501)); then
  echo "error: bash $BASH_VERSION is too old; 5.1 or newer is needed (macOS: brew install bash)" >&2
  exit 2
fi

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$SCRIPTS")
: "${DRY_RUN:=0}" "${MODE:=qr}" "${SLICES:=1}" "${SPOT:=0}"
# The pair that the tests run with; Python 3.11 because jax 0.10 is paired with it in setup.py.
: "${JAX_VERSION:=0.10.2}" "${PYTHON_VERSION:=3.11}"
STATE_ROOT=${STATE_ROOT:-/var/tmp/alanything} # on a worker: logs and exit code, kept over a reboot
# shellcheck source=accelerators.sh
. "$SCRIPTS/accelerators.sh"
# shellcheck source=checks.sh
. "$SCRIPTS/checks.sh"
if [[ $DRY_RUN == 1 && -z ${DRY_RUN_SAID:-} ]]; then
  export DRY_RUN_SAID=1
  echo "(dry run: commands are shown, none is run)" >&2
fi
exec 3>&1                                     # commands are shown here, also from inside $(...)

# Quoted so that it can be pasted; quotes instead of %q's backslashes where there are blanks.
quoted() {
  local word text=""
  for word; do
    if [[ $word == *[[:space:]]* ]]; then text+=" ${word@Q}"; else text+=" $(printf %q "$word")"; fi
  done
  printf '%s' "${text# }"
}

# Show a command and, unless DRY_RUN=1, run it.
run() {
  echo "+ $(quoted "$@")" >&3
  [[ $DRY_RUN != 1 ]] || return 0
  if ! command -v "$1" >/dev/null; then
    echo "error: $1 is not installed here (DRY_RUN=1 does without)" >&2
    return 127
  fi
  "$@" 3>&-
}

# ask ANSWER COMMAND...: as run, for its output; a dry run takes ANSWER for it.
ask() {
  local answer=$1
  shift
  [[ $DRY_RUN != 1 ]] || echo "$answer"
  run "$@" # last: its exit code is ours
}

# stand_in NAME VALUE: a dry run needs no more than it must.
stand_in() {
  [[ $DRY_RUN == 1 && -z ${!1:-} ]] || return 0
  printf -v "$1" %s "$2"
  echo "(dry run: $1=$2 stands in for yours)" >&2
}

# What a run is told of the settings that are made here.
SETTINGS="NAME ACCELERATOR SLICES BUCKET HF_SECRET LIBTPU_INIT_ARGS JAX_VERSION RESTARTS LOG_EVERY"

# settings NAME...: NAME=value of those that are set, quoted for a shell.
settings() {
  local name words=()
  for name; do [[ -z ${!name:-} ]] || words+=("$name=${!name}"); done
  quoted "${words[@]}"
}

# Compiled programs below a folder or bucket; other versions and slices do not find them.
cache_in() { echo "$1/jax_cache/$JAX_VERSION-$ACCELERATOR"; }

# render FILE KEY VALUE ...: the file with every @KEY@ replaced.
render() {
  local text
  text=$(<"$1")
  shift
  while (($#)); do
    text=${text//"@$1@"/"$2"}
    shift 2
  done
  printf '%s\n' "$text"
}

case ${1:-} in
  -h | --help)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac
