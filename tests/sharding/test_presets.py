"""Every sharding preset gives the losses and gradients of one device, to 1e-5."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from alanything_jax import experiment as recipes
from alanything_jax.algorithms.critique import Critique
from alanything_jax.algorithms.dpo import DPO
from alanything_jax.algorithms.reward import Reward
from alanything_jax.algorithms.sft import SFT
from alanything_jax.models import decoder
from alanything_jax.models.config import MoE
from alanything_jax.models.params import flatten
from alanything_jax.sharding import mesh as meshes
from alanything_jax.sharding import rules
from alanything_jax.training import step
from tests import toys
from tests.training.test_loop import gradients, moved

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = {
    "fsdp": ("replica=2", "fsdp=4"),
    "fsdp_tensor": ("replica=2", "fsdp=2", "tensor=2"),
    "sequence": ("fsdp=4", "sequence=2"),
    "expert": ("replica=2", "fsdp=2", "expert=2"),
}
ALGORITHMS = {
    "sft": SFT(),
    "dpo": DPO(),
    "reward": Reward(),
    "critique": Critique(per_token=True),
}
DATA = {"text": "dpo_smollm2", "any": "reward_playground"}
# Every row and column once; `make test-all` has the others.
FAST = {
    ("fsdp", "dpo", "any", "dense"),
    ("fsdp_tensor", "critique", "any", "blockwise"),
    ("sequence", "sft", "text", "flash"),
    ("sequence", "reward", "any", "dense"),
    ("expert", "dpo", "text", "blockwise"),
}
CELLS = [
    pytest.param(
        *cell, marks=() if cell in FAST else pytest.mark.slow, id="-".join(cell)
    )
    for cell in sorted(
        {
            (preset, algorithm, kind, ("dense", "blockwise", "flash")[n % 3])
            for p, preset in enumerate(PRESETS)
            for n, algorithm in enumerate(ALGORITHMS, p)
            for kind in DATA
        }
        | FAST
    )
]


def recipe(algorithm, kind, backend, mesh=(), preset="fsdp", experts=False):
    tiny = recipes.tiny(recipes.load(CONFIGS / f"{DATA[kind]}.py"))
    change = dataclasses.replace
    compute = change(
        tiny.compute,
        row_tokens=128,
        rows_per_microbatch=8,
        attention=backend,
        block=32,
        mesh=mesh,
        rules=preset,
    )
    critiques = algorithm == "critique" and kind == "any"
    view = "critiques" if critiques else "answers"
    words = "playground" if kind == "any" else "llf"
    data = change(tiny.data, view=view, templates=words, heldout_groups=0)
    if critiques:
        data = change(data, path="playground:attempts/96/1")
    model = change(tiny.model, compute_dtype="float32")
    if experts:
        codecs = ("playground",) if kind == "any" else ()
        model = change(model, path="tiny:qwen3_moe", codecs=codecs)
        if codecs:
            # Its tokenizer has bytes, where the playground's has words.
            compute = change(compute, row_tokens=640)
            data = change(data, max_group_tokens=640)
    return change(
        tiny,
        model=model,
        data=data,
        adapter=None,
        algorithm=ALGORITHMS[algorithm],
        compute=compute,
    )


@pytest.mark.parametrize("preset, algorithm, kind, backend", CELLS)
def test_one_device_equals_eight(preset, algorithm, kind, backend, tmp_path):
    experts = preset == "expert"
    one = gradients(
        recipe(algorithm, kind, backend, experts=experts), tmp_path, change=moved
    )
    many = gradients(
        recipe(algorithm, kind, backend, PRESETS[preset], preset, experts),
        tmp_path,
        change=moved,
    )
    placed = [a.sharding for a in many[2].trainable.values()]
    assert len(placed[0].device_set) == 8
    assert any(not sharding.is_fully_replicated for sharding in placed)
    assert one[1].keys() == many[1].keys()
    for name in one[1]:
        assert abs(one[1][name] - many[1][name]) < 1e-5 * max(1, abs(one[1][name])), (
            name
        )
    for path in one[0]:
        np.testing.assert_allclose(one[0][path], many[0][path], atol=1e-5)


def test_experts_that_cannot_be_dealt_out():
    config = dataclasses.replace(toys.CONFIG, moe=MoE(3, 2, 8))
    params = toys.parameters(config)
    (batch,), _ = toys.pack(toys.groups(np.random.default_rng(0), 2), rows=2)
    with jax.set_mesh(meshes.make(("expert=2",))):
        with pytest.raises(ValueError, match="3 experts cannot .* 2 devices .* expert"):
            decoder.hidden(params, config, batch, rules=rules.EXPERT)


def test_rows_cut_along_their_length_are_never_gathered():
    """Of hidden states only prompts' ends cross the cut: no [B, T, D] is gathered."""
    program = toys.program(SFT())
    compute = dataclasses.replace(program.compute, rules="sequence", attention="dense")
    program = dataclasses.replace(program, compute=compute)
    (batch,), _ = toys.pack(
        toys.groups(np.random.default_rng(0), 5), rows=2, row_tokens=96
    )
    params = {f"policy/{p}": x for p, x in flatten(toys.parameters()).items()}

    def logps(params, batch):
        return step.run_role(program, "policy", params, batch).logps

    expected = jax.jit(logps)(params, batch)
    mesh = meshes.make(("fsdp=2", "sequence=2"))
    with jax.set_mesh(mesh):
        compiled = jax.jit(logps).lower(params, batch).compile()
        np.testing.assert_allclose(compiled(params, batch), expected, atol=1e-5)
        grads = jax.jit(jax.grad(lambda p: logps(p, batch).mean()))(params)
    want = jax.grad(lambda p: logps(p, batch).mean())(params)
    for path, grad in want.items():
        np.testing.assert_allclose(grads[path], grad, atol=1e-5)
    made = [line for line in compiled.as_text().splitlines() if "all-gather" in line]
    width = toys.CONFIG.width
    whole = rf"f32\[(1|2),96,{width}\]"
    assert not [line for line in made if re.search(whole, line)]
    # Too many crossings for what is exchanged stop a run, rather than be wrong.
    order = np.random.default_rng(1).permutation(96)
    mixed = shuffled(batch, order)
    with jax.set_mesh(mesh):
        assert np.isnan(np.asarray(jax.jit(logps)(params, mixed))).any()


