"""JobSet, XPK and SkyPilot files, read as YAML; and the flags, by the real tools."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from alanything_jax.cli import recipe
from tests.tpu_scripts.conftest import ROOT, shown
from tests.tpu_scripts.test_dry_run import GOLDEN

HARD = ["alanything", "train", "x.py", "--say", 'a "quoted" \\ & $word @NAME']


def jobset(shell, **env):
    done = shell("jobset", *HARD, IMAGE="gcr.io/i:1", **env)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("# Rendered"))
    manifest = yaml.safe_load("\n".join(lines[start:-1]))
    (job,) = manifest["spec"]["replicatedJobs"]
    return manifest, job, job["template"]["spec"]["template"]["spec"]


def test_jobset(shell):
    manifest, job, pod = jobset(
        shell, SLICES="2", SPOT="1", QUEUE="q", MAX_RESTARTS="7"
    )
    assert (manifest["apiVersion"], manifest["kind"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
    )
    assert manifest["metadata"]["name"] == "t"
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "q"
    topology = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    assert manifest["metadata"]["annotations"] == {
        topology: "cloud.google.com/gke-nodepool"
    }
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 7
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (2, 4, 4)
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "NotIn"
    assert rule["onExitCodes"]["values"] == [42, *range(128, 256)]
    assert spec["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["hostNetwork"] and pod["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["name"] == rule["onExitCodes"]["containerName"]
    assert container["args"] == HARD and container["command"][-1] == "--here"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert env == {"NAME": "t", "ACCELERATOR": "v6e-16", "SLICES": "2", "RESTARTS": "0"}
    assert container["volumeMounts"][0]["mountPath"] == "/dev/shm"
    assert pod["volumes"][0]["emptyDir"] == {"medium": "Memory"}
    assert "google.com/tpu" in [toleration["key"] for toleration in pod["tolerations"]]


def test_pods_have_your_compiler_flags_and_a_lasting_cache(shell):
    flags = '--a="x" --b'
    _, _, pod = jobset(shell, LIBTPU_INIT_ARGS=flags, BUCKET="gs://bkt/r")
    env = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    assert env["LIBTPU_INIT_ARGS"] == flags and env["RESTARTS"] == "0"
    cache = "gs://bkt/r/jax_cache/0.10.2-v6e-16"
    assert env["JAX_COMPILATION_CACHE_DIR"] == cache


@pytest.mark.parametrize(
    "accelerator, more, label, topology, hosts, chips",
    [
        ("v5litepod-1", {}, "tpu-v5-lite-podslice", "1x1", 1, 1),
        ("v6e-8", {}, "tpu-v6e-slice", "2x4", 2, 4),
        ("v6e-8", {"CHIPS_PER_HOST": "8"}, "tpu-v6e-slice", "2x4", 1, 8),
        ("v4-8", {}, "tpu-v4-podslice", "2x2x1", 1, 4),
        ("v5p-12288", {}, "tpu-v5p-slice", "16x16x24", 1536, 4),
        ("tpu7x-128", {}, "tpu7x", "4x4x4", 16, 4),
    ],
)
def test_jobset_by_accelerator(shell, accelerator, more, label, topology, hosts, chips):
    manifest, job, pod = jobset(shell, ACCELERATOR=accelerator, **more)
    assert manifest["metadata"]["labels"] == {"app": "alanything"}
    assert list(pod["nodeSelector"].values()) == [label, topology]
    assert job["template"]["spec"]["completions"] == hosts
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips


def test_every_accelerator_has_whole_hosts():
    """chips = hosts x chips of a host, and half the TensorCores."""
    probe = """. tpu_scripts/common.sh
    for f in "v4 $TORUS" "v5p $TORUS $LARGE" "tpu7x $TORUS" \\
      "v5litepod $GRID" "v6e $GRID"; do
      for s in ${f#* }; do tpu_facts "${f%% *}-${s%:*}"
      echo "${f%% *} ${s%:*} $CHIPS $HOSTS $CHIPS_PER_HOST"; done; done"""
    done = subprocess.run(
        ["bash", "-c", probe], cwd=ROOT, text=True, capture_output=True
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 48, done
    for family, size, *numbers in rows:
        chips, hosts, per_host = map(int, numbers)
        assert chips == int(size) // (1 if family in ("v5litepod", "v6e") else 2)
        assert chips == hosts * per_host and per_host in (1, 4, 8)


def test_the_image_has_what_it_copies():
    text = (ROOT / "tpu_scripts/Dockerfile").read_text()
    copied = [
        line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")
    ]
    assert all((ROOT / name).exists() for names in copied for name in names)
    assert "." not in sum(copied, [])  # all of the folder might hold secrets


def test_sky_task():
    task = yaml.safe_load((ROOT / "tpu_scripts/sky_task.yaml").read_text())
    assert task["resources"]["accelerators"] == "tpu-" + task["envs"]["ACCELERATOR"]
    assert task["resources"]["accelerator_args"] == {
        "runtime_version": "v2-alpha-tpuv6e"
    }
    assert "num_nodes" not in task and "--here $COMMAND" in task["run"]


def test_commands_to_copy_run_on_several_chips_and_have_their_data():
    """In the places that no test of the site reads."""
    scripts = ROOT / "tpu_scripts"
    task = yaml.safe_load((scripts / "sky_task.yaml").read_text())
    launch = (scripts / "launch.sh").read_text().replace(" \\\n#", "").splitlines()
    [launched] = [line for line in launch if "HF_SECRET=hf-token bash" in line]
    for line in (task["envs"]["COMMAND"], launched):
        train, *rest = line[line.index("train") :].split()
        made = recipe.parse(train, rest).experiment
        sizes = [axis.split("=")[1] for axis in made.compute.mesh]
        assert "-1" in sizes and made.compute.rows_per_microbatch == 0
        assert ":" in made.data.path  # no placeholder
    readme = (scripts / "README.md").read_text().replace("\\\n", "")
    llama = [line for line in readme.splitlines() if "train configs/dpo_llama" in line]
    assert len(llama) == 2
    for line in [launched, *llama]:
        assert "HF_SECRET=hf-token" in line and "--data.path gs://" in line


def test_xpk_takes_our_flags(shell):
    beside = Path(sys.executable).with_name("xpk")
    xpk = os.environ.get("XPK") or (
        str(beside) if beside.exists() else shutil.which("xpk")
    )
    if not xpk:
        assert importlib.util.find_spec("xpk") is None
        pytest.skip(
            "no xpk: pip install xpk in an environment of its own, XPK=its path"
        )
    (shell.fake / "bin/xpk").unlink()
    (shell.fake / "bin/xpk").symlink_to(xpk)
    made = shell.fake / "made.yaml"
    flags = f"--dry-run --skip-validation --quiet --output-manifest-file={made}"
    env = {"CLUSTER": "c", "IMAGE": "gcr.io/p/i:1", "XPK_FLAGS": flags, "SLICES": "2"}
    done = shell("xpk_workload", "alanything", "train", "x.py", timeout=120, **env)
    assert done.returncode == 0, done.stdout
    theirs = yaml.safe_load(made.read_text())
    ours, our_job, our_pod = jobset(shell, SLICES="2")
    (job,) = theirs["spec"]["replicatedJobs"]
    spec, pod = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (2, 4, 4)
    assert pod["nodeSelector"].items() >= our_pod["nodeSelector"].items()
    assert (
        pod["terminationGracePeriodSeconds"] == our_pod["terminationGracePeriodSeconds"]
    )
    values = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    our_values = our_job["template"]["spec"]["podFailurePolicy"]["rules"][0]
    assert set(values) >= set(our_values["onExitCodes"]["values"])
    assert "launch.sh --here alanything train x.py" in json.dumps(pod["containers"])


@pytest.mark.slow
def test_gcloud_knows_our_flags(shell):
    """The real gcloud, without account and network, stops at unknown flags."""
    gcloud = shutil.which("gcloud")
    if not gcloud:
        pytest.skip("no gcloud: nothing checks the flags' names")
    commands = {}
    for script, args, env, _ in GOLDEN.values():
        for command in shown(shell(script, *args, DRY_RUN="1", **env).stdout):
            if command[0] == "gcloud":
                shape = re.sub("=[^ ]*", "", " ".join(command))
                exists = [re.sub("/.*/tmp[.]\\w+$", __file__, word) for word in command]
                commands[shape] = [gcloud, *exists[1:]]
    sealed = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(shell.fake / "home"),
        "CLOUDSDK_CONFIG": str(shell.fake / "gcloud"),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_CORE_PROJECT": "p",  # on a worker the metadata server has it
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    unknown = [gcloud, *"compute tpus tpu-vm list --zone=z --no-such-flag".split()]
    for command in [*commands.values(), unknown]:
        done = subprocess.run(command, env=sealed, text=True, capture_output=True)
        known = "unrecognized arguments" not in done.stderr
        assert done.returncode and known == (command is not unknown), (
            command,
            done.stderr,
        )
        assert not known or "active account" in done.stderr, (command, done.stderr)
