"""Rollouts by another process's engine: equal to ours, or an error that says why not."""

import dataclasses
import json
import logging
import socket

import jax
import numpy as np
import pytest

from alanything_jax.generation import external
from alanything_jax.generation.decode import generate_tokens
from alanything_jax.generation.external import (
    BadAnswer,
    EngineDown,
    EngineRefused,
    EngineStalled,
    External,
    StalePolicy,
    complete,
    push,
)
from alanything_jax.generation.sampler import Sampling
from alanything_jax.hub.source import playground_bundle, tiny_bundle
from alanything_jax.rewards.wire import EndpointError
from tests.generation.fake_engine import FakeEngine, restart_on

KEY = "sk-very-secret-0123456789"
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(3, 90, size).astype(np.int32) for size in (5, 9, 3)]
ROUTES = {"vllm": "/v1/completions", "sglang": "/generate"}


@pytest.fixture(scope="module")
def bundles():
    """The policy before a step, and after it."""
    before = tiny_bundle("llama")
    moved = jax.tree.map(lambda x: x * 1.5, before.params)
    return before, dataclasses.replace(before, params=moved)


@pytest.fixture
def fake(bundles):
    engine = FakeEngine(bundles[0])
    yield engine
    engine.close()


def config(fake, tmp_path, **fields):
    fields = {"retries": 2, "backoff_seconds": 0.01, "timeout_seconds": 60.0} | fields
    return External(fake.url, str(tmp_path / "policy"), **fields)


def asked(engine, version=1, prompts=PROMPTS, vocab_size=320, **options):
    options = {"max_new_tokens": 6, "sampling": Sampling(0.0)} | options
    return complete(engine, prompts, version=version, vocab_size=vocab_size, **options)


def ours(bundle, prompts, **options):
    options = {"max_new_tokens": 6, "sampling": Sampling(0.0)} | options
    return generate_tokens(bundle.params, bundle.model.config, prompts, **options)


@pytest.fixture
def served(fake, tmp_path):
    """style, options -> an engine that says it serves version 1 (the weights before)."""

    def start(style="vllm", **fields):
        fake.version = "1"
        return config(fake, tmp_path, style=style, **fields)

    return start


@pytest.mark.parametrize(
    ("style", "ids"), [("vllm", "ids"), ("vllm", "names"), ("sglang", "ids")]
)
def test_greedy_rollouts_equal_ours(style, ids, fake, bundles, tmp_path):
    before, after = bundles
    fake.ids, engine = ids, config(fake, tmp_path, style=style)
    folder = push(engine, after, 7)
    assert folder == tmp_path / "policy" / "7" and (folder / "config.json").exists()
    twice = [prompt for prompt in PROMPTS for _ in range(2)]
    free = ours(after, twice)
    stop = int(free[0].tokens[2])
    for eos in ((), (stop, 1)):
        done = asked(engine, 7, samples=2, eos_ids=eos)
        for mine, theirs in zip(ours(after, twice, eos_ids=eos), done, strict=True):
            assert theirs.tokens.tolist() == mine.tokens.tolist()
            assert theirs.finished == mine.finished
            np.testing.assert_allclose(theirs.logps, mine.logps, atol=1e-5)
            assert theirs.tokens.dtype == np.int32 and theirs.logps.dtype == np.float32
        assert done[0].finished == bool(eos)
    old = ours(before, twice)
    gap = max(abs(a.logps[0] - b.logps[0]) for a, b in zip(old, free, strict=True))
    assert gap > 1e-2  # the weights that were pushed are the ones that answered


@pytest.mark.parametrize("style", ROUTES)
def test_samples_differ_and_a_seed_repeats_them(style, served):
    engine = served(style)
    prompts, options = [PROMPTS[0]] * 2, {"samples": 2, "sampling": Sampling(1.0)}
    runs = [asked(engine, prompts=prompts, seed=n, **options) for n in (3, 3, 4)]
    first, again, other = [[tuple(c.tokens) for c in done] for done in runs]
    assert first == again and len({*first, *other}) == 8