def shuffled(batch, order):
    """The same rows with their tokens in another order."""
    place, source = np.argsort(order), np.asarray(batch.source)[:, order]
    names = "tokens group branch index position response".split()
    return batch.replace(
        **{name: getattr(batch, name)[..., order] for name in names},
        source=np.where(source >= 0, place[source], -1),
    )


def test_heads_and_rows_that_do_not_divide_name_the_axes(tmp_path):
    cut = recipe("sft", "text", "dense", ("sequence=4",), "sequence")
    with pytest.raises(ValueError, match="2 key heads .* 4 devices .* tensor.sequence"):
        gradients(cut, tmp_path)


def test_a_mesh_axis_is_used_once_and_divides():
    mesh = meshes.make(("fsdp=4", "tensor=2"))
    with pytest.raises(ValueError, match="uses one mesh axis twice"):
        rules.partition(("heads", "mlp"), rules.FSDP_TENSOR)
    with pytest.raises(ValueError, match="'heads' has 3 entries.*mesh axis tensor"):
        rules.named(mesh, (8, 3), ("embed", "heads"), rules.FSDP_TENSOR)
    with pytest.raises(ValueError, match="rows_per_microbatch=3.*4 devices.*fsdp"):
        meshes.rows(mesh, rules.FSDP, 3)
    assert meshes.rows(mesh, rules.FSDP, 0) == 4
    assert jax.device_count() == 8
