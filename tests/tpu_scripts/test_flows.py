"""Whole flows in a pretended cloud: supervise, launch, start up, rehearse."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from tests.tpu_scripts.conftest import ROOT, shown

BUCKET = {"BUCKET": "gs://bkt/runs", "POLL": "0.01"}
SH = ["bash", "-c"]


def supervise(shell, queue, nodes="READY", exits="NONE", **env):
    shell.says(queue=queue, nodes=nodes, exits=exits)
    done = shell("supervise", *SH, "exit 'it' ends", **BUCKET | env)
    verbs = re.compile(r"queued-resources (create|delete)")
    done.verbs = [m[1] for line in shell.calls() if (m := verbs.search(line))]
    return done


def test_a_suspended_tpu_is_deleted_and_created_again_by_the_same_name(shell):
    done = supervise(
        shell,
        # none yet, waits, runs, is taken away; deleted; the second one runs to the end
        "NONE WAITING_FOR_RESOURCES ACTIVE SUSPENDED SUSPENDING NONE ACTIVE",
        exits="NONE 0,0 0,0,0,0",
        SPOT="1",
    )
    assert done.returncode == 0, done.stdout
    assert done.verbs == ["create", "delete", "create", "delete"]
    first, second = shell.calls("queued-resources create")
    cut = re.compile("startup-script=\\S+")
    assert cut.sub("", first) == cut.sub("", second) and "create t --node-id=t" in first
    assert all("--force" in call for call in shell.calls("resources delete"))
    assert (shell.fake / "bkt/runs/t/code.tar.gz").exists()
    assert (
        """command=(bash -c 'exit '\\''it'\\'' ends')"""
        in (shell.fake / "startup.sh").read_text()
    )


@pytest.mark.parametrize(
    "queue, nodes",
    [
        ("NONE FAILED NONE ACTIVE", "READY"),
        # not ready, whatever it is called, at two looks one after another
        ("NONE ACTIVE ACTIVE NONE ACTIVE", "REPAIRING PREEMPTED READY"),
    ],
)
def test_other_deaths(shell, queue, nodes):
    done = supervise(shell, queue, nodes, exits="0,0,0,0")
    assert done.returncode == 0, done.stdout
    assert done.verbs == ["create", "delete", "create", "delete"]


def test_one_look_that_falls_into_a_repair_or_fails_is_no_death(shell):
    done = supervise(
        shell, "NONE ACTIVE OFFLINE ACTIVE", "REPAIRING READY", "NONE 0,0,0,0"
    )
    assert done.returncode == 0 and done.verbs == ["create", "delete"], done.stdout


def test_restarts_are_bounded(shell):
    done = supervise(
        shell, "NONE SUSPENDED NONE SUSPENDED NONE SUSPENDED", MAX_RESTARTS="2"
    )
    assert done.returncode == 75, done.stdout
    assert done.verbs == ["create", "delete", "create", "delete", "create"]
    assert "out of restarts" in done.stdout and "delete.sh" in done.stdout


def test_a_bug_stops_it_and_a_host_that_lost_its_peers_does_not(shell):
    bug = supervise(shell, "ACTIVE", exits="1")
    assert bug.returncode == 1 and bug.verbs == ["delete"], bug.stdout
    (shell.fake / "calls").unlink()
    lost = supervise(shell, "ACTIVE ACTIVE SUSPENDED NONE ACTIVE", exits="134 0,0,0,0")
    assert lost.returncode == 0 and lost.verbs == ["delete", "create", "delete"], (
        lost.stdout
    )
    (shell.fake / "calls").unlink()
    kept = supervise(shell, "ACTIVE", exits="1", KEEP="1")
    assert kept.returncode == 1 and kept.verbs == [], kept.stdout


def test_what_somebody_else_deletes_stays_deleted(shell):
    done = supervise(shell, "ACTIVE ACTIVE NONE")
    assert done.returncode == 1 and done.verbs == [], done.stdout
    assert "not by us" in done.stdout


def test_an_unreachable_or_missing_gcloud_starts_and_deletes_nothing(shell):
    done = supervise(shell, "OFFLINE")
    assert (
        done.returncode == 1 and done.verbs == [] and "does not answer" in done.stdout
    )
    for tool in "bash dirname date cat".split():
        (shell.fake / "bare").mkdir(exist_ok=True)
        (shell.fake / "bare" / tool).symlink_to(shutil.which(tool))
    done = shell("supervise", "true", PATH=f"{shell.fake}/bare", **BUCKET)
    assert done.returncode == 1, done.stdout
    assert "gcloud is not installed" in done.stdout


def test_wait_ready(shell):
    shell.says(
        queue="WAITING_FOR_RESOURCES PROVISIONING ACTIVE", nodes="CREATING READY"
    )
    done = shell("wait_ready", POLL="0.01")
    states = re.findall(r"t: (\w+)$", done.stdout, re.MULTILINE)
    assert states == ["WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING", "READY"]
    shell.says(queue="WAITING_FOR_RESOURCES SUSPENDED")
    done = shell("wait_ready", POLL="0.01")
    assert done.returncode == 1 and "(SUSPENDED). Delete it" in done.stdout
    shell.says(queue="WAITING_FOR_RESOURCES")
    assert shell("wait_ready", POLL="0.01", TIMEOUT="0").returncode == 124


def wait_for(path, seconds=20):
    """The text of a file that another process is to write."""
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < end, f"{path} was not written in {seconds} s"
        time.sleep(0.02)
    return path.read_text()


TWICE = 'echo "run $X $HF_TOKEN"; [[ -e twice ]] || { touch twice; exit 42; }'


def test_sync_and_launch_detached_with_restart_and_exit_code(shell):
    assert shell("sync_code").returncode == 0
    assert (shell.fake / "home/alanything_jax/a file.txt").exists()
    secrets = shell.fake / "my.env"
    secrets.write_text("HF_TOKEN=secret-of-the-file\nX='a b'\n")
    done = shell(
        "launch",
        *SH,
        TWICE,
        ENV_FILE=str(secrets),
        RESTART_WAIT="0",
        LIBTPU_INIT_ARGS="--a --b",
    )
    assert done.returncode == 0, done.stdout
    state = shell.fake / "state/t"
    assert wait_for(state / "exit_code") == "0\n"
    log = wait_for(state / "log")
    assert log.count("run a b secret-of-the-file") == 2, log
    assert "exit code 42" in log and "exit code 0" in log
    assert "secret" not in done.stdout and not shell.calls("secret-of")
    assert (shell.fake / "home/.alanything.env").stat().st_mode & 0o777 == 0o600


def here(shell, *args, **env):
    """launch.sh --here in the background, its file of the pid written."""
    process = subprocess.Popen(
        ["bash", "tpu_scripts/launch.sh", "--here", *args],
        cwd=shell.root,
        env=shell.env() | {"NAME": "t", "ACCELERATOR": "v5p-8"} | env,
        stdout=subprocess.DEVNULL,
    )
    wait_for(shell.fake / "state/t/pid")
    return process


def test_the_environment_of_a_run(shell):
    args = {"LIBTPU_INIT_ARGS": "--mine=1", "HF_SECRET": "hf", "SLICES": "2"}
    process = here(
        shell, "env", MEGASCALE_NUM_SLICES="2", MEGASCALE_SLICE_ID="1", **args
    )
    assert process.wait(20) == 0
    log = (shell.fake / "state/t/log").read_text()
    flags = re.search("LIBTPU_INIT_ARGS=(.*)", log)[1].split()
    assert "--xla_tpu_scoped_vmem_limit_kib=98304" in flags and flags[-1] == "--mine=1"
    assert "JAX_PLATFORMS=tpu,cpu" in log and "HF_TOKEN=secret-of-the-manager" in log


def test_sigterm_reaches_the_command_which_saves_and_is_not_started_again(shell):
    save = "trap 'touch saved; exit 42' TERM; touch ready; while :; do sleep 0.05; done"
    process = here(shell, *SH, f"cd {shell.fake}; {save}")
    wait = time.monotonic() + 20
    while not (shell.fake / "ready").exists() and time.monotonic() < wait:
        time.sleep(0.02)
    second = shell("launch", "--here", "true")
    assert second.returncode == 2 and "runs here already" in second.stdout
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(20) == 42 and (shell.fake / "saved").exists()
    assert (shell.fake / "state/t/exit_code").read_text() == "42\n"


def test_every_end_is_recorded(shell):
    assert here(shell, "exit-code-127-of-no-such-command").wait(20) == 127
    assert (shell.fake / "state/t/exit_code").read_text() == "127\n"
    assert here(shell, "true", MEGASCALE_NUM_SLICES="3").wait(20) == 2
    assert "MEGASCALE_NUM_SLICES='3'" in (shell.fake / "state/t/log").read_text()
    assert here(shell, *SH, "exit 42", RESTARTS="1", RESTART_WAIT="0").wait(20) == 42
    assert (shell.fake / "state/t/log").read_text().count("exit code 42") == 2


@pytest.mark.parametrize("works", [True, False])
def test_the_startup_script(shell, works):
    """Two boots: the first runs the command to its end, the second leaves it ended."""
    shell.says(queue="NONE")
    done = shell("create", *SH, TWICE, **BUCKET)
    assert done.returncode == 0, done.stdout
    code = shell.fake / "code"
    shutil.copytree(shell.root / "tpu_scripts", code / "tpu_scripts")
    (code / "tpu_scripts/setup_vm.sh").write_text(
        f"echo set up; exit {int(not works)}\n"
    )
    bundle = shell.fake / "bkt/runs/t/code.tar.gz"
    bundle.parent.mkdir(parents=True)
    subprocess.run(["tar", "-czf", bundle, "-C", code, "."], check=True)
    script = shell.fake / "startup.sh"
    text = script.read_text().replace("/root", f"{shell.fake}/root")
    script.write_text(text.replace("/var/tmp/alanything", f"{shell.fake}/state"))
    for boot in ("first", "second"):
        env = shell.env() | {"RESTART_WAIT": "0"}
        done = subprocess.run(["bash", script], env=env, text=True, capture_output=True)
        assert done.returncode == (0 if works or boot == "second" else 1), done
    assert "not started again" in done.stdout
    log = (shell.fake / "state/t/log").read_text()
    assert len(re.findall("^run", log, re.M)) == (2 if works else 0) and "set up" in log
    (uploaded,) = (shell.fake / "bkt/runs/t/exit").iterdir()
    assert uploaded.read_text() == ("0\n" if works else "1\n")
    assert (
        (shell.fake / "bkt/runs/t/logs" / uploaded.name)
        .read_text()
        .startswith("set up")
    )


def test_local_processes_get_their_place(shell):
    logs = shell.fake / "logs"
    done = shell("local_multiprocess", "env", N="3", LOGS=str(logs), PORT="23456")
    assert done.returncode == 0, done.stdout
    for i in range(3):
        text = (logs / f"process-{i}.log").read_text()
        assert f"ALANYTHING_PROCESS_ID={i}" in text and "JAX_PLATFORMS=cpu" in text
        assert "ALANYTHING_NUM_PROCESSES=3" in text
        assert "ALANYTHING_COORDINATOR=127.0.0.1:23456" in text


def test_local_processes_end_together(shell):
    one_fails = "((ALANYTHING_PROCESS_ID)) && exit 3; exec sleep 50"
    done = shell(
        "local_multiprocess", *SH, one_fails, LOGS=str(shell.fake / "logs"), timeout=30
    )
    assert done.returncode == 3, done.stdout
    done = shell("local_multiprocess", *SH, "exit 42", LOGS=str(shell.fake / "logs"))
    assert done.returncode == 42


def test_gcsfuse_mounts_only_into_an_empty_folder_and_never_removes(shell):
    mount = shell.fake / "mnt"
    mount.mkdir()
    (mount / "file").write_text("mine")
    there = {"BUCKET": "gs://bkt", "MOUNT": str(mount)}
    done = shell("gcsfuse_mount", **there)
    assert done.returncode == 2 and "not empty" in done.stdout
    done = shell("gcsfuse_mount", UNMOUNT="1", **there)
    assert done.returncode == 2 and "not mounted" in done.stdout
    assert (mount / "file").exists() and shell.calls() == []
    (mount / "file").unlink()
    assert shell("gcsfuse_mount", RW="1", **there).returncode == 0
    assert shell.calls() == [f"gcsfuse --implicit-dirs bkt {mount}"]
    assert not re.search(
        r"^[^#]*\brm ", (ROOT / "tpu_scripts/gcsfuse_mount.sh").read_text(), re.M
    )


def test_delete_asks(shell):
    assert shell("delete", YES="1").returncode == 0
    assert len(shell.calls("queued-resources delete t")) == 1


def test_jobset_is_applied_only_when_asked(shell):
    done = shell("jobset", "true", IMAGE="i")
    assert done.returncode == 0 and shell.calls() == []
    done = shell("jobset", "true", IMAGE="i", APPLY="1")
    assert shown(done.stdout) == [["kubectl", "apply", "--filename=-"]]
    assert "kind: JobSet" in (shell.fake / "applied.yaml").read_text()
