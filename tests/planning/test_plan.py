"""`alanything plan`: the real step by the TPU compiler, small enough for a test."""

import dataclasses
import itertools
import json
import types
from pathlib import Path

import pytest

from alanything_jax import experiment as recipes
from alanything_jax.cli import recipe as commands
from alanything_jax.cli.main import main
from alanything_jax.planning import abstract, fit, page, plan, topology

pytest.importorskip("libtpu", reason="libtpu is not here: pip install 'jax[tpu]'")
ROOT = Path(__file__).parents[2]
PRESETS = ROOT / "tpu_scripts" / "presets"


def recipe(name="dpo_llama3_8b", **compute):
    """A recipe of the repository with a tiny model, sharded as it is."""
    whole = recipes.load(ROOT / "configs" / f"{name}.py")
    small = recipes.tiny(whole)
    kept = dict(attention="flash", block=128, head_chunk=256, rows_per_microbatch=0)
    compute = {**kept, "mesh": whole.compute.mesh, **compute}
    return dataclasses.replace(
        small, compute=dataclasses.replace(small.compute, **compute)
    )


def test_a_sharded_step_is_compiled_and_accounted_for():
    found = plan.plan(recipe(), "v5e:4x4", say=str).to_json()
    assert found["fits"] and found["chips"] == 16
    assert 0 < found["hbm_gib_per_chip"] < 0.2 < found["hbm_limit_gib"]
    kinds = found["hbm_gib_by_kind"]
    # AdamW holds two numbers where there is one parameter.
    assert kinds["optimizer"] == pytest.approx(2 * kinds["parameters"], rel=0.01)
    assert found["seconds_by_component"]["kernels"] > 0
    over = {(row["kind"], row["devices"]) for row in found["collectives"]}
    assert any(kind == "all-gather" and ways == 16 for kind, ways in over)
    assert found["estimated_step_s"] >= found["compute_bound_step_s"] > 0
    assert 0 < found["estimated_mfu"] <= found["compute_bound_mfu"] < 1
    shown = page.page(found)
    assert "limit 15.75 GiB" in shown and "<script" not in shown


def test_a_row_of_a_model_with_encoders_is_half_media():
    experiment = recipe("dpo_qwen2_5_vl_3b", mesh=("fsdp=-1",))
    still = dataclasses.replace(experiment.optimizer, rates=("encoders/*=0",))
    experiment = dataclasses.replace(experiment, optimizer=still)
    parts = abstract.abstract(experiment, topology.devices("v5e:2x2")[1])
    batch = parts.accumulate[1][2]
    # Four patches make one of the 128 tokens that are half of a row.
    assert batch.media["vision"]["segment"].shape == (4, 512)
    assert batch.media["vision"]["window"].sharding.spec[0] == ("replica", "fsdp")
    frozen = [path for path in parts.live["frozen"] if "/encoders/" in path]
    assert frozen and not [p for p in parts.live["parameters"] if "/encoders/" in p]


def test_slices_are_joined_along_replica():
    found = plan.plan(recipe(mesh=("replica=2", "fsdp=4")), "v5e:2x2", 2, say=str)
    assert found.chips == 8 and found.fits
    with pytest.raises(ValueError, match="2 slices and replica=1"):
        plan.plan(recipe(mesh=("fsdp=8",)), "v5e:2x2", 2, say=str)


def test_what_does_not_fit_says_what_to_change(tmp_path, capsys):
    big = dataclasses.replace(
        recipe(),
        model=recipes.load(ROOT / "configs/dpo_llama3_8b.py").model,
        compute=dataclasses.replace(
            recipe().compute, mesh=("fsdp=-1",), row_tokens=512, remat="dots"
        ),
    )
    state = {"parameters": 29.9}
    advice = plan.advice(big, state, topology.CHIPS["v5e"])
    assert "use more chips" in advice[0] and any("remat full" in a for a in advice)
    figures = plan.Plan(
        "r", "v5e:1x1", 1, 1, False, {"needed": 40.0}, 15.75, 1.0, advice=advice
    ).to_json()
    assert "DOES NOT FIT" in page.page(figures)
    assert figures["estimated_mfu"] is None


@pytest.mark.parametrize(
    "name, said",
    [
        ("v9:2x2", "no TPU generation of"),
        ("v5p", "has no shape"),
        ("v5p:4x4", "lies in 3 dimensions"),
        ("v5e:3x3", "knows no topology"),
    ],
)
def test_a_topology_that_does_not_exist(name, said):
    with pytest.raises(ValueError, match=said):
        topology.devices(name)


