"""supervise.sh and wait_ready.sh in a pretended cloud that replays states."""

import re
import shutil

import pytest

BUCKET = {"BUCKET": "gs://bkt/runs", "POLL": "0.01"}


def supervise(shell, queue, nodes="READY", exits="NONE", **env):
    shell.says(queue=queue, nodes=nodes, exits=exits)
    done = shell("supervise", "bash", "-c", "exit 'it' ends", **BUCKET | env)
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


def test_42_is_started_again(shell):
    """On a new TPU; a host that rebooted and goes on by itself takes its 42 back."""
    queue = "ACTIVE ACTIVE ACTIVE NONE ACTIVE"
    done = supervise(shell, queue, exits="42 42 42 0,0,0,0")
    assert done.returncode == 0, done.stdout
    assert done.verbs == ["delete", "create", "delete"]
    (shell.fake / "calls").unlink()
    exits = "42,started started,started 42,started 0,0,0,0"
    done = supervise(shell, "ACTIVE", exits=exits)
    assert done.returncode == 0 and done.verbs == ["delete"], done.stdout
    (shell.fake / "calls").unlink()
    done = supervise(shell, "ACTIVE", exits="42,7,42")  # who lost it asks for a restart
    assert done.returncode == 7 and done.verbs == ["delete"], done.stdout


@pytest.mark.parametrize("queue", ["ACTIVE", "ACTIVE SUSPENDED"])
def test_what_the_user_stopped_is_not_started_again(shell, queue):
    done = supervise(shell, queue, exits="stopped,42,stopped,stopped")
    assert done.returncode == 42 and done.verbs == ["delete"], done.stdout
    assert "stopped by STOP=1" in done.stdout


@pytest.mark.parametrize("exits, of", [("NONE", 0), ("started,started,started", 3)])
def test_hosts_that_never_report_end_the_wait_and_delete_nothing(shell, exits, of):
    done = supervise(shell, "ACTIVE", exits=exits, SETUP_TIMEOUT="0")
    assert done.returncode == 2 and done.verbs == [], done.stdout
    said = f"{of} of 4 hosts SETUP_TIMEOUT=0 google-startup-scripts delete.sh costs"
    assert all(word in done.stdout for word in said.split())
    assert f"{of} of 4 hosts" in done.stdout


def test_hosts_that_all_started_may_take_as_long_as_they_like(shell):
    all_of_them = "started,started,started,started"
    exits = f"{all_of_them} NONE {all_of_them} 0,0,0,0"
    done = supervise(shell, "ACTIVE", exits=exits, SETUP_TIMEOUT="0")
    assert done.returncode == 0 and done.verbs == ["delete"], done.stdout


def test_a_delete_that_failed_is_tried_again_soon(shell):
    shell.says(broken="resources?delete")
    queue = "ACTIVE" + 6 * " SUSPENDED" + " NONE ACTIVE"
    done = supervise(shell, queue, exits="NONE 0,0,0,0")
    assert done.returncode == 0, done.stdout
    assert done.verbs == ["delete", "delete", "create", "delete"]


def test_a_tpu_found_dead_gets_the_code_of_today(shell):
    done = supervise(shell, "SUSPENDED SUSPENDED NONE ACTIVE", exits="NONE 0,0,0,0")
    assert done.returncode == 0, done.stdout
    assert done.verbs == ["delete", "create", "delete"]
    assert (shell.fake / "bkt/runs/t/code.tar.gz").exists()


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
    shell.says(nodes="CREATING STOPPED")
    done = shell("wait_ready", POLL="0.01", MODE="vm")
    assert done.returncode == 1 and "(STOPPED). Delete it" in done.stdout
    shell.says(queue="WAITING_FOR_RESOURCES SUSPENDED")
    done = shell("wait_ready", POLL="0.01")
    assert done.returncode == 1 and "(SUSPENDED). Delete it" in done.stdout
    shell.says(queue="WAITING_FOR_RESOURCES")
    assert shell("wait_ready", POLL="0.01", TIMEOUT="0").returncode == 124