def test_samples_of_one_request_keep_their_order(fake, served, bundles):
    options = {"sampling": Sampling(0.7, top_k=50)}
    done = asked(served(), prompts=PROMPTS[:1], samples=3, **options)
    (body,) = fake.bodies(ROUTES["vllm"])
    rows = ours(bundles[0], [PROMPTS[0]] * 3, seed=body["seed"], **options)
    for mine, theirs in zip(rows, done, strict=True):
        assert theirs.tokens.tolist() == mine.tokens.tolist()
        np.testing.assert_allclose(theirs.logps, mine.logps, atol=1e-5)


@pytest.mark.parametrize(
    ("style", "eos", "wanted"),
    [
        ("vllm", [2], {"n": 4, "ignore_eos": True, "stop_token_ids": [2]}),
        ("sglang", [2], {"n": 1, "ignore_eos": False, "stop_token_ids": [2]}),
        ("sglang", [], {"ignore_eos": True, "stop_token_ids": []}),
    ],
)
def test_nothing_is_left_to_the_servers_defaults(style, eos, wanted, fake, served):
    asked(served(style), prompts=PROMPTS[:1], samples=4, eos_ids=eos)
    for body in fake.bodies(ROUTES[style]):
        body = body.get("sampling_params", body)
        neutral = external.NEUTRAL | {"temperature": 0.0}
        assert body | neutral | wanted == body
    told = external._settings(Sampling(0.7, top_p=0.9, top_k=5))
    assert told | {"temperature": 0.7, "top_p": 0.9, "top_k": 5} == told

    @dataclasses.dataclass(frozen=True)
    class Guided(Sampling):
        guidance: float = 1.0

    assert external._settings(Guided(0.7)) == external._settings(Sampling(0.7))
    with pytest.raises(ValueError, match="'guidance': 3.0.*no setting of an external"):
        asked(served(style), sampling=Guided(guidance=3.0))


@pytest.mark.parametrize("style", ROUTES)
def test_push_keeps_the_version_before_and_nothing_else(style, fake, bundles, tmp_path):
    engine = config(fake, tmp_path, style=style)
    root = tmp_path / "policy"
    (root / "3").mkdir(parents=True)  # Somebody else's, by its name only.
    for version in (4, 5, 6):
        push(engine, bundles[0], version)
        assert fake.root == str(root / str(version)) and fake.version == str(version)
    assert {p.name for p in root.iterdir()} == {"3", "5", "6"}
    push(engine, bundles[1], 5)  # A run that was resumed, with other weights.
    assert {p.name for p in root.iterdir()} == {"3", "5"}
    asked(engine, 5)
    names = [body["new_version"] for body in fake.bodies("/update_weight_version")]
    assert names[:2] == (["loading 4", "4"] if style == "vllm" else [])


@pytest.mark.parametrize("style", ROUTES)
def test_an_engine_restarted_by_another(style, fake, bundles, tmp_path):
    engine = config(fake, tmp_path, style=style, reload="restart", load_seconds=20.0)
    path = "/v1/models" if style == "vllm" else "/get_model_info"
    fake.plan[path] = [(503, b"starting")]
    restart_on(fake, tmp_path / "policy" / "2", 0.3)
    push(engine, bundles[1], 2)
    asked(engine, 2)
    late = dataclasses.replace(engine, load_seconds=0.1)
    with pytest.raises(StalePolicy, match="version 3 was asked for.* engine serves 2"):
        push(late, bundles[1], 3)


@pytest.mark.parametrize("style", ROUTES)
def test_an_older_policy_is_an_error(style, fake, served, bundles):
    engine = served(style)
    asked(engine)
    with pytest.raises(StalePolicy, match="version 2 was asked for.* engine serves 1"):
        asked(engine, 2)
    fake.deaf = True
    with pytest.raises(StalePolicy, match="version 2 was asked for.* engine serves 1"):
        push(engine, bundles[1], 2)
    # It fell over after the first look, and came back with what it was started on.
    if style == "vllm":
        now = (200, b'{"weight_version": "1"}')
        fake.plan["/weight_info"] = [now, (200, b'{"weight_version": "default"}')]
    else:
        fake.edit = lambda a: a["meta_info"].update(weight_version="default") or a
    with pytest.raises(StalePolicy, match="version 1 was .* engine serves default"):
        asked(engine)
    mute = {"/weight_info": [(200, b"{}")], "/get_model_info": [(200, b"{}")]}
    fake.plan = mute
    with pytest.raises(BadAnswer, match="names no version: '{}'"):
        asked(engine)


