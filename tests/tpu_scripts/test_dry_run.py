"""What each script would do: the commands, and nothing else; and what it refuses."""

import re

import pytest

from tests.tpu_scripts.conftest import HOST, shown

AT = "--project=p --zone=us-east5-a"
QR = "gcloud compute tpus queued-resources"
VM = "gcloud compute tpus tpu-vm"
SSH = f"{QR} ssh t {AT} --node=all --worker=all --batch-size=16"
TRAIN = ["alanything", "train", "x.py"]
HERE = "bash tpu_scripts/launch.sh --here"
STATE = "/var/tmp/alanything/t"
ALIVE = f"pid=$(cat {STATE}/pid 2>/dev/null) && grep -qs launch.sh /proc/$pid/cmdline"

# (script, arguments, variables, the commands)
GOLDEN = {
    "queued": (
        *("create", [], {}),
        [f"{QR} create t --node-id=t {AT} --accelerator-type=v6e-16"
         " --runtime-version=v2-alpha-tpuv6e --async"],
    ),
    "vm": (
        *("create", [], {"MODE": "vm", "SPOT": "1", "ACCELERATOR": "v5litepod-8"}),
        [f"{VM} create t {AT} --accelerator-type=v5litepod-8 --spot"
         " --version=v2-alpha-tpuv5-lite"],
    ),
    "slices": (
        *("create", [], {"SLICES": "2", "SPOT": "1", "ACCELERATOR": "v5p-16"}),
        [f"{QR} create t --node-count=2 --node-prefix=t {AT} --accelerator-type=v5p-16"
         " --spot --runtime-version=v2-alpha-tpuv5 --async"],
    ),
    "flex": (
        *("create", [], {"MODE": "flex", "ACCELERATOR": "v4-8", "VALID_FOR": "6h"}),
        [f"gcloud alpha compute tpus queued-resources create t --node-id=t {AT}"
         " --accelerator-type=v4-8 --provisioning-model=flex-start"
         " --max-run-duration=10h --valid-until-duration=6h"
         " --runtime-version=tpu-ubuntu2204-base --async"],
    ),
    "startup": (
        *("create", TRAIN),
        {"BUCKET": "gs://bkt/r", "CREATE_FLAGS": "--reserved --tags=a"},
        ["gcloud storage rm --quiet gs://bkt/r/t/exit/**",
         f"{QR} create t --node-id=t {AT} --accelerator-type=v6e-16 --reserved --tags=a"
         " --metadata-from-file=startup-script=TMP"
         " --runtime-version=v2-alpha-tpuv6e --async"],
    ),
    "wait": (
        *("wait_ready", [], {"SLICES": "2"}),
        [f"{QR} describe t --format=value(state.state) {AT}",
         f"{VM} describe t-0 --format=value(state) {AT}",
         f"{VM} describe t-1 --format=value(state) {AT}"],
    ),
    "sync": (
        *("sync_code", [], {"BUCKET": "gs://bkt/r"}),  # exported, say
        [f"{QR} scp TMP/code.tar.gz t:code.tar.gz {AT} --node=all --worker=all"
         " --batch-size=16",
         f"{SSH} --command=mkdir -p alanything_jax"
         " && tar -xzf code.tar.gz -C alanything_jax"],
    ),
    "sync to a bucket": (
        *("sync_code", [], {"TO": "bucket", "BUCKET": "gs://bkt/r"}),
        ["gcloud storage cp TMP/code.tar.gz gs://bkt/r/t/code.tar.gz"],
    ),
    "setup": (
        *("setup_vm", [], {"MODE": "vm", "IAP": "1"}),
        [f"gcloud alpha compute tpus tpu-vm ssh t {AT} --worker=all"
         " --tunnel-through-iap --command=JAX_VERSION=0.10.2"
         " bash alanything_jax/tpu_scripts/setup_vm.sh --here"],
    ),
    "launch": (
        *("launch", [*TRAIN, "--run-dir", "a b"], {"HF_SECRET": "hf", "HF_TOKEN": "x"}),
        [f"{SSH} --command=cd alanything_jax && env NAME=t ACCELERATOR=v6e-16"
         " SLICES=1 HF_SECRET=hf JAX_VERSION=0.10.2 bash tpu_scripts/launch.sh"
         " --detach alanything train x.py --run-dir 'a b'"],
    ),
    "stop": (
        *("launch", [], {"STOP": "1"}),
        [f"{SSH} --command=cd {STATE} 2>/dev/null && {{ touch stopped 2>/dev/null ||"
         f" sudo touch stopped; }}; if {ALIVE}; then kill -TERM $pid 2>/dev/null ||"
         " sudo kill -TERM $pid; else echo $(hostname): not running; fi"],
    ),
    "launch, there": (
        *("launch", ["--here", *TRAIN]),
        {"BUCKET": "gs://bkt/r", "HF_SECRET": "hf"},
        ["gcloud secrets versions access latest --secret=hf",
         "gcloud storage cp TMP/report gs://bkt/r/t/exit/HOST",
         "alanything train x.py",
         "gcloud storage cp TMP/log gs://bkt/r/t/logs/HOST",
         "gcloud storage cp TMP/report gs://bkt/r/t/exit/HOST"],
    ),
    "logs": (
        *("logs", [], {"FOLLOW": "1"}),
        [f"{QR} ssh t {AT} --node=all --worker=0 --batch-size=16"
         " --command=tail -n 50 -f /var/tmp/alanything/t/log"],
    ),
    "old logs": (
        *("logs", [], {"FROM": "bucket", "BUCKET": "gs://bkt/r", "WORKER": "3"}),
        ["gcloud storage ls --long gs://bkt/r/t/logs/*",
         "gcloud storage cat gs://bkt/r/t/logs/*-w-3"],
    ),
    "all old logs": (
        *("logs", [], {"FROM": "bucket", "BUCKET": "gs://bkt/r", "WORKER": "all"}),
        ["gcloud storage ls --long gs://bkt/r/t/logs/*",
         "gcloud storage cat gs://bkt/r/t/logs/*"],
    ),
    "status": (
        *("status", [], {"MODE": "vm"}),
        [f"{VM} describe t --format=value(state) {AT}",
         f"{VM} list {AT} --filter=name~/t(-[0-9]+)?$"
         " --format=table(name.basename(),acceleratorType,state,health)",
         f"{VM} ssh t {AT} --worker=all --command=cd {STATE} &&"
         f" echo $(hostname): $(if {ALIVE}; then echo running;"
         " else cat exit_code 2>/dev/null || echo not running; fi) $(tail -n 1 log)"],
    ),
    "delete": (*("delete", [], {}), [f"{QR} delete t {AT} --force --quiet"]),
    "delete a vm": (*("delete", [], {"MODE": "vm"}), [f"{VM} delete t {AT} --quiet"]),
    "xpk": (
        *("xpk_workload", TRAIN, {"CLUSTER": "c", "IMAGE": "i", "ENV_FILE": "my.env"}),
        [f"xpk workload create --cluster=c --workload=t {AT} --tpu-type=v6e-16"
         " --env-file=my.env --num-slices=1 --docker-image=i --command=exec env NAME=t"
         f" ACCELERATOR=v6e-16 SLICES=1 RESTARTS=0 {HERE} alanything train x.py"
         " --max-restarts=50 --termination-grace-period-seconds=120"],
    ),
    "xpk on v7x": (
        *("xpk_workload", ["true"]),
        {"ACCELERATOR": "tpu7x-128", "SPOT": "1", "BUCKET": "gs://bkt/r",
         "LIBTPU_INIT_ARGS": "--a --b"},
        ["xpk workload create --cluster=my-cluster --workload=t"
         f" {AT} --device-type=tpu7x-4x4x4 --spot --num-slices=1"
         " --docker-image=us-docker.pkg.dev/p/r/alanything:1 --command=exec env NAME=t"
         " ACCELERATOR=tpu7x-128 SLICES=1 RESTARTS=0 'LIBTPU_INIT_ARGS=--a --b'"
         " JAX_COMPILATION_CACHE_DIR=gs://bkt/r/jax_cache/0.10.2-tpu7x-128"
         f" {HERE} true"
         " --max-restarts=50 --termination-grace-period-seconds=120"],
    ),
    "jobset": (*("jobset", TRAIN, {"APPLY": "1"}), ["kubectl apply --filename=-"]),
    "mount": (
        *("gcsfuse_mount", [], {"BUCKET": "gs://b1b/in/side", "MOUNT": "/mnt/no-such"}),
        ["mkdir -p /mnt/no-such",
         "gcsfuse --implicit-dirs --only-dir=in/side -o ro --type-cache-max-size-mb=-1"
         " --stat-cache-max-size-mb=-1 --kernel-list-cache-ttl-secs=-1"
         " --metadata-cache-ttl-secs=-1 b1b /mnt/no-such",
         "ls -R /mnt/no-such"],
    ),
    "unmount": (
        *("gcsfuse_mount", [], {"UNMOUNT": "1", "MOUNT": "/mnt/no-such"}),
        ["fusermount -u /mnt/no-such"],
    ),
    "local": (
        *("local_multiprocess", TRAIN, {"PORT": "23456"}),
        [f"ALANYTHING_COORDINATOR=127.0.0.1:23456 ALANYTHING_NUM_PROCESSES=2"
         f" ALANYTHING_PROCESS_ID={i} JAX_PLATFORMS=cpu alanything train x.py"
         for i in range(2)],
    ),
    "setup, there": (
        *("setup_vm", ["--here"], {}),
        ["sh -c echo always > /sys/kernel/mm/transparent_hugepage/enabled",
         "sh -c echo '* - nofile 1048576' > /etc/security/limits.d/90-alanything.conf",
         "uv venv --quiet --python 3.11 .venv",
         "uv pip install --quiet --python .venv/bin/python jax[tpu]==0.10.2 gcsfs -e .",
         '.venv/bin/python -c import jax; print("jax", jax.__version__)'],
    ),
}  # fmt: skip