def test_rows_that_do_not_divide_name_the_axes():
    with pytest.raises(ValueError, match="16 devices of mesh axes replica.fsdp"):
        plan.plan(recipe(rows_per_microbatch=3), "v5e:4x4", say=str)
    with pytest.raises(ValueError, match="takes 1 of 16 chips"):
        plan.plan(recipe(mesh=()), "v5e:4x4", say=str)


def test_what_fit_tries_is_what_it_says():
    """Of a recipe whose replica axis takes what is left; each candidate by its options."""
    path = str(ROOT / "configs/dpo_llama3_8b.py")
    whole = recipes.load(path)
    tried = list(fit.candidates(whole))
    assert [" ".join(options) for _, options in tried] == [
        "",
        "--compute.remat full",
        "--compute.remat full --compute.mesh fsdp=-1",
        "--compute.remat full --compute.mesh fsdp=-1 --model.param_dtype bfloat16",
    ]
    rows = dataclasses.replace(whole.compute, rows_per_microbatch=12, remat="full")
    tried += list(fit.candidates(dataclasses.replace(whole, compute=rows), 2))[1:]
    assert tried[4][1] == ("--compute.mesh", "replica=2", "fsdp=-1")
    assert tried[5][1][-2:] == ("--compute.rows_per_microbatch", "6")
    assert tried[6][1][3:5] == ("--compute.rows_per_microbatch", "3")
    assert tried[7][1][3:] == (*tried[6][1][3:], "--model.param_dtype", "bfloat16")
    for candidate, options in tried[:4]:
        assert commands.parse("plan", [path, *options]).experiment == candidate


def test_fit_prints_the_options_that_fit(tmp_path, capsys, monkeypatch):
    def planned(experiment, name, slices, say):
        size = 10.0 if experiment.compute.remat == "full" else 20.0
        return plan.Plan("r", name, 1, 16, size < 15, {"batch": size}, 15.75, 1.0)

    monkeypatch.setattr(fit, "plan", planned)
    argv = ["plan", str(ROOT / "configs/dpo_llama3_8b.py"), "--topology", "v5e:4x4"]
    assert main([*argv, "--fit", "--json", str(tmp_path / "p.json")]) == 0
    assert "dpo_llama3_8b.py --compute.remat full\n" in capsys.readouterr().out
    options = json.loads((tmp_path / "p.json").read_text())["options"]
    assert options == ["--compute.remat", "full"]


@pytest.mark.parametrize(
    "message, needed",
    [
        ("Ran out of memory in memory space hbm. Used 31.02G of 15.75G hbm.", 31.02),
        ("HLO temporaries (512.00M) exceeds available HBM (30.75G).", 0.5 + 3.0),
        ("Ran out of memory in memory space smem. Used 1.5M of 1.0M smem.", None),
    ],
)
def test_what_the_compiler_says_is_missing(message, needed):
    assert plan._needed(message, 3.0) == needed


def test_blocks_that_a_tpu_cannot_take_are_named():
    with pytest.raises(ValueError, match="compute.block 64.*--compute.block 512"):
        plan.plan(recipe(block=64), "v5e:4x4", say=str)


def test_a_mesh_axis_that_no_rule_uses_is_refused():
    mesh = ("fsdp=2", "tensor=2")
    with pytest.raises(ValueError, match="tensor=2.*--compute.rules fsdp_tensor or"):
        plan.plan(recipe(mesh=mesh), "v5e:2x2", say=str)
    mesh = ("fsdp=2", "expert=2")
    with pytest.raises(ValueError, match="--compute.rules expert, or leave"):
        plan.plan(recipe(mesh=mesh), "v5e:2x2", say=str)


@pytest.mark.parametrize(
    "name", ["v4:2x2x1", pytest.param("tpu7x:2x2x1", marks=pytest.mark.slow)]
)
def test_generations_that_have_two_cores_a_chip(name):
    """A v4 chip is one device to JAX, a tpu7x two; figures are of a chip."""
    found = plan.plan(recipe(mesh=("fsdp=-1",)), name, say=str).to_json()
    assert found["chips"] == 4 and found["fits"]
    chip = topology.CHIPS[name.partition(":")[0]]
    assert found["hbm_limit_gib"] == chip.cores * chip.hbm_gib > 30
    assert 0 < found["estimated_mfu"] < 1


def lain(sides, slices=1):
    """Devices of a torus, with coordinates, in order."""
    places = itertools.product(range(slices), *map(range, sides))
    return [types.SimpleNamespace(slice_index=s, coords=c) for s, *c in places]


