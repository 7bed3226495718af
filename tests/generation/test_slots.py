"""Rows that share prompts, wait for places, end early, or lie on a mesh: same tokens."""

import dataclasses

import jax
import numpy as np
import pytest

from alanything_jax import hub
from alanything_jax.generation import decode, rows
from alanything_jax.generation.decode import generate_tokens
from alanything_jax.generation.sampler import Sampling
from alanything_jax.models import decoder, lora, quant
from alanything_jax.models.config import MoE
from alanything_jax.models.grammar import Block, Grammar
from alanything_jax.models.params import init
from alanything_jax.sharding import mesh as meshes
from alanything_jax.sharding import rules
from tests import toys
from tests.hub import oracles

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(3, 60, n).astype(np.int32) for n in (5, 40, 3, 7, 33, 9, 12)]
BUDGETS = (12, 30, 3, 17, 8, 25, 1)
# Layers that slide and layers that do not; sharp logits, so that few are near each other.
CONFIG = dataclasses.replace(
    toys.CONFIG, sliding_window=6, window_layers=(True, False), local_theta=500.0
)


@pytest.fixture(scope="module")
def params():
    return toys.parameters(CONFIG)


def same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        assert a.finished == b.finished
        np.testing.assert_allclose(a.logps, b.logps, atol=1e-5)


SAMPLINGS = [
    Sampling(0.0),
    Sampling(1.0),
    Sampling(0.8, top_p=0.9, top_k=20, min_p=0.02, repetition_penalty=1.3),
]


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(s, marks=pytest.mark.slow if n else ())
        for n, s in enumerate(SAMPLINGS)
    ],
)
def test_slots_and_samples_change_no_token(params, sampling):
    options = {"max_new_tokens": BUDGETS, "sampling": sampling, "eos_ids": [11, 2]}
    free = generate_tokens(params, CONFIG, PROMPTS, samples=3, **options)
    assert any(done.finished for done in free) or not sampling.temperature
    some = generate_tokens(params, CONFIG, PROMPTS, samples=3, slots=4, **options)
    same(free, some)
    repeated = [prompt for prompt in PROMPTS for _ in range(3)]
    options["max_new_tokens"] = [size for size in BUDGETS for _ in range(3)]
    same(free, generate_tokens(params, CONFIG, repeated, **options))
    if sampling.temperature:
        assert free[3].tokens.tolist() != free[4].tokens.tolist()


@pytest.mark.slow
def test_layers_written_out_or_scanned(params, monkeypatch):
    """The way of other devices, on this one."""
    options = {"max_new_tokens": BUDGETS, "slots": 3, "seed": 4}
    out = generate_tokens(params, CONFIG, PROMPTS, **options)
    monkeypatch.setattr(rows, "unstacks", lambda: False)
    same(out, generate_tokens(params, CONFIG, PROMPTS, **options))


def test_places_that_stay_empty_are_given_up(params):
    """On a CPU, once three in four are."""
    budgets = [4, 3, 30, 5, 2, 6, 18, 4] * 2
    prompts = [PROMPTS[n % 7] for n in range(16)]
    options = {"max_new_tokens": budgets, "seed": 3}
    rows.pick.clear_cache()
    few = generate_tokens(params, CONFIG, prompts, slots=16, **options)
    assert rows.pick._cache_size() == 1
    same(few, generate_tokens(params, CONFIG, prompts, slots=3, **options))
    assert rows.pick._cache_size() == 1


@pytest.mark.slow
def test_few_shapes(params):
    """However many rows come and go, little is compiled."""
    budgets = RNG.integers(1, 60, 40)
    prompts = [RNG.integers(3, 60, n) for n in RNG.integers(1, 60, 40)]
    rows.decode.clear_cache()
    rows.prefill.clear_cache()
    generate_tokens(params, CONFIG, prompts, slots=7, max_new_tokens=budgets)
    sizes = [decode.room(n) for n in range(1, 130)]
    assert rows.decode._cache_size() <= len(set(sizes)) == 6
    # Two widths, and of each 1, 2, 4 or at first 7 prompts.
    assert rows.prefill._cache_size() <= 7


def test_what_is_told_while_it_runs(params):
    heard, done = [], []
    out = generate_tokens(
        params,
        CONFIG,
        PROMPTS[:3],
        slots=2,
        max_new_tokens=(20, 5, 9),
        on_tokens=lambda new: heard.append(new.tolist()),
        on_done=lambda n, completion: done.append((n, completion)),
        stop=lambda row, tokens: 2 if row == 2 and len(tokens) == 9 else None,
    )
    assert [len(new) for new in heard] == [8, 8, 4]
    assert sum(heard, []) == out[0].tokens.tolist()
    assert sorted(n for n, _ in done) == [0, 1, 2]
    assert all(out[n] is completion for n, completion in done)
    # Row 2 was stopped at nine tokens, and two are kept.
    assert [len(c.tokens) for c in out] == [20, 5, 2]
    assert [c.finished for c in out] == [False, False, True]


def test_blocks_of_codes_in_slots(params):
    grammar = Grammar(50, (Block("image", open_id=7, start=50, size=11, length=5),))
    cfg = dataclasses.replace(CONFIG, grammar=grammar)
    prompts = [*PROMPTS, np.array([4, 7], np.int32)]
    options = {"max_new_tokens": 20, "sampling": Sampling(1.5), "seed": 2}
    out = generate_tokens(params, cfg, prompts, samples=2, **options)
    assert all(grammar.block("image").fits(c.tokens[:5]) == 5 for c in out[-2:])
    same(out, generate_tokens(params, cfg, prompts, samples=2, slots=3, **options))


