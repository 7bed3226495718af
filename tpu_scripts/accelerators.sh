# shellcheck shell=bash disable=SC2034
# The TPUs: names, sizes, runtime versions, slices. Sourced by common.sh, never run.

GRID="1:1x1 4:2x2 8:2x4 16:4x4 32:4x8 64:8x8 128:8x16 256:16x16"
TORUS="8:2x2x1 16:2x2x2 32:2x2x4 64:2x4x4 128:4x4x4 256:4x4x8 512:4x8x8 1024:8x8x8 2048:8x8x16 4096:8x16x16"
LARGE="8192:16x16x16 12288:16x16x24"

# tpu_facts v6e-16: sets GENERATION RUNTIME GKE_TPU TOPOLOGY CHIPS HOSTS CHIPS_PER_HOST.
# v5litepod-N and v6e-N count chips; v4-N, v5p-N and tpu7x-N count TensorCores, two a chip.
tpu_facts() {
  local sizes="" size
  case ${1%-*} in
    v4) GENERATION=v4 RUNTIME=tpu-ubuntu2204-base GKE_TPU=tpu-v4-podslice sizes=$TORUS ;;
    v5litepod) GENERATION=v5e RUNTIME=v2-alpha-tpuv5-lite GKE_TPU=tpu-v5-lite-podslice sizes=$GRID ;;
    v5p) GENERATION=v5p RUNTIME=v2-alpha-tpuv5 GKE_TPU=tpu-v5p-slice sizes="$TORUS $LARGE" ;;
    v6e) GENERATION=v6e RUNTIME=v2-alpha-tpuv6e GKE_TPU=tpu-v6e-slice sizes=$GRID ;;
    tpu7x) GENERATION=v7x RUNTIME="" GKE_TPU=tpu7x sizes=$TORUS ;;
  esac
  TOPOLOGY=""
  for size in $sizes; do [[ $1 != *-${size%:*} ]] || TOPOLOGY=${size#*:}; done
  [[ -n $TOPOLOGY ]] || fail "ACCELERATOR='$1'" \
    "v6e- or v5litepod- 1 4 8 16 32 64 128 256; v4- v5p- or tpu7x- 8 16 32 64 128 256 512 1024
            2048 4096; v5p- also 8192 12288" \
    "$(case $1 in v5e*) echo "ACCELERATOR=v5litepod${1#v5e}" ;; *) echo "ACCELERATOR=v6e-16" ;; esac)"
  CHIPS=$((${TOPOLOGY//x/*}))
  # Up to 8 chips of v5e and v6e share one VM; all else has 4 a VM.
  if [[ $sizes == "$GRID" && $CHIPS -le 8 ]]; then HOSTS=1; else HOSTS=$((CHIPS / 4)); fi
  CHIPS_PER_HOST=$((CHIPS / HOSTS))
}

# Replaced pods can keep the variables of an earlier job, and then wait for slices for ever.
check_megascale() {
  local have=${MEGASCALE_NUM_SLICES:-} id=${MEGASCALE_SLICE_ID:-}
  if [[ -n ${MEGASCALE_COORDINATOR_ADDRESS:-}$id && -z $have ]] ||
    [[ -n $have && $have != "$SLICES" ]] || [[ -n $id && $id -ge $SLICES ]]; then
    fail "MEGASCALE_NUM_SLICES='$have' MEGASCALE_SLICE_ID='$id' for SLICES=$SLICES: left from another job?" \
      "NUM_SLICES equal to SLICES, SLICE_ID below it, or neither set" \
      "unset \${!MEGASCALE_@}, or SLICES=${have:-1}"
  fi
}