def words(command):
    """One line a command, with the names of temporary files and of this host hidden."""
    line = re.sub(r"(/\w+)*/tmp\.\w+", "TMP", " ".join(command))
    return re.sub(f"/{re.escape(HOST)}$", "/HOST", line).removeprefix("sudo ")


@pytest.mark.parametrize("case", GOLDEN)
def test_dry_run_shows_the_commands_and_runs_none(shell, case):
    script, args, env, expected = GOLDEN[case]
    done = shell(
        script, *args, DRY_RUN="1", **{"STATE_ROOT": "/var/tmp/alanything"} | env
    )
    assert done.returncode == 0, done.stdout
    assert [words(command) for command in shown(done.stdout)] == expected
    assert shell.calls() == []


def test_supervise_shows_a_whole_life(shell):
    done = shell("supervise", *TRAIN, DRY_RUN="1", SPOT="1")
    verbs = [" ".join(command[1:5]) for command in shown(done.stdout)]
    assert [verb.split()[-1] for verb in verbs if "queued-resources" in verb] == [
        *("describe", "create", "describe", "delete"),
    ]
    assert [verb for verb in verbs if "storage" in verb][-1].startswith("storage cat")
    assert "| command=(alanything train x.py)" in done.stdout  # the startup script
    assert done.returncode == 0 and shell.calls() == []


