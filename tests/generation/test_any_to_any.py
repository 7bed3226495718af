"""An any-to-any model speaks its grammar, with the log-probs that its trainer computes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alanything_jax import hub
from alanything_jax.cli.main import main
from alanything_jax.data import media, packing
from alanything_jax.data.encode import Branch, EncodedGroup
from alanything_jax.generation.decode import generate_tokens
from alanything_jax.generation.generate import encode_prompt, eos_ids, generate
from alanything_jax.generation.sampler import Sampling, sample
from alanything_jax.hub.source import playground_bundle
from alanything_jax.models import decoder, heads
from alanything_jax.playground import tasks
from alanything_jax.schema import Part
from tests import toys

NEW = 72


@pytest.fixture(scope="module")
def bundle():
    return playground_bundle("48x2")


@pytest.fixture(scope="module")
def prompts(bundle):
    """One of every task: text and media in the prompt."""
    return [
        encode_prompt(bundle, example.prompt)[0]
        for example in tasks.prompts("train", len(tasks.TASKS), 0)
    ]


def continued(bundle, prompts, sampling=Sampling(1.0), seed=0):
    return generate_tokens(
        bundle.params,
        bundle.model.config,
        prompts,
        max_new_tokens=NEW,
        sampling=sampling,
        eos_ids=eos_ids(bundle),
        seed=seed,
    )


@pytest.fixture(scope="module")
def done(bundle, prompts):
    return continued(bundle, prompts, seed=1)


def spoken(grammar, prompt, completion):
    """Streams and forced of a row, and how many tokens were kept: a block that the token
    limit cut off is not looked at."""
    row = np.concatenate([prompt, completion.tokens])
    openers = [block.open_id for block in grammar.blocks]
    starts = np.flatnonzero(np.isin(row, openers))
    for size in (len(row), *starts[-1:].tolist()):
        try:
            return *grammar.streams(row[:size]), size - len(prompt)
        except ValueError:
            if size < len(row) or completion.finished:
                raise
    raise AssertionError("unreachable")


def test_what_is_sampled_obeys_the_grammar(bundle, prompts, done):
    grammar, streams = bundle.model.config.grammar, []
    for prompt, completion in zip(prompts, done, strict=True):
        stream, _, kept = spoken(grammar, prompt, completion)
        assert kept > NEW - 40 or completion.finished
        streams.append(stream[len(prompt) :])
    # The random model does open blocks of every kind, so that this tests something.
    assert set(np.concatenate(streams)) >= {0, 1, 3, 4, 5}


def test_log_probs_equal_the_trainers(bundle, prompts, done):
    cfg = bundle.model.config
    items, forced_any = [], 0
    for n, (prompt, completion) in enumerate(zip(prompts, done, strict=True)):
        stream, forced, kept = spoken(cfg.grammar, prompt, completion)
        size = len(prompt)
        forced = forced[size:]
        assert (completion.logps[:kept][forced] == 0).all()
        forced_any += forced.sum()
        branch = Branch(completion.tokens[:kept], ~forced, stream[size:])
        items.append(
            EncodedGroup(str(n), prompt, (branch,), prompt_stream=stream[:size])
        )
    assert forced_any
    batches, planned = toys.pack(items, rows=4, row_tokens=256, numbers=())
    score = jax.jit(
        lambda batch: heads.token_logps(
            bundle.params, cfg, decoder.hidden(bundle.params, cfg, batch), batch
        )
    )
    compared = 0
    for batch, rows in zip(batches, planned, strict=True):
        taken = packing.take(items, rows, np.asarray(score(batch)))
        for (n, _), logps in taken.items():
            ours = done[n].logps[: len(logps)]
            np.testing.assert_allclose(logps, ours, atol=1e-4)
            compared += 1
    assert compared == len(prompts)


def test_a_row_does_not_depend_on_its_neighbours(bundle, prompts, done):
    """Same row number, other neighbours, in a batch of the same size."""
    again = continued(bundle, [prompts[0], *reversed(prompts[1:])], seed=1)
    assert again[0].tokens.tolist() == done[0].tokens.tolist()
    np.testing.assert_array_equal(again[0].logps, done[0].logps)
    assert again[1].tokens.tolist() != done[1].tokens.tolist()


def test_greedy_is_deterministic_and_free_of_the_seed(bundle, prompts):
    one = continued(bundle, prompts, Sampling(0.0), seed=0)
    two = continued(bundle, prompts, Sampling(0.0), seed=9)
    for a, b in zip(one, two, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()


def test_only_what_is_allowed_is_sampled():
    """Row 0 may take ids 0 and 1, row 1 only id 3, however likely the others are."""
    logits = jnp.array([[1.0, 2.0, 50.0, 50.0], [9.0, 9.0, 9.0, -40.0]])
    bounds = jnp.array([0, 3]), jnp.array([2, 4])
    keys = jax.random.split(jax.random.key(0), 2)
    for sampling in (Sampling(0.0), Sampling(1.0), Sampling(2.0, 0.9, 3)):
        tokens, logps = sample(logits, keys, sampling, bounds)
        assert tokens[0] in (0, 1) and tokens[1] == 3
        scale = sampling.temperature or 1.0
        z = np.array([1.0, 2.0]) / scale
        wanted = z[int(tokens[0])] - np.log(np.exp(z).sum())
        np.testing.assert_allclose(logps, [wanted, 0.0], atol=1e-6)


def test_answers_hold_files_that_decode_to_their_codes(bundle):
    example = tasks.prompts("train", 1, 0, ("ti2ti",))[0]
    (answers,) = generate(
        bundle,
        [example.prompt],
        max_new_tokens=NEW,
        sampling=Sampling(1.0),
        num_samples=8,
    )
    seen = 0
    for answer in answers:
        for part in answer.response.messages[0].parts:
            if part.kind == "text":
                continue
            said = answer.tokens.tolist()
            ids = bundle.coder.ids(part).tolist()
            assert any(said[n : n + len(ids)] == ids for n in range(len(said)))
            seen += 1
    assert seen


def test_the_command_writes_text_and_files(bundle, tmp_path, capsys):
    model = hub.save(bundle, tmp_path / "model")
    rows = [
        {"prompt": example.prompt[0].text}
        for example in tasks.prompts("train", 4, 0, ("t2i", "t2a"))
    ]
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["generate", "--model", str(model), "--prompt", str(source)]
    argv += ["--out", str(out), "--temperature", "1", "--num-samples", "2"]
    assert main([*argv, "--max-new-tokens", str(NEW)]) == 0
    shown = capsys.readouterr().out.replace("\n", " ")
    assert f"wrote {out}: 4 rows, media in {tmp_path / 'out_media'}/" in shown
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in written] == [row["prompt"] for row in rows]
    responses = [r for row in written for r in row["responses"]]
    assert len(responses) == 8 and all(r["num_tokens"] > 0 for r in responses)
    assert any(r["text"].strip() for r in responses)
    files = [file for r in responses for file in r["media"]]
    assert files and len({file["file"] for file in files}) == len(files)
    for file in files:
        array, _ = media.load(Part(file["kind"], uri=file["file"]))
        assert array.size and file["file"].endswith(media.SUFFIX[file["kind"]])
