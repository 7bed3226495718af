"""What is planned are the very arrays of a run: names, shapes, types, who trains."""

import dataclasses
import math
from pathlib import Path

import jax
import pytest

from alanything_jax import experiment as recipes
from alanything_jax.hub.source import ModelSource
from alanything_jax.models.lora import Lora
from alanything_jax.planning import abstract, flops
from alanything_jax.training import prepare

CONFIGS = Path(__file__).parents[2] / "configs"
LORA = {"adapter": Lora(rank=4), "reference": "adapter_off"}


def recipe(name, more):
    small = recipes.tiny(recipes.load(CONFIGS / f"{name}.py"))
    compute = dataclasses.replace(small.compute, rows_per_microbatch=1)
    return dataclasses.replace(small, compute=compute, **more)


@pytest.mark.parametrize(
    "name, more",
    [
        ("dpo_smollm2", {}),
        ("dpo_smollm2", {"reference": "live"}),
        ("dpo_smollm2", LORA),
        ("reward_smollm2", {"adapter": Lora(rank=4)}),
        ("ppo_playground", {}),
        ("ppo_playground", LORA),
        ("distill_smollm2", {}),
    ],
)
def test_planned_arrays_are_those_of_a_run(name, more):
    experiment = recipe(name, more)
    mesh, table, bundle = prepare.load(experiment, str)
    program = prepare.program_of(experiment, bundle.model.config)
    trainable, frozen, rates, _ = prepare.partition(
        experiment, program, bundle, mesh, table
    )
    made = parts(experiment)
    assert shapes(made.live["parameters"]) == shapes(trainable)
    assert shapes(made.live["frozen"]) == shapes(frozen)
    assert (made.frozen is not None) == (
        experiment.reference != "cached" or "ppo" in name
    )


def test_roles_that_are_read_cost_two_flops_a_parameter_and_token():
    """DPO: 6 for the policy; 2 more where its reference runs beside it."""
    whole = {"adapter": None}
    cached, live = (
        flops.of_step(parts(recipe("dpo_smollm2", whole | more)), 1024)
        for more in ({}, {"reference": "live"})
    )
    assert live[1] == pytest.approx(cached[1] * 8 / 6)
    assert 1.2 < live[0] / cached[0] < 1.4


def test_a_teacher_counts_by_its_own_size():
    """Six of a policy of one layer of 24, two of a teacher of two layers of 48."""
    sources = {"model": ModelSource("playground:24x1")}
    sources["teacher"] = ModelSource("playground:48x2")
    made = parts(recipe("distill_smollm2", sources | {"adapter": None}))
    (policy, teacher), batch = (made.program.config, made.program.teacher), 1024
    own, theirs = (
        sum(math.prod(x.shape) for x in made.live[kind].values())
        for kind in ("parameters", "frozen")
    )
    assert theirs > 2 * own
    seen, _ = flops.visible_share(made.program.compute.row_tokens, 1, 128)
    seen *= made.microbatches
    scores = [4 * c.num_layers * c.num_heads * c.head_width for c in (policy, teacher)]
    expected = 6 * own * batch + 2 * theirs * batch
    expected += (3 * scores[0] + scores[1]) * seen
    assert flops.of_step(made, batch)[1] == pytest.approx(expected)


def parts(experiment):
    return abstract.abstract(experiment, jax.devices()[:1])


def test_an_adapter_costs_what_it_is_and_what_it_passes_through():
    made = parts(recipe("dpo_smollm2", {"adapter": Lora(rank=4)}))
    cfg, tokens = made.program.config, 1024
    own, small = (
        sum(math.prod(x.shape) for x in made.live[kind].values())
        for kind in ("frozen", "parameters")
    )
    seen, _ = flops.visible_share(made.program.compute.row_tokens, 2, 128)
    scores = 12 * cfg.num_layers * cfg.num_heads * cfg.head_width
    expected = (4 * own + 6 * small) * tokens + scores * seen * made.microbatches
    assert flops.of_step(made, tokens)[1] == pytest.approx(expected)


def test_an_input_embedding_is_counted_and_told():
    """6 N by contract; where it is the head as well, its products are real."""
    tied = parts(recipe("dpo_smollm2", {"adapter": None}))
    assert tied.program.config.tied and flops.of_step(tied, 1024)[2] == 0
    free = parts(recipe("ppo_playground", {}))
    table = free.live["parameters"]["policy/embed/text/table"]
    assert flops.of_step(free, 1024)[2] == (12 + 2) * math.prod(table.shape) * 1024


def shapes(flat):
    return {path: (x.shape, str(x.dtype)) for path, x in flat.items()}