def test_adapter(params):
    specs = lora.lora_specs(decoder.param_specs(CONFIG), lora.Lora(2))
    adapter = init(specs, jax.random.key(5))
    # Its b is zeros: nothing would be seen.
    adapter = jax.tree.map(lambda x: x + 0.3, adapter)
    options = {"max_new_tokens": 9, "sampling": Sampling(0.0)}
    out = generate_tokens(
        params, CONFIG, PROMPTS[:3], lora=adapter, lora_scale=0.5, **options
    )
    merged = lora.merge(params, adapter, 0.5)
    same(out, generate_tokens(merged, CONFIG, PROMPTS[:3], **options))
    plain = generate_tokens(params, CONFIG, PROMPTS[:3], **options)
    assert out[0].tokens.tolist() != plain[0].tokens.tolist()


@pytest.mark.parametrize(
    "moe", [None, pytest.param(MoE(4, 2, 16), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("written_out", [True, False])
@pytest.mark.slow
def test_adapter_on_integers(monkeypatch, moe, written_out):
    """Tokens of a QLoRA base are those of its floats, experts' too."""
    monkeypatch.setattr(rows, "unstacks", lambda: written_out)
    cfg = dataclasses.replace(CONFIG, moe=moe)
    specs = decoder.param_specs(cfg)
    base = quant.quantize(toys.parameters(cfg), specs, "int8")
    adapter = init(lora.lora_specs(specs, lora.Lora(2)), jax.random.key(5))
    adapter = jax.tree.map(lambda x: x + 0.3, adapter)
    options = {"max_new_tokens": BUDGETS[:3], "sampling": Sampling(0.0), "slots": 2}
    out, want, plain = (
        generate_tokens(p, cfg, PROMPTS[:3], lora=lora_, lora_scale=0.5, **options)
        for p, lora_ in (
            (base, adapter),
            (quant.dequantize(base), adapter),
            (base, None),
        )
    )
    same(out, want)
    assert out[1].tokens.tolist() != plain[1].tokens.tolist()


@pytest.mark.parametrize(
    "preset, sizes, written_out",
    [
        pytest.param("fsdp", ("fsdp=8",), True, marks=pytest.mark.slow),
        ("fsdp_tensor", ("fsdp=4", "tensor=2"), False),
    ],
)
def test_live_parameters_of_a_mesh(params, monkeypatch, preset, sizes, written_out):
    monkeypatch.setattr(rows, "unstacks", lambda: written_out)
    cfg = dataclasses.replace(CONFIG, vocab_size=64)
    params = toys.parameters(cfg)
    options = {"max_new_tokens": 12, "samples": 2, "slots": 8, "eos_ids": [11]}
    want = generate_tokens(params, cfg, PROMPTS[:5], **options)
    mesh = meshes.make(sizes)
    specs = decoder.param_specs(cfg)
    placed = jax.tree.map(
        lambda spec, x: jax.device_put(
            x, rules.named(mesh, x.shape, spec.axes, rules.preset(preset))
        ),
        specs,
        params,
    )
    spread = [x.sharding for x in jax.tree.leaves(placed)]
    assert any(not s.is_fully_replicated for s in spread)
    with jax.set_mesh(mesh):
        same(want, generate_tokens(placed, cfg, PROMPTS[:5], **options))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = oracles.make("llama")
    model.save_pretrained(folder)
    return model, hub.load(folder)


def test_greedy_equals_transformers_batched(theirs):
    """Unequal prompts, an end of text, a penalty; ours in slots, theirs padded."""
    import torch

    model, bundle = theirs
    prompts = [p % bundle.model.config.vocab_size for p in PROMPTS]
    width = max(map(len, prompts))
    ids = np.stack([np.pad(p, (width - len(p), 0)) for p in prompts]).astype(np.int64)
    mask = np.stack([np.arange(width) >= width - len(p) for p in prompts])
    for penalty in (1.0, 1.4):
        free = generate_tokens(
            bundle.params,
            bundle.model.config,
            prompts,
            max_new_tokens=20,
            sampling=Sampling(0.0, repetition_penalty=penalty),
        )
        eos = int(free[1].tokens[6])
        ours = generate_tokens(
            bundle.params,
            bundle.model.config,
            prompts,
            max_new_tokens=20,
            sampling=Sampling(0.0, repetition_penalty=penalty),
            slots=3,
            eos_ids=[eos],
        )
        ended = 0
        for n, done in enumerate(ours):
            # With a penalty alone: theirs counts padding as said.
            rows_ = slice(n, n + 1) if penalty != 1 else slice(None)
            skip = width - len(prompts[n]) if penalty != 1 else 0
            if penalty != 1 or n == 0:
                out = model.generate(
                    torch.tensor(ids[rows_, skip:]),
                    attention_mask=torch.tensor(mask[rows_, skip:].astype(np.int64)),
                    max_new_tokens=20,
                    do_sample=False,
                    eos_token_id=eos,
                    pad_token_id=0,
                    repetition_penalty=penalty,
                )
            said = out[0 if penalty != 1 else n, width - skip :].tolist()
            said = said[: said.index(eos) + 1] if eos in said else said
            assert said == done.tokens.tolist()
            assert done.finished == (eos in said)
            ended += done.finished
        assert 0 < ended < len(ours)


def test_what_cannot_be():
    cfg, prompts = CONFIG, PROMPTS[:2]
    for options, said in (
        ({"slots": 0}, "slots=0 .* at least 1"),
        ({"samples": 0}, "samples=0"),
        ({"max_new_tokens": (3, 9000)}, "40 tokens and 9000 new ones exceed"),
    ):
        with pytest.raises(ValueError, match=said):
            generate_tokens({}, cfg, prompts, **options)
    with pytest.raises(ValueError, match="has no token"):
        generate_tokens({}, cfg, [np.zeros(0, np.int32)])
