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
if [[ $DRY_RUN == 1 && -z ${DRY_RUN_SAID:-} ]]; then
  export DRY_RUN_SAID=1
  echo "(dry run: commands are shown, none is run)" >&2
fi
exec 3>&1                                     # commands are shown here, also from inside $(...)

# fail WHAT_WAS_GIVEN WHAT_IS_ALLOWED WHAT_TO_CHANGE
fail() {
  printf 'error: %s\n  allowed: %s\n  change:  %s\n' "$@" >&2
  exit 2
}

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

meaning() {
  case $1 in
    PROJECT) echo "the Google Cloud project that pays, as PROJECT=my-project" ;;
    ZONE) echo "where the TPU is, as ZONE=us-east5-a" ;;
    NAME) echo "the run: names the TPU, logs and restarts, as NAME=dpo-1" ;;
    ACCELERATOR) echo "type and size of one slice, as ACCELERATOR=v6e-16" ;;
    BUCKET) echo "for code, logs and exit codes, as BUCKET=gs://my-bucket/runs" ;;
    CLUSTER) echo "the GKE cluster that XPK made, as CLUSTER=my-cluster" ;;
    IMAGE) echo "the image built from tpu_scripts/Dockerfile, as IMAGE=us-docker.pkg.dev/p/r/alanything:1" ;;
    MOUNT) echo "an empty folder for the bucket, as MOUNT=/mnt/data" ;;
  esac
}

# require NAME...: all that is missing at once, with its meaning.
require() {
  local name missing=()
  for name; do [[ -n ${!name:-} ]] || missing+=("$name"); done
  ((${#missing[@]})) || return 0
  echo "error: ${0##*/} needs ${missing[*]}: before the command, or exported:" >&2
  for name in "${missing[@]}"; do printf '  %-11s %s\n' "$name" "$(meaning "$name")" >&2; done
  exit 2
}

# A name that every path accepts: 28 characters leave room for what GKE appends.
sanitise() {
  local name=${1,,}
  name=${name//[^a-z0-9-]/-}
  while [[ $name == [^a-z]* ]]; do name=${name:1}; done
  name=${name:0:28}
  while [[ $name == *- ]]; do name=${name%-}; done
  echo "${name:-run}"
}

check_name() {
  [[ $NAME == "$(sanitise "$NAME")" ]] ||
    fail "NAME='$NAME'" "1 to 28 of a-z 0-9 -, a letter first, no - last" "NAME=$(sanitise "$NAME")"
}

check_slices() {
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || fail "SLICES='$SLICES'" "a whole number from 1" "SLICES=1"
}

check_bucket() {
  require BUCKET
  [[ $BUCKET =~ ^gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/[A-Za-z0-9._/-]*[A-Za-z0-9._-])?$ ]] ||
    fail "BUCKET='$BUCKET'" \
      "gs:// and a bucket of 3 to 63 a-z 0-9 . _ -, perhaps /folder, no slash last" "BUCKET=gs://my-bucket/runs"
}

# The command to train; a token in it would land in logs and process lists.
check_command() {
  (($#)) || fail "no command" "what to run on every host" \
    "${0##*/} alanything train configs/dpo_smollm2.py"
  [[ ! "$*" =~ hf_[A-Za-z0-9]{16,} ]] ||
    fail "a Hugging Face token in the command" \
      "HF_SECRET (Secret Manager) or ENV_FILE" "see tpu_scripts/README.md, Secrets"
}

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