def test_a_short_outage_is_waited_for(fake, served, caplog):
    path = ROUTES["vllm"]
    fake.plan[path] = [(500, b"out of memory"), (429, b"busy"), None]
    with caplog.at_level(logging.WARNING):
        done = asked(served(), prompts=PROMPTS[:1])
    assert len(done) == 1 and len(fake.bodies(path)) == 3
    assert "HTTP 500: 'out of memory'; tries left: 2" in caplog.messages[0]
    fake.plan[path] = ["drop", None]
    assert len(asked(served(), prompts=PROMPTS[:1])) == 1


def test_a_long_outage_is_an_error(fake, served, tmp_path):
    path = ROUTES["vllm"]
    fake.plan[path] = [(502, b"gone")]
    with pytest.raises(EngineDown, match="after 3 tries.* HTTP 502: 'gone'"):
        asked(served(), prompts=PROMPTS[:1])
    assert len(fake.bodies(path)) == 3
    fake.plan[path] = ["drop"]
    with pytest.raises(EngineDown, match="RemoteDisconnected"):
        asked(served(), prompts=PROMPTS[:1])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nobody = External(f"http://127.0.0.1:{port}", str(tmp_path), retries=0)
    with pytest.raises(EngineDown, match="after 1 tries.* ConnectionRefusedError"):
        asked(nobody)


@pytest.mark.parametrize("step", ["stall", "drip"])
def test_a_stall_is_an_error_at_once(step, fake, served):
    fake.plan[ROUTES["vllm"]] = [step]
    with pytest.raises(EngineStalled, match="no answer to /v1/completions in 0.4 s"):
        asked(served(timeout_seconds=0.4), prompts=PROMPTS[:1])
    assert len(fake.bodies(ROUTES["vllm"])) == 1


def test_a_refusal_is_not_tried_again(fake, served, bundles):
    fake.plan[ROUTES["vllm"]] = [(400, b"prompt is too long")]
    with pytest.raises(EngineRefused, match="HTTP 400: 'prompt is too long'"):
        asked(served(), prompts=PROMPTS[:1])
    assert len(fake.bodies(ROUTES["vllm"])) == 1
    fake.plan["/collective_rpc"] = [(404, b"Not Found")]
    with pytest.raises(EngineRefused, match="no such address.*/collective_rpc: HTTP"):
        push(served(), bundles[0], 2)
    # What was not loaded passes for no version.
    with pytest.raises(StalePolicy, match="the engine serves loading 2"):
        asked(External(fake.url, "/nowhere"), 2)


def edited(**fields):
    """An edit of the first continuation, whatever the style."""

    def edit(answer):
        first = answer["choices"][-1]
        said = first["logprobs"]
        for name, change in fields.items():
            part = said if name in said else first
            part[name] = change(part[name])
        return answer

    return edit


