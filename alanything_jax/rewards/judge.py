"""Judges: questions in, replies out, each reply under the id of its question.

`Endpoint` asks any server with OpenAI's chat completions interface; `Local` asks a model
in this process. A judge that is down, rate-limits or answers nonsense costs only the
rows concerned: their replies say why. What no retry can mend (a wrong address, a refused
key) raises at once.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from alanything_jax.rewards import wire
from alanything_jax.rewards.wire import EndpointError
from alanything_jax.schema import Message

LONGEST_BACKOFF_SECS = 60.0


@dataclasses.dataclass(frozen=True)
class Question:
    """One conversation that a judge is to answer; `id` is the row it belongs to."""

    id: str
    messages: tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came back: `text`, or None and the `error` that says why."""

    id: str
    text: str | None = None
    error: str | None = None
    cached: bool = False


class Judge(Protocol):
    """Anything that answers questions; one reply for every question, keyed by its id."""

    def __call__(self, questions: Sequence[Question]) -> dict[str, Reply]: ...


@dataclasses.dataclass(frozen=True)
class Local:
    """A judge in this process.

    Attributes:
      answer: conversations -> one text each, in order; None where it cannot read one.
      batch_size: conversations a call of `answer`.
      name: for the replies that say why there is no text.
    """

    answer: Callable[[list[tuple[Message, ...]]], list[str | None]]
    batch_size: int = 16
    name: str = "the judge"

    def __call__(self, questions: Sequence[Question]) -> dict[str, Reply]:
        """Ask batch by batch.

        Raises:
          ValueError: two questions have one id, or `answer` gave another number of texts.
        """
        check_ids(questions)
        replies = {}
        for start in range(0, len(questions), self.batch_size):
            some = questions[start : start + self.batch_size]
            texts = self.answer([question.messages for question in some])
            if len(texts) != len(some):
                count = f"{len(texts)} texts for {len(some)} questions"
                raise ValueError(f"the local judge gave {count}.")
            for question, text in zip(some, texts, strict=True):
                blank = f"{self.name} cannot read the question"
                blank = blank if text is None else "empty answer"
                said = (text,) if text and text.strip() else (None, blank)
                replies[question.id] = Reply(question.id, *said)
        return replies


@dataclasses.dataclass
class _Meter:
    """What an endpoint's threads share: requests made, and whether one ever went well."""

    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    requests: int = 0
    reached: bool = False


