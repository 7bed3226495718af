"""The script that hosts run at every boot, rendered by create.sh."""

import shutil
import subprocess

import pytest

from tests.tpu_scripts.conftest import HOST

SH = ["bash", "-c"]
BUCKET = {"BUCKET": "gs://bkt/runs"}
TWICE = "echo run; [[ -e twice ]] || { touch twice; exit 42; }"


class Machine:
    """What stays of a host over its boots."""

    def __init__(self, shell, *command, setup="echo set up", **env):
        done = shell("create", *command, **BUCKET | env)
        assert done.returncode == 0, done.stdout
        self.shell, self.state = shell, shell.fake / "state/t"
        self.bucket = shell.fake / "bkt/runs/t"
        code = shell.fake / "code"
        shutil.copytree(shell.root / "tpu_scripts", code / "tpu_scripts")
        (code / "tpu_scripts/setup_vm.sh").write_text(f"{setup}\n")
        self.bucket.mkdir(parents=True)
        bundle = self.bucket / "code.tar.gz"
        subprocess.run(["tar", "-czf", bundle, "-C", code, "."], check=True)
        self.script = shell.fake / "startup.sh"
        text = self.script.read_text()
        for path, ours in {
            "/root": f"{shell.fake}/root",
            "/var/tmp/alanything": f"{shell.fake}/state",
            "/run/systemd": f"{shell.fake}/systemd",  # the real one is not to be asked
        }.items():
            text = text.replace(path, ours)
        self.script.write_text(text)

    def boot(self):
        """Exit code and output of the startup script."""
        env = self.shell.env() | {"RESTART_WAIT": "0"}
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(["bash", self.script], env=env, timeout=60, **how)
        return done.returncode, done.stdout

    def report(self):
        return (self.bucket / "exit" / HOST).read_text()

    def log(self):
        return (self.state / "log").read_text()


@pytest.mark.parametrize("works", [True, False])
def test_two_boots(shell, works):
    """The first runs the command to its end, the second leaves it ended."""
    machine = Machine(shell, *SH, TWICE, setup=f"echo set up; exit {int(not works)}")
    code, said = machine.boot()
    assert code == (0 if works else 1), said
    code, said = machine.boot()
    assert code == 0 and "not started again" in said, said
    log = machine.log()
    assert log.count("\nrun") == (2 if works else 0) and log.startswith("set up")
    assert machine.report() == ("0\n" if works else "1\n")
    sent = (machine.bucket / "logs" / HOST).read_text()
    assert sent.startswith("set up") and (works or "the set-up failed" in sent)


def test_after_exit_code_42_the_next_boot_starts_it_again(shell):
    """And all settings that were made where it was created hold there."""
    command = f"echo $LIBTPU_INIT_ARGS $JAX_COMPILATION_CACHE_DIR; {TWICE}"
    settings = {"LIBTPU_INIT_ARGS": "--a --b", "JAX_VERSION": "0.11.7", "RESTARTS": "0"}
    machine = Machine(shell, *SH, command, **settings)
    code, said = machine.boot()
    assert code == 42 and machine.report() == "42\n", said
    assert "--a --b gs://bkt/runs/jax_cache/0.11.7-v6e-16" in machine.log()
    code, said = machine.boot()
    assert code == 0 and machine.report() == "0\n", said
    assert "not started again" in machine.boot()[1]
    assert machine.log().count("\nrun") == 2


def test_a_stop_holds_over_a_reboot(shell):
    machine = Machine(shell, "true")
    machine.state.mkdir(parents=True)
    (machine.state / "exit_code").write_text("42\n")
    (machine.state / "stopped").touch()
    code, said = machine.boot()
    assert code == 0 and "stopped by STOP=1; not started" in said, said
    assert not (machine.state / "log").exists()


def test_a_stop_while_it_is_set_up(shell):
    machine = Machine(shell, "true", setup="touch $HOME/../state/t/stopped")
    code, said = machine.boot()
    assert code == 2 and "was stopped here by STOP=1" in said, said
    assert machine.report() == "stopped\n"


def test_a_host_without_the_code_reports_it(shell):
    machine = Machine(shell, "true")
    (shell.fake / "bin/sleep").write_text("#!/bin/sh\n")
    (shell.fake / "bin/sleep").chmod(0o755)
    # and the first reports are lost
    shell.says(broken=" ".join(["code.tar.gz"] * 30 + ["/logs/", "/exit/"]))
    code, said = machine.boot()
    assert code == 1 and "try 29 of 30" in said, said
    assert machine.report() == "1\n"
    sent = (machine.bucket / "logs" / HOST).read_text()
    assert "no code from gs://bkt/runs/t/code.tar.gz" in sent and "TO=bucket" in sent
    assert "exit code 1; not started again" in machine.boot()[1]


def test_under_systemd_it_is_a_unit_that_ends_before_the_network(shell):
    machine = Machine(shell, *SH, f"echo 'a  b' \"$HOME\" ${{X:-none}}; {TWICE}")
    (shell.fake / "systemd/system").mkdir(parents=True)
    code, said = machine.boot()
    assert code == 0 and machine.report() == "0\n", said
    assert f"a  b {shell.fake}/root none\nrun" in machine.log()
    [call] = shell.calls("systemd-run")
    for word in (
        "--unit=alanything-t",
        "-p KillMode=mixed",
        "-p TimeoutStopSec=120",
        "-p After=network-online.target",
    ):
        assert word in call
