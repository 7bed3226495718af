# shellcheck shell=bash disable=SC2153
# What is refused before anything starts, and how it is said. Sourced by common.sh, never run.

# fail WHAT_WAS_GIVEN WHAT_IS_ALLOWED WHAT_TO_CHANGE
fail() {
  printf 'error: %s\n  allowed: %s\n  change:  %s\n' "$@" >&2
  exit 2
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

# refuse NAME ALLOWED CHANGE: a setting that would be dropped silently.
refuse() { [[ -z ${!1:-} ]] || fail "$1='${!1}' for ${0##*/}" "$2" "$3"; }

# Hosts that start by themselves have nobody who copies a file to them.
refuse_env_file() {
  refuse ENV_FILE "hosts that start at boot read secrets from Secret Manager" \
    "unset ENV_FILE; HF_SECRET=hf-token (README, Secrets)"
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

# check_whole NAME DEFAULT: gives it the default; from 0.
check_whole() {
  printf -v "$1" %s "${!1:-$2}"
  [[ ${!1} =~ ^(0|[1-9][0-9]*)$ ]] || fail "$1='${!1}'" "a whole number" "$1=$2"
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
    "${0##*/} alanything train configs/colab_dpo.py --compute.rows-per-microbatch 0 --run-dir gs://..."
  [[ ! "$*" =~ hf_[A-Za-z0-9]{16,} ]] ||
    fail "a Hugging Face token in the command" \
      "HF_SECRET (Secret Manager) or ENV_FILE" "see tpu_scripts/README.md, Secrets"
}