def test_collectives_take_as_long_as_their_links():
    chip = topology.CHIPS["v5p"]
    cube, take = lain((4, 4, 4)), topology.collective_seconds
    # Three dims of rings, two ways each: 540 GB/s.
    seconds = take("all-gather", 64 * 540e9, cube, chip, "v5p:4x4x4")
    assert seconds == pytest.approx(63)
    assert take("all-reduce", 1, cube[:1], chip, "v5p:4x4x4") == 0
    # Half of a ring is a line; so is all of a side where another side is no multiple of 4.
    for group, name in ((cube[:2], "v5p:4x4x4"), (lain((2, 2, 4))[:4], "v5p:2x2x4")):
        ways = len(group)
        seconds = take("all-gather", ways * 90e9, group, chip, name)
        assert seconds == pytest.approx(ways - 1)
    v5e, plane = topology.CHIPS["v5e"], lain((4, 4))
    # 4 chips a side are no ring on v5e: one way each of two dims.
    one = take("reduce-scatter", 90e9, plane, v5e, "v5e:4x4")
    assert one == pytest.approx(15 / 16)
    assert take("all-reduce", 90e9, plane, v5e, "v5e:4x4") == pytest.approx(2 * one)


def test_between_slices_goes_a_devices_share_by_the_slower_network():
    chip, both = topology.CHIPS["v5p"], lain((4, 4, 4), 2)
    take, name = topology.collective_seconds, "v5p:4x4x4"
    # The same chip of each slice: half of the array out, half of the sum back.
    pair = [both[5], both[64 + 5]]
    assert take("all-reduce", 6.25e9, pair, chip, name) == pytest.approx(1.0)
    # All chips: within a slice each gets a 64th of the array, and that goes across.
    whole = take("all-reduce", 540e9, both, chip, name)
    within = 2 * 63 / 64
    assert whole == pytest.approx(within + 540 / 64 / 6.25)
    assert take("collective-permute", 6.25e9, pair, chip, name) == 1.0


def test_topologies_have_the_names_of_the_cloud():
    names = {"v5p:4x4x4": "v5p-128", "v5e:4x4": "v5litepod-16", "v6e:1x1": "v6e-1"}
    assert {n: topology.accelerator(n) for n in names} == names


@pytest.mark.parametrize("generation", sorted(topology.CHIPS))
def test_a_run_gets_the_flags_that_were_planned(generation):
    name = {"tpu7x": "v7x"}.get(generation, generation)
    text = (PRESETS / f"{name}.env").read_text()
    given = [word.strip('"\\') for word in text.split() if word.startswith("--")]
    assert sorted(f"--{f}" for f in topology.CHIPS[generation].flags) == sorted(given)


def test_command_writes_what_the_contract_names(tmp_path, capsys):
    out = tmp_path / "plan.json"
    argv = ["plan", str(ROOT / "configs/sft_smollm2.py"), "--tiny", "--topology"]
    # A tiny recipe has one device; its plan has those of the topology.
    assert main([*argv, "v5e:2x2", "--json", str(out)]) == 0
    named = (
        "hbm_gib_per_chip hbm_limit_gib fits flops_per_chip model_flops_per_chip "
        "estimated_step_s estimated_mfu tokens_per_s_per_chip compile_s"
    )
    assert set(named.split()) <= set(json.loads(out.read_text()))
    assert json.loads(out.read_text())["chips"] == 4
    assert "memory per chip" in capsys.readouterr().out
    assert main(["plan", "--help"]) == 0 and main(["plan"]) == 2


def test_what_an_llf_recipe_trains_is_planned_one_after_another(
    tmp_path, capsys, monkeypatch
):
    seen = []

    def planned(experiment, name, slices):
        seen.append(experiment)
        size = {"critic": 20.0}.get(experiment.name, 1.0)
        fits = size < 15
        return plan.Plan(experiment.name, name, 1, 1, fits, {"batch": size}, 15.75, 1.0)

    monkeypatch.setattr(plan, "plan", planned)
    argv = ["plan", str(ROOT / "configs/llf_playground.py"), "--topology", "v5e:1x1"]
    assert main([*argv, "--json", str(tmp_path / "p.json")]) == 1
    names = ["base", "critic", "align"]
    assert [e.name for e in seen] == names
    assert len({e.model for e in seen}) == 1
    files = {stage: tmp_path / f"p-{stage}.json" for stage in names}
    fits = {
        stage: json.loads(file.read_text())["fits"] for stage, file in files.items()
    }
    assert fits == {"base": True, "critic": False, "align": True}
    figures = json.loads(files["critic"].read_text())
    assert figures["recipe"] == "llf_playground, critic"
    assert capsys.readouterr().out.count("it does not fit") == 1