GARBAGE = {
    "no JSON": (b"<html>" + b"x" * 500, "JSONDecodeError"),
    "a list": (b"[1, 2]", "TypeError"),
    "no choices": (b"{}", "KeyError 'choices'"),
    "no log-probs": (edited(logprobs=lambda _: None), "TypeError"),
    "a log-prob short": (
        edited(token_logprobs=lambda p: p[1:]),
        "6 tokens with 5 log-probs",
    ),
    "NaN": (
        edited(token_logprobs=lambda p: [float("nan"), *p[1:]]),
        "log-probs that are none",
    ),
    "null": (
        edited(token_logprobs=lambda p: [None, *p[1:]]),
        "log-probs that are none",
    ),
    "positive": (
        edited(token_logprobs=lambda p: [0.5, *p[1:]]),
        "log-probs that are none",
    ),
    "beyond the vocabulary": (
        edited(token_ids=lambda t: [320, *t[1:]]),
        "tokens outside the vocabulary of 320",
    ),
    "negative": (edited(token_ids=lambda t: [-1, *t[1:]]), "tokens outside"),
    "fractions": (edited(token_ids=lambda t: [1.5, *t[1:]]), "tokens outside"),
    "texts": (
        edited(token_ids=lambda _: None, tokens=lambda t: ["hi", *t[1:]]),
        "texts in the place of token ids",
    ),
    "another prompt": (
        edited(prompt_token_ids=lambda t: [1, *t]),
        "another prompt was continued",
    ),
    "stopped early": (
        edited(token_ids=lambda t: t[:3], token_logprobs=lambda p: p[:3]),
        r"3 tokens, which neither end with the first of eos_ids=\[\] nor are 6",
    ),
    "nothing": (
        edited(token_ids=lambda _: [], token_logprobs=lambda _: []),
        "0 tokens",
    ),
    "a sample short": (
        lambda answer: answer | {"choices": answer["choices"][1:]},
        "1 continuations for 2",
    ),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_an_error_that_quotes_it(name, fake, served):
    wrong, why = GARBAGE[name]
    if isinstance(wrong, bytes):
        fake.plan[ROUTES["vllm"]] = [(200, wrong)]
    else:
        fake.edit = wrong
    with pytest.raises(
        BadAnswer, match=f"no completion of the prompt, .*{why}"
    ) as said:
        asked(served(), prompts=PROMPTS[:1], samples=2)
    text = str(said.value)
    assert fake.url in text and len(text) < 500
    if isinstance(wrong, bytes):
        assert text.endswith(f": {wrong[:200].decode()!r}")
    assert len(fake.bodies(ROUTES["vllm"])) == 1


def test_text_after_the_end_is_garbage(fake, served, bundles):
    (free,) = ours(bundles[0], PROMPTS[:1])
    eos = [int(free.tokens[1])]
    fake.edit = edited(token_ids=lambda t: [*t, 5], token_logprobs=lambda p: [*p, -1.0])
    with pytest.raises(BadAnswer, match="end with the first of eos_ids"):
        asked(served(), prompts=PROMPTS[:1], eos_ids=eos)


@pytest.mark.parametrize(
    "pairs", [None, [[-1.0, 5, None]], [[-1.0, 320, None]] * 6, [[None, 5, None]] * 6]
)
def test_garbage_of_sglang(pairs, fake, served):
    fake.edit = lambda a: a["meta_info"].update(output_token_logprobs=pairs) or a
    with pytest.raises(BadAnswer, match="no completion of the prompt"):
        asked(served("sglang"), prompts=PROMPTS[:1])


def test_the_key_is_sent_and_never_told(fake, served, monkeypatch, caplog):
    engine = served(api_key_env="ENGINE_KEY", retries=1)
    with pytest.raises(EndpointError, match="ENGINE_KEY is not set"):
        asked(engine)
    monkeypatch.setenv("ENGINE_KEY", KEY)
    fake.key = KEY
    assert len(asked(engine)) == 3
    loud = json.dumps([f"Bearer {KEY}"] * 30).encode()
    told = [repr(engine)]
    for status, kind in ((500, EngineDown), (400, EngineRefused), (200, BadAnswer)):
        fake.plan[ROUTES["vllm"]] = [(status, loud)]
        with pytest.raises(kind, match=r"Bearer \[key\]") as error:
            asked(engine)
        told.append(str(error.value))
    fake.key = "another"
    with pytest.raises(
        EngineRefused, match=r"the key is refused.*bad key Bearer \[key"
    ) as error:
        asked(engine)
    told += [str(error.value), caplog.text]
    assert caplog.text and not [text for text in told if KEY[:8] in text]
    monkeypatch.setenv("ENGINE_KEY", "two\nlines")
    with pytest.raises(EndpointError, match="no header may hold"):
        asked(engine)


def test_what_cannot_be_asked_is_said_before(fake, served, tmp_path):
    with pytest.raises(ValueError, match="knows no grammar"):
        push(served(), playground_bundle("24x1"), 1)
    with pytest.raises(ValueError, match="style='tgi': one of vllm, sglang"):
        served("tgi")
    with pytest.raises(EndpointError, match="cannot be asked"):
        asked(External("ftp://there", str(tmp_path)))
    assert not fake.seen
