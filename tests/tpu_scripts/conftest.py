"""The launch scripts in a small repository; gcloud and others only pretend."""

import dataclasses
import os
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = "gcloud kubectl xpk gcsfuse fusermount sudo uv systemd-run".split()
HOST = socket.gethostname()
GIVEN = {"PROJECT": "p", "ZONE": "us-east5-a", "NAME": "t", "ACCELERATOR": "v6e-16"}

# Writes each call down. States come from files, a line a call, the last one for ever.
# What would go to a worker runs here, in a home and a bucket of the test. A call that the
# first line of `broken` matches fails, and uses that line up.
PRETENDER = r"""#!/bin/bash
tool=${0##*/}
echo "$tool $*" >>"$FAKE/calls"
next() {
  local line
  line=$(head -n 1 "$FAKE/$1")
  [[ $(wc -l <"$FAKE/$1") -le 1 ]] || sed -i 1d "$FAKE/$1"
  case $line in
    NONE) echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1 ;;
    OFFLINE) echo "ERROR: the network is unreachable" >&2; exit 1 ;;
    *) echo "$line" | tr , '\n' ;;
  esac
}
broken=$(head -n 1 "$FAKE/broken" 2>/dev/null)
if [[ -n $broken && "$tool $*" == *$broken* ]]; then
  sed -i 1d "$FAKE/broken"
  echo "ERROR: permission denied" >&2
  exit 1
fi
local_path() { case $1 in gs://*) echo "$FAKE/${1#gs://}" ;; *) echo "$1" ;; esac; }
case "$tool $*" in
  *"queued-resources describe"*) next queue ;;
  *"tpu-vm describe"*) next nodes ;;
  *"storage cat"*/exit/*) next exits ;;
  *"storage rm"*) echo "The URLs matched no objects" >&2; exit 1 ;;
  *"storage cp"*)
    to=$(local_path "$4")
    mkdir -p "$(dirname "$to")" && cp "$(local_path "$3")" "$to" ;;
  *"secrets versions"*) echo secret-of-the-manager ;;
  *" create "*)
    for word; do
      [[ $word != *startup-script=* ]] || cp "${word##*=}" "$FAKE/startup.sh"
    done ;;
  *" ssh "*)
    for word; do
      [[ $word == --command=* ]] || continue
      (cd "$FAKE/home" && HOME=$FAKE/home bash -c "${word#*=}")
    done ;;
  *" scp "*)
    for word; do
      [[ $word != t:* ]] || cp "$last" "$FAKE/home/${word#t:}"
      last=$word
    done ;;
  systemd-run*) # as systemd does: no environment, no such directory
    while [[ $1 == -* ]]; do [[ $1 != -p ]] || shift; shift; done
    cd / && exec env -i FAKE="$FAKE" STATE_ROOT="$STATE_ROOT" /bin/"$@" ;;
  "kubectl apply"*) cat >"$FAKE/applied.yaml" ;;
esac
"""


@dataclasses.dataclass
class Shell:
    """Runs scripts of `root`; `fake` holds the pretended world."""

    root: Path
    fake: Path
    started: list = dataclasses.field(default_factory=list)

    def __call__(self, script, *args, timeout=60, unset=(), **env):
        """One script to its end; its output has stdout and stderr in their order."""
        env = {k: v for k, v in (self.env() | GIVEN | env).items() if k not in unset}
        return subprocess.run(
            ["bash", f"tpu_scripts/{script}.sh", *args],
            cwd=self.root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def env(self):
        return {
            "PATH": f"{self.fake}/bin:/usr/bin:/bin",
            "HOME": f"{self.fake}/home",
            "FAKE": str(self.fake),
            "STATE_ROOT": f"{self.fake}/state",
        }

    def says(self, **states):
        """queue="WAITING ACTIVE": what the calls to come will answer."""
        for name, answers in states.items():
            (self.fake / name).write_text("\n".join(answers.split()) + "\n")

    def calls(self, *words):
        """The calls that hold all of the words."""
        path = self.fake / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if all(word in line for word in words)]


def shown(output):
    """The commands that a script showed, as lists of words."""
    lines = [line[2:] for line in output.splitlines() if line.startswith("+ ")]
    return [shlex.split(line) for line in lines]


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A git repository with the scripts and one more tracked file."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "tpu_scripts", root / "tpu_scripts")
    (root / "a file.txt").write_text("tracked\n")
    who = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    return root


@pytest.fixture
def shell(checkout, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        path = tmp_path / "bin" / tool
        path.write_text(PRETENDER)
        path.chmod(0o755)
    shell = Shell(checkout, tmp_path)
    shell.says(queue="ACTIVE", nodes="READY", exits="NONE")
    yield shell
    for process in shell.started:  # of a test that failed
        if process.poll() is None:
            process.terminate()
            process.wait(20)


def wait_for(path, seconds=20):
    """The text of a file that another process is to write."""
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < end, f"{path} was not written in {seconds} s"
        time.sleep(0.02)
    return path.read_text()


def until(true, seconds=20):
    """Whether `true()` came to be so in time."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def without(*names):
    """This process's environment less some variables."""
    return {k: v for k, v in os.environ.items() if k not in names}
