#!/usr/bin/env bash
# Mount a bucket on this machine, for reading, with caches that suit training data.
#   BUCKET=gs://my-bucket MOUNT=/mnt/data bash tpu_scripts/gcsfuse_mount.sh
# RW=1 also for writing. Undo: UNMOUNT=1 with the same MOUNT. Nothing is ever removed: what
# looks like a folder's files here are the bucket's.

# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
stand_in BUCKET gs://my-bucket
stand_in MOUNT /mnt/data
require MOUNT
[[ $MOUNT =~ ^/[A-Za-z0-9._-]+/[A-Za-z0-9._/-]*[A-Za-z0-9._-]$ && "/$MOUNT/" != */../* ]] ||
  fail "MOUNT='$MOUNT'" "an absolute path at least two deep, no .." "MOUNT=/mnt/data"
case $MOUNT in
  /bin/* | /boot/* | /dev/* | /etc/* | /lib*/* | /proc/* | /sbin/* | /sys/* | /usr/*)
    fail "MOUNT='$MOUNT'" "a folder that is not the system's" "MOUNT=/mnt/data" ;;
esac
[[ ! -L $MOUNT ]] || fail "MOUNT='$MOUNT' is a link" "a folder" "MOUNT=$(readlink -f "$MOUNT")"

if [[ ${UNMOUNT:-0} == 1 ]]; then
  [[ $DRY_RUN == 1 ]] || mountpoint -q "$MOUNT" ||
    fail "MOUNT='$MOUNT' is not mounted" "a mounted folder" "nothing to do"
  run fusermount -u "$MOUNT"
  exit 0
fi
check_bucket
! mountpoint -q "$MOUNT" 2>/dev/null ||
  fail "MOUNT='$MOUNT' has something mounted" "an empty folder" "another MOUNT, or UNMOUNT=1 first"
[[ ! -e $MOUNT ]] || [[ -d $MOUNT && -z $(ls -A "$MOUNT") ]] ||
  fail "MOUNT='$MOUNT' is not empty" "a new or an empty folder" "another MOUNT; this never removes files"

name=${BUCKET#gs://}
options=(--implicit-dirs)
[[ $name != */* ]] || options+=(--only-dir="${name#*/}")
if [[ ${RW:-0} != 1 ]]; then # only who never writes may cache for ever
  options+=(-o ro --type-cache-max-size-mb=-1 --stat-cache-max-size-mb=-1
    --kernel-list-cache-ttl-secs=-1 --metadata-cache-ttl-secs=-1)
fi
[[ -d $MOUNT ]] || run mkdir -p "$MOUNT"
run gcsfuse "${options[@]}" "${name%%/*}" "$MOUNT"
run ls -R "$MOUNT" >/dev/null # fills the metadata cache: random access is fast from the start
echo "undo: UNMOUNT=1 MOUNT=$MOUNT bash tpu_scripts/gcsfuse_mount.sh"