@dataclasses.dataclass
class _Call:
    """One call's state: when the endpoint last answered, and whether to stop."""

    alive_secs: float
    stop: bool = False


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A judge behind OpenAI's chat completions interface (vLLM, SGLang, llama.cpp, ...).

    Attributes:
      url: base address, such as `http://localhost:8000/v1`.
      model: the name the server knows it by.
      api_key_env: NAME of the environment variable with the key; "" = no key. The key is
        read when asking, and never stored, logged or cached.
      extra: further fields of the request, such as `{"seed": 0}`.
      timeout_secs: for one request.
      max_tries: failed answers to one question before it is given up; being told to wait
        (429, or 503 with Retry-After) is not counted.
      patience_secs: a question is given up when it waited so long, or when no question
        got an answer for so long.
      concurrency: requests under way at once.
      cache_dir: one JSON file an answered question; asking again makes no request. At a
        temperature above 0, too, equal questions get the equal, cached answer.
      budget_requests: requests this object may make, retries included.
    """

    url: str
    model: str
    api_key_env: str = ""
    temperature: float = 0.0
    max_tokens: int = 1024
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timeout_secs: float = 120.0
    max_tries: int = 5
    backoff_secs: float = 1.0
    patience_secs: float = 3600.0
    concurrency: int = 8
    cache_dir: Path | None = None
    budget_requests: int | None = None
    sleep: Callable[[float], None] = dataclasses.field(default=time.sleep, repr=False)
    clock: Callable[[], float] = dataclasses.field(default=time.monotonic, repr=False)
    _meter: _Meter = dataclasses.field(
        default_factory=_Meter, init=False, repr=False, compare=False
    )

    def __call__(self, questions: Sequence[Question]) -> dict[str, Reply]:
        """Ask all, several at once; cached answers make no request.

        Raises:
          ValueError: two questions have one id.
          EndpointError: wrong address, refused key, or the key's variable is not set.
        """
        check_ids(questions)
        post = wire.opener(self.url, self._key())
        replies, bodies = {}, {}
        for question in questions:
            try:
                body = self._body(question)
            except ValueError as error:
                replies[question.id] = Reply(question.id, error=f"not asked: {error}")
                continue
            if (text := self._cached(body)) is not None:
                replies[question.id] = Reply(question.id, text, cached=True)
            else:
                bodies[question.id] = body
        call = _Call(self.clock())
        with concurrent.futures.ThreadPoolExecutor(max(1, self.concurrency)) as pool:
            ask = functools.partial(pool.submit, self._ask)
            tasks = {ask(body, post, call): id for id, body in bodies.items()}
            try:
                for task in concurrent.futures.as_completed(tasks):
                    text, error = task.result()
                    replies[tasks[task]] = Reply(tasks[task], text, error)
            finally:
                call.stop = True
                pool.shutdown(wait=False, cancel_futures=True)
        return {question.id: replies[question.id] for question in questions}

    def _key(self):
        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise EndpointError(
                f"the environment variable {self.api_key_env} is not set: put the key of "
                f"{self.url} there, or set api_key_env to '' if it needs none."
            )
        return os.environ[self.api_key_env].strip() if self.api_key_env else ""

    def _body(self, question):
        asked = question.messages
        messages = [{"role": m.role, "content": wire.content(m.parts)} for m in asked]
        settings = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        body = {"model": self.model, "messages": messages} | settings | {**self.extra}
        return json.dumps(body, sort_keys=True).encode()

    def _path(self, body):
        digest = hashlib.sha256(self.url.encode() + b"\n" + body).hexdigest()
        return Path(self.cache_dir) / f"{digest}.json"

    def _cached(self, body):
        """The kept answer; None where there is none, or a file that was not finished."""
        if self.cache_dir is None or not (path := self._path(body)).exists():
            return None
        try:
            text = json.loads(path.read_text("utf-8"))["text"]
        except (ValueError, KeyError, TypeError):
            return None
        return text if isinstance(text, str) else None

    def _keep(self, body, text):
        if self.cache_dir is None:
            return
        path = self._path(body)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8"
        ) as aside:
            json.dump({"model": self.model, "text": text}, aside)
        os.replace(aside.name, path)

    def _spend(self):
        with self._meter.lock:
            if self._meter.requests == self.budget_requests:
                return False
            self._meter.requests += 1
            return True

    def _rest(self, secs, call):
        """Wait; False once the endpoint has given nobody an answer for too long."""
        until = self.clock() + secs
        while not call.stop:
            if self.clock() >= call.alive_secs + self.patience_secs:
                return False
            if (left := until - self.clock()) <= 0:
                break
            self.sleep(min(left, 1.0))  # in slices: a stopped call ends soon
        return True

    def _ask(self, body, post, call):
        """(text, error) of one question; tries until an answer, or until it gives up."""
        began, failed, wait, failure = self.clock(), 0, 0.0, "not asked"
        for attempt in itertools.count():
            hopeful = self.clock() + wait <= began + self.patience_secs
            if not hopeful or not self._rest(wait, call):
                patience = f"{self.patience_secs:g} s without an answer"
                return None, f"given up, {patience}: {failure}"
            if call.stop:
                return None, f"given up, the call was stopped: {failure}"
            if not self._spend():
                return None, f"the budget of {self.budget_requests} requests is spent"
            answer = post(body, self.timeout_secs)
            if answer.text is not None:
                self._meter.reached = True
                call.alive_secs = self.clock()
                self._keep(body, answer.text)
                return answer.text, None
            failure = answer.failure
            if answer.hopeless or (answer.unknown_host and not self._meter.reached):
                call.stop = True
                raise EndpointError(f"{wire.shown(self.url)}: {failure}")
            if answer.final:
                return None, failure
            failed += not answer.limited
            if failed >= self.max_tries:
                return None, f"given up after {failed} failed tries: {failure}"
            backoff = self.backoff_secs * 2 ** min(attempt, 10)
            wait = max(min(LONGEST_BACKOFF_SECS, backoff), answer.wait_secs)


def check_ids(questions: Sequence[Question]) -> None:
    """Every id is there once.

    Raises ValueError: names an id that two questions share.
    """
    seen = set()
    for question in questions:
        if question.id in seen:
            raise ValueError(f"two questions have one id, {question.id!r}.")
        seen.add(question.id)
