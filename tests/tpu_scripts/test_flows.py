"""Whole flows in a pretended cloud: launch, stop, rehearse, mount, delete."""

import os
import re
import signal
import subprocess
import time

import pytest

from tests.tpu_scripts.conftest import HOST, ROOT, shown, until, wait_for

BUCKET = {"BUCKET": "gs://bkt/runs"}
SH = ["bash", "-c"]


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
    """launch.sh --here in the background, its log begun."""
    process = subprocess.Popen(
        ["bash", "tpu_scripts/launch.sh", "--here", *args],
        cwd=shell.root,
        env=shell.env() | {"NAME": "t", "ACCELERATOR": "v5p-8"} | env,
        stdout=subprocess.DEVNULL,
    )
    shell.started.append(process)
    wait_for(shell.fake / "state/t/log")
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
    assert until((shell.fake / "ready").exists)
    second = shell("launch", "--here", "true")
    assert second.returncode == 2 and "runs here already" in second.stdout
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(20) == 42 and (shell.fake / "saved").exists()
    assert (shell.fake / "state/t/exit_code").read_text() == "42\n"
    assert not (shell.fake / "state/t/pid").exists()


def test_a_sigterm_before_the_command_can_save_is_a_preemption_too(shell):
    process = here(shell, *SH, f"echo up >{shell.fake}/ready; exec sleep 50")
    wait_for(shell.fake / "ready")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(20) == 42
    assert (shell.fake / "state/t/exit_code").read_text() == "42\n"


SAVES = "trap 'exit 42' TERM; echo up >ready; while :; do sleep 0.05; done"


def test_launch_stop_and_status_of_a_run_that_lasts(shell):
    assert shell("sync_code").returncode == 0
    said = shell("launch", STOP="1")
    assert said.returncode == 0 and "not running" in said.stdout, said.stdout
    for _ in range(2):  # it can be launched again
        done = shell("launch", *SH, SAVES, **BUCKET)
        assert done.returncode == 0 and "started on every" in done.stdout, done.stdout
        wait_for(shell.fake / "home/alanything_jax/ready").strip()
        assert f"{HOST}: running" in shell("status").stdout
        [report] = (shell.fake / "bkt/runs/t/exit").iterdir()
        assert report.name == HOST and report.read_text() == "started\n"
        assert shell("launch", STOP="1").returncode == 0
        assert wait_for(shell.fake / "state/t/exit_code") == "42\n"
        assert until(lambda: not (shell.fake / "state/t/pid").exists())
        assert report.read_text() == "stopped\n"
    assert f"{HOST}: 42" in shell("status").stdout
    again = shell("launch", "--here", "true")  # a startup script, say, after a reboot
    assert again.returncode == 2 and "stopped here by STOP=1" in again.stdout


def test_the_number_of_another_process_is_not_taken_for_the_run(shell):
    (shell.fake / "state/t").mkdir(parents=True)
    with subprocess.Popen(["sleep", "5"]) as other:
        (shell.fake / "state/t/pid").write_text(f"{other.pid}\n")
        (shell.fake / "state/t/log").write_text("last words\n")
        assert f"{HOST}: not running last words" in shell("status").stdout
        assert "not running" in shell("launch", STOP="1").stdout
        time.sleep(0.1)
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("why", ["runs already", "no state", "no command"])
def test_a_launch_that_is_refused_on_a_worker_says_so(shell, why):
    assert shell("sync_code").returncode == 0
    env, command, words = {}, ["true"], "runs here already"
    if why == "runs already":
        other = here(shell, "sleep", "2")
    elif why == "no state":
        env, words = {"STATE_ROOT": "/dev/null"}, "mkdir: cannot create directory"
    else:
        command, words = ["no-such-command"], "exit code 127"
    done = shell("launch", *command, **env)
    assert done.returncode != 0 and "started on every" not in done.stdout
    assert f"{HOST}: t ended at once" in done.stdout and words in done.stdout
    if why == "runs already":
        assert other.wait(20) == 0


def test_only_the_command_holds_the_lock(shell):
    """What waits or sends beside it may outlive a killed run."""
    sleep = shell.fake / "bin/sleep"
    sleep.write_text(
        '#!/bin/bash\necho "sleep $1 $$" >>$FAKE/calls; exec /bin/sleep $1'
    )
    sleep.chmod(0o755)
    waits = {"RESTART_WAIT": "51", "LOG_EVERY": "52"}
    process = here(shell, *SH, "exit 42", **waits, **BUCKET)
    assert until(lambda: shell.calls("sleep 51") and shell.calls("sleep 52"))
    process.kill()
    process.wait(20)
    done = shell("launch", "--here", "true")
    assert done.returncode == 0, done.stdout
    for call in shell.calls("sleep 5"):
        os.kill(int(call.split()[2]), signal.SIGTERM)


def test_the_log_is_in_the_bucket_before_the_end_and_reports_are_retried(shell):
    shell.says(broken="/exit/ /exit/")
    wait = f"echo first words; until [[ -e {shell.fake}/go ]]; do sleep 0.05; done"
    how = {"LOG_EVERY": "1", "UPLOAD_WAIT": "0"} | BUCKET
    process = here(shell, *SH, f"{wait}; echo last words", **how)
    sent = shell.fake / f"bkt/runs/t/logs/{HOST}"
    assert until(sent.exists) and "first words" in sent.read_text()
    report = shell.fake / f"bkt/runs/t/exit/{HOST}"
    assert report.read_text() == "started\n"  # at the third try
    assert (
        "gcloud storage cp"
        not in wait_for(shell.fake / "state/t/log").split("starts")[1]
    )
    shell.says(broken="/exit/ /exit/")
    (shell.fake / "go").touch()
    assert process.wait(20) == 0
    assert report.read_text() == "0\n" and "last words" in sent.read_text()


def test_a_dry_run_on_a_worker_leaves_nothing(shell):
    (shell.fake / "tmp").mkdir()
    done = shell("launch", "--here", "true", DRY_RUN="1", TMPDIR=f"{shell.fake}/tmp")
    assert done.returncode == 0, done.stdout
    assert not (shell.fake / "state").exists() and not [*(shell.fake / "tmp").iterdir()]


def test_every_end_is_recorded(shell):
    assert here(shell, "exit-code-127-of-no-such-command").wait(20) == 127
    assert (shell.fake / "state/t/exit_code").read_text() == "127\n"
    assert here(shell, "true", MEGASCALE_NUM_SLICES="3").wait(20) == 2
    assert "MEGASCALE_NUM_SLICES='3'" in (shell.fake / "state/t/log").read_text()
    assert here(shell, *SH, "exit 42", RESTARTS="1", RESTART_WAIT="0").wait(20) == 42
    assert (shell.fake / "state/t/log").read_text().count("exit code 42") == 2


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
