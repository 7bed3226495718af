"""lm-evaluation-harness: our adapter against its own `hf` model on one checkpoint."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from alanything_jax import evaluate, hub
from alanything_jax.data.byte_tokenizer import CHATML, byte_tokenizer
from alanything_jax.evaluation import harness, harness_calls
from alanything_jax.hub.tiny import random_bundle, text_config
from alanything_jax.pipelines.harness import Harness

POSITIONS = 96
TASKS = ("choices", "answers", "perplexity")


def printable(bundle):
    """Norms away from 1; what is no printable ASCII gets a logit of 0, so it loses."""
    keys = iter(jax.random.split(jax.random.key(5), 99))
    params = jax.tree.map(
        lambda x: x * (1 + 0.3 * jax.random.normal(next(keys), x.shape)), bundle.params
    )
    names = bundle.tokenizer.convert_ids_to_tokens(
        list(range(bundle.model.config.vocab_size))
    )
    kept = [n is not None and len(n) == 1 and "!" <= n <= "~" for n in names]
    kernel = params["heads"]["text"]["kernel"] * np.array(kept, np.float32)
    return dataclasses.replace(
        bundle, params=params | {"heads": {"text": {"kernel": kernel}}}
    )


def with_begin():
    """A tokenizer that puts a token before every text, as Llama's do."""
    from tokenizers import processors

    begin = "<|endoftext|>"
    tokenizer = byte_tokenizer("{{ bos_token }}" + CHATML)
    tokenizer.add_special_tokens({"bos_token": begin})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with `model`, and `tasks` whose right answers are partly its own."""
    pytest.importorskip("lm_eval", reason="lm_eval is not here: pip install lm_eval")
    from lm_eval.models.huggingface import HFLM

    root = tmp_path_factory.mktemp("harness")
    tokenizer = with_begin()
    config = text_config("llama", tokenizer, 320, (64, 2, 4, 2), "float32")
    config |= {"tie_word_embeddings": False, "max_position_embeddings": POSITIONS}
    config |= {"architectures": ["LlamaForCausalLM"]}
    hub.save(
        printable(random_bundle(config, tokenizer, "tiny", 0, "float32")),
        root / "model",
    )
    hf = HFLM(str(root / "model"), device="cpu", batch_size=4)
    questions = [
        "Is ice cold?",
        "What is 2 + 3? ",
        "Name a prime.",
        " ".join(map(str, range(50))),
    ]
    said = greedy(hf, questions)
    rows = {
        # The second's context ends in a space, which lm_eval moves to the choices.
        "choices": [
            {
                "q": q,
                "options": [" no", f"{s[:4]}", " of course", f"{s[:1]}!"],
                "right": n,
            }
            for n, (q, s) in enumerate(zip(questions, said, strict=True))
        ],
        "answers": [
            {"q": q, "a": s.split(s[7])[0] if n % 2 else "no", "end": s[7]}
            for n, (q, s) in enumerate(zip(questions, said, strict=True))
        ],
        # Longer than the model's positions: several windows.
        "perplexity": [{"text": "A kite is red. " * n} for n in (1, 5, 20)],
    }
    how = {
        "choices": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{q}}",
            "doc_to_choice": "options",
            "doc_to_target": "right",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "answers": {
            "output_type": "generate_until",
            "doc_to_text": "{{q}}",
            "doc_to_target": "a",
            "generation_kwargs": {
                "until": [said[1][7], said[3][7]],
                "max_gen_toks": 20,
            },
            "metric_list": [{"metric": "exact_match"}],
        },
        "perplexity": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}],
        },
    }
    (root / "tasks").mkdir()
    for name in TASKS:
        data = root / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(data)},
                "cache_dir": str(root / "cache"),
            },
            "test_split": "test",
        }
        # JSON is YAML.
        (root / "tasks" / f"{name}.yaml").write_text(json.dumps(task | how[name]))
    return root, hf


def greedy(hf, questions):
    """What transformers says, 20 tokens."""
    import torch

    out = []
    for question in questions:
        ids = torch.tensor([hf.tok_encode(question)[-(POSITIONS - 20) :]])
        # Left to guess, it would mask the first token, which is its pad token too.
        mask = torch.ones_like(ids)
        new = hf.model.generate(
            ids, attention_mask=mask, max_new_tokens=20, do_sample=False
        )
        out.append(hf.tok_decode(new[0, ids.shape[1] :].tolist()))
    return out


@pytest.fixture(scope="module")
def ours(folder):
    return harness.lm_eval_model(hub.load(folder[0] / "model"), batch_size=3)


def run(folder, model, **more):
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    return lm_eval.simple_evaluate(
        model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, **more
    )


@pytest.mark.parametrize("chat", [False, True])
def test_each_sample_is_as_of_their_own_model(folder, ours, chat):
    root, hf = folder
    theirs, mine = (run(root, model, apply_chat_template=chat) for model in (hf, ours))
    flags, apart = set(), 0.0
    for name in TASKS:
        pairs = zip(theirs["samples"][name], mine["samples"][name], strict=True)
        for a, b in pairs:
            assert a["arguments"] == b["arguments"]
            if name == "answers":
                assert a["resps"] == b["resps"]
                continue
            for (x,), (y,) in zip(a["resps"], b["resps"], strict=True):
                (x, *best), (y, *also) = (
                    [*v] if name == "choices" else [v] for v in (x, y)
                )
                assert best == also
                flags |= set(best)
                # Their sums of hundreds of log-probs are float32.
                apart = max(apart, abs(x - y) / max(1, abs(x) / 100))
    assert apart < 1e-4 and (chat or flags == {False, True})
    for name in TASKS:
        for metric, value in theirs["results"][name].items():
            if isinstance(value, float):
                got = mine["results"][name][metric]
                assert got == pytest.approx(value, rel=1e-5, nan_ok=True)
    if not chat:
        assert 0 < mine["results"]["answers"]["exact_match,none"] < 1
    print(f"log-likelihoods differ by {apart:.1e} at most")


def test_what_a_template_begins_with_is_not_put_twice(folder, ours):
    history = [{"role": "user", "content": "Hello"}]
    text = ours.apply_chat_template(history)
    assert text == folder[1].apply_chat_template(history)
    for some in (text, "Hello", ""):
        ids = ours.tok_encode(some)
        assert ids == folder[1].tok_encode(some)
        assert ids.count(ours.prefix_token_id) == 1


def test_answers_that_are_drawn(folder, ours):
    from lm_eval.api.instance import Instance

    how = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8}
    asks = [
        Instance("generate_until", {}, ("Name a prime.", how | more), n)
        for n, more in enumerate(({}, {"until": "\n", "do_sample": False}, {}))
    ]
    said = ours.generate_until(asks, disable_tqdm=True)
    assert said[0] != said[2] and said == ours.generate_until(asks, disable_tqdm=True)
    other = harness.lm_eval_model(hub.load(folder[0] / "model"), seed=1)
    again = other.generate_until(asks, disable_tqdm=True)
    assert again[1] == said[1] and again[0] != said[0]


def test_a_special_token_may_end_an_answer(folder, monkeypatch):
    seen = {}
    bundle = hub.load(folder[0] / "model")
    how = harness_calls.asked({"until": ["", "<|im_start|>"], "max_gen_toks": 8})
    monkeypatch.setattr(
        harness_calls, "generate_tokens", lambda *_, **given: seen.update(given) or []
    )
    harness_calls.continuations(bundle, [[1]], how)
    encode = bundle.tokenizer.encode
    assert (
        seen["stop"](np.array(encode("ab<|im_start|>c", add_special_tokens=False))) == 3
    )
    assert seen["stop"](np.array(encode("abc"))) is None


@pytest.mark.parametrize("context", [[5], [1, 2, 3], [7, 8]])
def test_of_all_tokens_one_is_the_likeliest(folder, context):
    bundle = hub.load(folder[0] / "model")
    inputs = bundle.model.inputs(input_ids=np.array([context]))
    logits = np.asarray(bundle.model.logits(bundle.params, inputs))[0, -1]
    # More than fit beside one prompt.
    pairs = [(context, [n]) for n in range(len(logits))]
    logps, best = zip(*harness_calls.loglikelihoods(bundle, pairs), strict=True)
    assert np.flatnonzero(best).tolist() == [logits.argmax()]
    assert np.exp(logps).sum() == pytest.approx(1, abs=1e-5)


def test_contexts_are_computed_once(ours, monkeypatch):
    seen = []
    lay_out = harness_calls.packing.lay_out
    monkeypatch.setattr(
        harness_calls.packing, "lay_out", lambda g, *a: seen.append(g) or lay_out(g, *a)
    )
    pairs = [([1, 2, 3], [n]) for n in range(9)] + [([4], [5, 6])]
    got = ours._loglikelihood_tokens([(None, *p) for p in pairs], disable_tqdm=True)
    assert len(got) == 10 and [len(groups) for groups in seen] == [2]
    assert sum(best for _, best in got[:9]) <= 1


def test_the_recipe_writes_results(folder, tmp_path, capsys):
    root, _ = folder
    recipe = Harness(
        str(root / "model"),
        ("choices",),
        include_path=str(root / "tasks"),
        limit=2,
        batch_size=4,
    )
    report = evaluate(recipe, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == report
    assert report["n-samples"]["choices"]["effective"] == 2
    assert len(json.loads((tmp_path / "samples.json").read_text())["choices"]) == 2
    assert "|choices|" in capsys.readouterr().out


def test_what_is_asked_of_generation():
    read = harness_calls.asked({"until": "\n", "max_gen_toks": 5, "top_p": 0})
    assert read.until == ("\n",) and read.max_new_tokens == 5
    assert read.sampling.temperature == 0 and read.sampling.top_p == 1
    read = harness_calls.asked({"do_sample": True, "top_p": 0.9, "num_beams": 1})
    assert (read.sampling.temperature, read.sampling.top_p) == (1, 0.9)
    cold = harness_calls.asked(
        {"do_sample": False, "temperature": 0.7, "max_tokens": 3}
    )
    assert cold.sampling.temperature == 0 and cold.max_new_tokens == 3
    with pytest.raises(ValueError, match="no beams"):
        harness_calls.asked({"num_beams": 4})


@pytest.mark.parametrize("pair", [([], [1]), ([1], []), ([1], [2] * (POSITIONS + 1))])
def test_a_pair_that_cannot_be_read(ours, pair):
    with pytest.raises(ValueError, match="request 0: a context of"):
        ours._loglikelihood_tokens([(None, *pair)])


def test_no_room_for_a_prompt(ours):
    with pytest.raises(ValueError, match="leave no room"):
        harness_calls.continuations(
            hub.load(ours.tokenizer_name.replace("__", "/")),
            [[1]],
            harness_calls.asked({}),
        )