def test_create_says_what_costs_and_how_to_undo(shell):
    done = shell("create", DRY_RUN="1", SPOT="1", SLICES="2")
    assert "2 x v6e-16 = 32 chips (4x4 each) on 8 hosts, spot" in done.stdout
    undo = "undo: PROJECT=p ZONE=us-east5-a NAME=t MODE=qr bash tpu_scripts/delete.sh"
    assert undo in done.stdout
    assert "--allow=tcp:8482" in done.stdout


# (script, variables, what the message must hold)
REFUSED = [
    ("create", {"ACCELERATOR": "v6e-17"}, "ACCELERATOR='v6e-17' 16 32 64 v4-"),
    ("create", {"ACCELERATOR": "v5e-16"}, "ACCELERATOR=v5litepod-16"),
    ("create", {"ACCELERATOR": "tpu7x-8"}, "GKE only jobset.sh"),
    ("create", {"NAME": "My_Run"}, "NAME='My_Run' a-z NAME=my-run"),
    ("create", {"NAME": "r" * 29}, f"28 NAME={'r' * 28}"),
    ("create", {"ZONE": "us-east5"}, "ZONE='us-east5' letter ZONE=us-east5-a"),
    ("create", {"MODE": "pod"}, "MODE='pod' vm qr flex MODE=qr"),
    ("create", {"MODE": "vm", "SLICES": "2"}, "SLICES=2 queued MODE=qr"),
    ("create", {"MODE": "flex", "SPOT": "1"}, "SPOT=1 SPOT=0"),
    ("create", {"SLICES": "two"}, "SLICES='two' whole SLICES=1"),
    ("create", {"SLICES": "2", "MEGASCALE_NUM_SLICES": "3"}, "'3' SLICES=2 unset"),
    ("launch", {"MEGASCALE_SLICE_ID": "1"}, "MEGASCALE_SLICE_ID='1' unset"),
    ("sync_code", {"TO": "bucket", "BUCKET": "my-bucket"}, "BUCKET='my-bucket' gs://"),
    ("sync_code", {"TO": "bucket", "BUCKET": "gs://bkt/"}, "BUCKET='gs://bkt/' slash"),
    ("sync_code", {"TO": "buckets"}, "TO='buckets' bucket TO=workers"),
    ("supervise", {"MODE": "vm", "BUCKET": "gs://b1b"}, "MODE=vm capacity MODE=qr"),
    ("logs", {"WORKER": "x; rm"}, "WORKER= number WORKER=0"),
    ("logs", {"WORKER": "x", "FROM": "bucket", "BUCKET": "gs://b1b"}, "WORKER='x' all"),
    ("create", {"ENV_FILE": "my.env", "BUCKET": "gs://b1b"}, "ENV_FILE HF_SECRET"),
    ("supervise", {"ENV_FILE": "my.env", "BUCKET": "gs://b1b"}, "ENV_FILE HF_SECRET"),
    ("supervise", {"SETUP_TIMEOUT": "1h", "BUCKET": "gs://b1b"}, "'1h' SETUP_TIMEOUT="),
    ("xpk_workload", {"CLUSTER": "c", "IMAGE": "i", "HF_SECRET": "s"}, "ENV_FILE"),
    ("jobset", {"IMAGE": "i", "HF_SECRET": "s"}, "HF_SECRET='s' kubectl secret"),
    ("jobset", {"IMAGE": "i", "ENV_FILE": "e"}, "ENV_FILE='e' kubectl secret"),
    (
        "jobset",
        {"IMAGE": "i", "CHIPS_PER_HOST": "8", "ACCELERATOR": "v6e-4"},
        "CHIPS_PER_HOST='8' 4 divisor unset",
    ),
    ("jobset", {"IMAGE": "i", "CHIPS_PER_HOST": "2"}, "CHIPS_PER_HOST='2' 1, 4"),
    ("delete", {}, "terminal YES=1"),
    (
        "gcsfuse_mount",
        {"BUCKET": "gs://b1b", "MOUNT": "/etc/x"},
        "MOUNT='/etc/x' /mnt/data",
    ),
    ("gcsfuse_mount", {"BUCKET": "gs://b1b", "MOUNT": "/a/../b"}, "MOUNT= absolute"),
    ("local_multiprocess", {"MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_NUM_SLICES unset"),
    ("local_multiprocess", {"N": "0"}, "N='0' 1 N=2"),
]


@pytest.mark.parametrize("script, env, holds", REFUSED)
def test_bad_input_is_refused_with_what_to_change(shell, script, env, holds):
    done = shell(script, "alanything" if script != "create" else "true", **env)
    assert done.returncode == 2 and shell.calls() == [], done.stdout
    lines = [line.split(":")[0].strip() for line in done.stdout.splitlines()]
    assert lines[0] == "error" and lines[-1] == "change", done.stdout
    assert all(word in done.stdout for word in holds.split()), done.stdout


def test_all_missing_variables_at_once(shell):
    done = shell("create", unset=("PROJECT", "ACCELERATOR"))
    assert done.returncode == 2 and shell.calls() == []
    assert "create.sh needs PROJECT ACCELERATOR" in done.stdout
    assert "the Google Cloud project that pays, as PROJECT=my-project" in done.stdout


def test_no_token_on_a_command_line(shell):
    done = shell("launch", "env", "HF_TOKEN=hf_" + "a" * 34, "alanything")
    assert (
        done.returncode == 2
        and "HF_SECRET" in done.stdout
        and "aaaa" not in done.stdout
    )
