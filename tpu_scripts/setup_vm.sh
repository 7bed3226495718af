#!/usr/bin/env bash
# Install this package and its JAX on every worker, after sync_code.sh.
#   PROJECT=p ZONE=us-east5-a NAME=t bash tpu_scripts/setup_vm.sh
# On the machine itself: setup_vm.sh --here. Undo: rm -r ~/alanything_jax/.venv there.

# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [[ ${1:-} != --here ]]; then
  # shellcheck source=gcloud.sh
  . "$SCRIPTS/gcloud.sh"
  check_place
  on_workers "JAX_VERSION=$JAX_VERSION bash alanything_jax/tpu_scripts/setup_vm.sh --here"
  echo "next: bash tpu_scripts/launch.sh alanything train CONFIG"
  exit 0
fi

# root (a startup script) or a user who may sudo
as_root() { if ((EUID == 0)); then run "$@"; else run sudo "$@"; fi; }

# Without transparent huge pages a TPU takes minutes more to start and stop.
as_root sh -c "echo always > /sys/kernel/mm/transparent_hugepage/enabled" ||
  echo "note: huge pages are not on; starting and stopping will be slow"
# Data workers and checkpoints open many files; the default is 1024.
as_root sh -c "echo '* - nofile 1048576' > /etc/security/limits.d/90-alanything.conf" ||
  echo "note: the limit of open files stays $(ulimit -n)"

cd "$ROOT"
# The images' Python is 3.10; uv brings the one that we are tested with.
export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || run python3 -m pip install --quiet --user uv
[[ -x .venv/bin/python ]] || run uv venv --quiet --python "$PYTHON_VERSION" .venv
# gcsfs: without it a gs:// path (checkpoints, compilation cache) raises ImportError.
run uv pip install --quiet --python .venv/bin/python "jax[tpu]==$JAX_VERSION" gcsfs -e .
run .venv/bin/python -c 'import jax; print("jax", jax.__version__)'
