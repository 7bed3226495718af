"""Rollouts by an engine in a process of its own: vLLM or SGLang, over HTTP.

Weights go there as a Hugging Face directory, named by the policy's version; every answer
is checked to come from that version. What the servers must be started with, and which of
their routes are used, is in docs/engines.md.

Log-probs are the server's. Those of vLLM (`--logprobs-mode processed_logprobs`) and SGLang
equal the trainer's definition, at full precision, while top-k, top-p and min-p are off;
vLLM renormalises over what those leave, SGLang does not, and both compute in the dtype
they serve in. The online loop therefore weighs each token by a truncated importance ratio.
Penalties are off unless `Sampling` asks for them, whatever generation_config.json says.
Prompts are token ids: text only, and nothing keeps to the grammar of codes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import http.client
import json
import logging
import os
import shutil
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from alanything_jax.generation.decode import Completion
from alanything_jax.generation.sampler import Sampling
from alanything_jax.hub.bundle import Bundle
from alanything_jax.hub.save import MANIFEST, save
from alanything_jax.rewards import wire

MAX_REPLY_BYTES = 256 << 20
# Sent always, since servers take what is left out from generation_config.json.
NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
# What an answer of another form raises where it is read.
MISFITS = (LookupError, TypeError, ValueError, AttributeError)
LOG = logging.getLogger(__name__)


class EngineError(RuntimeError):
    """The engine did not do what it was asked; the classes below say in which way."""


class EngineDown(EngineError):
    """No connection, HTTP 429 or 5xx, at the first try and at every further one."""


class EngineStalled(EngineError):
    """No whole answer within the time limit; not tried again, the engine may be busy."""


class EngineRefused(EngineError):
    """Another HTTP status, or a load that failed: asking again would not help."""


class BadAnswer(EngineError):
    """An answer that is no completion of the prompt by tokens of the vocabulary."""


class StalePolicy(EngineError):
    """The engine serves another version of the policy than the one asked for."""


@dataclasses.dataclass(frozen=True)
class External:
    """A server that continues prompts for the trainer.

    Attributes:
      url: `http://host:port`, with or without `/v1`.
      export_dir: where weights are handed over; the server sees it under the same path.
      style: whose routes it has. "vllm": OpenAI's `/v1/completions` (vLLM, vLLM-TPU);
        "sglang": `/generate` (SGLang, SGLang-JAX), since what those answer to
        `/v1/completions` may lack token ids.
      reload: "request" tells the server to load; "restart" waits until whoever runs it
        has started it on `export_dir/<version>` (SGLang-JAX has no other way).
      model: the name that the server knows the model by; not used by "sglang".
      api_key_env: NAME of the environment variable with the key; "" = no key. The key is
        read when asking, and never stored, logged or quoted.
      timeout_seconds: for one request. load_seconds: for loading one version.
      retries: further tries where the engine is down, the n-th after `backoff_seconds`
        times 2^(n-1).
      concurrency: requests under way at once.
    """

    url: str
    export_dir: str
    style: Literal["vllm", "sglang"] = "vllm"
    reload: Literal["request", "restart"] = "request"
    model: str = "policy"
    api_key_env: str = ""
    timeout_seconds: float = 600.0
    load_seconds: float = 600.0
    retries: int = 3
    backoff_seconds: float = 1.0
    concurrency: int = 64

    def __post_init__(self):
        known = {"style": ("vllm", "sglang"), "reload": ("request", "restart")}
        for name, allowed in known.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name}={value!r}: one of {', '.join(allowed)}.")


def push(engine: External, bundle: Bundle, version: int) -> Path:
    """Hand weights to the engine; when this returns, it serves them.

    They are written to `export_dir/<version>` (staged, then renamed). Directories of other
    versions are removed then, but for the version before.

    Raises:
      ValueError: the model writes codes by a grammar, which no such server keeps to.
      EngineError: its classes; StalePolicy where the engine serves something else.
    """
    if bundle.model.config.grammar is not None:
        raise ValueError(
            f"{bundle.source} writes codes of media, and an external engine knows no "
            "grammar for them: generate in this process."
        )
    root = Path(engine.export_dir).absolute()
    folder = root / str(version)
    if version in _versions(root):
        shutil.rmtree(folder)  # A run that was resumed writes it again.
    save(bundle, folder, notes={"policy version": version})
    if engine.reload == "request":
        _load(engine, folder, version)
        _check(version, _served(engine))
    else:
        _await(engine, version)
    found = _versions(root)
    before = max((v for v in found if v < version), default=version)
    for other in found - {version, before}:
        shutil.rmtree(root / str(other))
    return folder


def _versions(root):
    """The versions that `push` wrote there; what else lies there is left alone."""
    names = [p.parent.name for p in root.glob(f"*/{MANIFEST}")]
    return {int(name) for name in names if name.isdecimal()}


def _load(engine, folder, version):
    def tell(path, **body):
        return _request(engine, path, body, engine.load_seconds)

    if engine.style == "sglang":
        wanted = {"model_path": str(folder), "weight_version": str(version)}
        tell("/update_weights_from_disk", **wanted)  # HTTP 400 where it did not load
        return
    # Until all is loaded it must not pass for either version.
    tell("/update_weight_version", new_version=f"loading {version}")
    weights = {"weights_path": str(folder)}
    tell("/collective_rpc", method="reload_weights", kwargs=weights)
    tell("/reset_prefix_cache")
    tell("/update_weight_version", new_version=str(version))


def _await(engine, version):
    """Return when a restarted engine serves the version."""
    until = time.monotonic() + engine.load_seconds
    while True:
        try:
            served = _served(engine)
        except (EngineDown, EngineStalled) as error:
            served = f"nothing ({error})"
        if served == str(version) or time.monotonic() > until:
            return _check(version, served)
        time.sleep(engine.backoff_seconds)


def _served(engine):
    """The version that the engine says it serves."""
    path = "/get_model_info"
    if engine.style == "vllm":
        path = "/weight_info" if engine.reload == "request" else "/v1/models"
    raw = _request(engine, path, None, engine.timeout_seconds)
    try:
        answer = json.loads(raw)
        if engine.reload == "request":
            return str(answer["weight_version"])
        if engine.style == "sglang":
            return Path(answer["model_path"]).name
        return Path({c["id"]: c["root"] for c in answer["data"]}[engine.model]).name
    except MISFITS:
        raise BadAnswer(_told(engine, f"{path} names no version", raw)) from None


def _check(version, served):
    if served != str(version):
        raise StalePolicy(
            f"policy version {version} was asked for, and the engine serves {served}: "
            "push the version, or restart the engine on it."
        )


def complete(
    engine: External,
    prompts: Sequence[np.ndarray],
    *,
    version: int,
    vocab_size: int,
    samples: int = 1,
    max_new_tokens: int = 256,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    eos_ids: Sequence[int] = (),
) -> list[Completion]:
    """`samples` continuations of every prompt, those of the first prompt first.

    Args:
      prompts: 1-D arrays of token ids.
      version: of the policy that must answer.
      vocab_size: of the model; answers with other ids are refused.

    Each request has a seed of its own, from (seed, its number).

    Raises:
      ValueError: `sampling` asks for what no server offers.
      EngineError: its classes; the first failure ends the call.
    """
    settings, eos = _settings(sampling), sorted(map(int, eos_ids))
    _check(version, _served(engine))
    # SGLang would give all `n` of one request the same seed.
    copies, count = (1, samples) if engine.style == "sglang" else (samples, 1)

    def ask(job, prompt):
        draw = int(np.random.SeedSequence([seed, job]).generate_state(1)[0] >> 1)
        path, body = _body(engine, prompt, copies, max_new_tokens, eos, draw, settings)
        raw = _request(engine, path, body, engine.timeout_seconds)
        try:
            rows, served = _rows(engine, json.loads(raw), prompt)
            done = [_completion(*row, eos, max_new_tokens, vocab_size) for row in rows]
            if len(done) != copies:
                raise ValueError(f"{len(done)} continuations for {copies}")
        except MISFITS as fault:
            why = f"no completion of the prompt, {type(fault).__name__} {fault}"
            raise BadAnswer(_told(engine, why, raw)) from None
        _check(version, served or _served(engine))
        return done

    jobs = [[int(t) for t in prompt] for prompt in prompts for _ in range(count)]
    with concurrent.futures.ThreadPoolExecutor(engine.concurrency) as pool:
        tasks = [pool.submit(ask, *job) for job in enumerate(jobs)]
        try:
            return [row for task in tasks for row in task.result()]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _settings(sampling):
    asked, plain = map(dataclasses.asdict, (sampling, type(sampling)()))
    if odd := {n: v for n, v in asked.items() if n not in NEUTRAL and v != plain[n]}:
        raise ValueError(f"{odd}: no setting of an external engine; leave it out.")
    known = {name: asked.get(name, value) for name, value in NEUTRAL.items()}
    return known | {"top_k": asked["top_k"] or -1}


def _body(engine, prompt, copies, limit, eos, seed, settings):
    """Route and request of one prompt."""
    if engine.style == "sglang":
        # There `ignore_eos` would switch `stop_token_ids` off as well.
        params = {"max_new_tokens": limit, "stop_token_ids": eos, "sampling_seed": seed}
        params |= {"ignore_eos": not eos, "n": copies, **settings}
        asked = {"input_ids": prompt, "return_logprob": True}
        return "/generate", asked | {"sampling_params": params}
    asked = {"model": engine.model, "prompt": prompt, "n": copies, "max_tokens": limit}
    asked |= {"stop_token_ids": eos, "ignore_eos": True, "seed": seed, "logprobs": 1}
    ids = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    return "/v1/completions", asked | ids | settings


def _rows(engine, answer, prompt):
    """(tokens, log-probs) of every continuation; the version, where the answer says it."""
    if engine.style == "sglang":
        pairs = answer["meta_info"]["output_token_logprobs"]
        told = engine.reload == "request" and answer["meta_info"].get("weight_version")
        return [([p[1] for p in pairs], [p[0] for p in pairs])], told
    rows = []
    for choice in sorted(answer["choices"], key=lambda choice: choice["index"]):
        said, tokens = choice["logprobs"], choice.get("token_ids")
        if tokens is None:
            named = [token.removeprefix("token_id:") for token in said["tokens"]]
            if not all(map(str.isdecimal, named)):
                raise ValueError("texts in the place of token ids")
            tokens = list(map(int, named))
        if choice.get("prompt_token_ids") not in (prompt, None):
            raise ValueError("another prompt was continued")
        rows.append((tokens, said["token_logprobs"]))
    return rows, None


def _completion(tokens, logps, eos, limit, vocab_size):
    """One continuation. Raises ValueError: it cannot be trained on."""
    if len(tokens) != len(logps):
        raise ValueError(f"{len(tokens)} tokens with {len(logps)} log-probs")
    if not all(type(token) is int and 0 <= token < vocab_size for token in tokens):
        raise ValueError(f"tokens outside the vocabulary of {vocab_size}")
    # A little above 0 is rounding.
    if not all(isinstance(p, int | float) and -np.inf < p < 1e-3 for p in logps):
        raise ValueError("log-probs that are none")
    ends = [n for n, token in enumerate(tokens, 1) if token in eos]
    if not tokens or (ends or [limit])[0] != len(tokens):
        why = f"neither end with the first of eos_ids={eos} nor are {limit}"
        raise ValueError(f"{len(tokens)} tokens, which {why}")
    arrays = np.array(tokens, np.int32), np.array(logps, np.float32)
    return Completion(*arrays, finished=bool(ends))


def _request(engine, path, body, seconds):
    """The bytes of an answer with a good status; tried again while the engine is down."""
    key, data = _key(engine), None if body is None else json.dumps(body).encode()
    for left in reversed(range(engine.retries + 1)):
        try:
            status, raw = _exchange(engine.url, key, path, data, seconds)
            if status < 300:
                return raw
            failure = _told(engine, f"{path}: HTTP {status}", raw)
            if status != 429 and status < 500:
                hint = wire.HOPELESS[status] if status in (401, 403, 404) else "refused"
                raise EngineRefused(f"{hint}: {failure}")
        except TimeoutError:
            why = f"no answer to {path} in {seconds:g} s"
            raise EngineStalled(_told(engine, why)) from None
        except (OSError, http.client.HTTPException) as error:
            failure = _told(engine, f"{path}: {type(error).__name__}", str(error))
        if left:
            LOG.warning("%s; tries left: %d", failure, left)
            time.sleep(engine.backoff_seconds * 2 ** (engine.retries - left))
    raise EngineDown(f"given up after {engine.retries + 1} tries: {failure}")


def _key(engine):
    """The key of the engine, "" for none; its address is looked at, too.

    Raises wire.EndpointError: the variable is not set, or address or key cannot be sent.
    """
    key = os.environ.get(engine.api_key_env, "").strip() if engine.api_key_env else ""
    if engine.api_key_env and not key:
        unset = f"the environment variable {engine.api_key_env} is not set"
        raise wire.EndpointError(f"{unset}: put the engine's key there.")
    wire.opener(engine.url, key)
    return key


def _exchange(url, key, path, data, seconds):
    """(status, body) of one request; no proxy is asked and no redirect followed.

    Raises TimeoutError, OSError or HTTPException.
    """
    parsed = urllib.parse.urlsplit(url)
    secure = parsed.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    link = kind(parsed.hostname, parsed.port, timeout=seconds)
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    path = parsed.path.rstrip("/").removesuffix("/v1") + path
    until, pieces, size = time.monotonic() + seconds, [], 0
    try:
        link.request("GET" if data is None else "POST", path, data, headers)
        reply = link.getresponse()
        # Each read has the whole time limit, so a drip of bytes needs one of its own.
        while piece := reply.read1(1 << 20):
            pieces.append(piece)
            size += len(piece)
            if time.monotonic() > until:
                raise TimeoutError
            if size > MAX_REPLY_BYTES:
                raise http.client.HTTPException(f"more than {MAX_REPLY_BYTES} bytes")
        if reply.length:
            raise http.client.IncompleteRead(b"", reply.length)
        return reply.status, b"".join(pieces)
    finally:
        link.close()


def _told(engine, why, said=b""):
    """A message about the engine, with the first 200 characters of what it said."""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    if engine.api_key_env and (key := os.environ.get(engine.api_key_env, "").strip()):
        text = text.replace(key, "[key]")
    quote = f": {text[:200]!r}" if text else ""
    return f"the engine at {wire.shown(engine.url)}: {why}{quote}"
