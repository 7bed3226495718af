#!/usr/bin/env bash
# Send the tracked files, with your uncommitted changes, to every worker's ~/alanything_jax.
#   PROJECT=p ZONE=us-east5-a NAME=t bash tpu_scripts/sync_code.sh
# TO=bucket BUCKET=gs://...: to BUCKET/NAME/code.tar.gz instead, for startup scripts
# Undo: the next sync overwrites; files that were deleted here stay there.

# shellcheck source=gcloud.sh
. "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"
check_place
[[ ${TO:=workers} =~ ^(workers|bucket)$ ]] || fail "TO='$TO'" "workers (over ssh) or bucket" "TO=workers"
[[ $TO != bucket ]] || check_bucket

cd "$ROOT"
bundle=$(mktemp -d)/code.tar.gz
trap 'rm -rf "$(dirname "$bundle")"' EXIT
# A tracked file that is deleted here is still listed; tar would stop at it.
git ls-files -z | while IFS= read -rd '' file; do [[ ! -e $file ]] || printf '%s\0' "$file"; done |
  tar --null --files-from=- -czf "$bundle"
new=$(git ls-files --others --exclude-standard | wc -l)
echo "code: $(git rev-parse --short HEAD), $(git ls-files --modified | wc -l) files changed since," \
  "$(du -k "$bundle" | cut -f1) KiB"
((new == 0)) || echo "not sent: $new new files that git does not track ('git add' sends them)"

if [[ $TO == bucket ]]; then
  run gcloud storage cp "$bundle" "$BUCKET/$NAME/code.tar.gz"
  echo "undo: gcloud storage rm $BUCKET/$NAME/code.tar.gz"
else
  to_workers "$bundle" code.tar.gz
  on_workers "mkdir -p alanything_jax && tar -xzf code.tar.gz -C alanything_jax"
  echo "next: bash tpu_scripts/setup_vm.sh"
fi
