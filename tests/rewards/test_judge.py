"""Judges against a small server that fails in every way a real one does."""

import base64
import dataclasses
import http.server
import io
import json
import threading
import time

import numpy as np
import pytest

from alanything_jax.data import media
from alanything_jax.rewards import wire
from alanything_jax.rewards.judge import Endpoint, EndpointError, Local, Question
from alanything_jax.schema import Message, Part

KEY = "sk-very-secret-0123456789"


class Server:
    """Answers `answer to <question>`, or what `plan` says: (status, headers, body)s."""

    def __init__(self):
        self.plan, self.seen, self.delay_secs = {}, [], lambda text: 0.0
        lock, outer = threading.Lock(), self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                text = body["messages"][-1]["content"]
                with lock:
                    outer.seen.append((self.path, dict(self.headers), body))
                    steps = outer.plan.get(text if isinstance(text, str) else "", [])
                    step = (
                        steps[0] if len(steps) == 1 else steps.pop(0) if steps else ()
                    )
                status, headers, raw = step or (200, {}, good(f"answer to {text}"))
                time.sleep(outer.delay_secs(text))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                try:
                    self.wfile.write(raw)
                except OSError:
                    return  # the client had no patience

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


def good(text):
    message = {"message": {"content": text}, "finish_reason": "stop"}
    return json.dumps({"choices": [message]}).encode()


BUSY = (429, {"Retry-After": "7"}, b"slow down")
DOWN = (500, {}, b"broken")
FINE = ()


class Clock:
    """Time that passes only while someone sleeps."""

    def __init__(self):
        self.now, self.slept, self.lock = 0.0, 0.0, threading.Lock()

    def __call__(self):
        return self.now

    def sleep(self, secs):
        with self.lock:
            self.now += secs
            self.slept += secs


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def clock():
    return Clock()


def ask(*texts):
    return [
        Question(f"row-{n}", (Message("user", (Part("text", text=t),)),))
        for n, t in enumerate(texts)
    ]


def endpoint(server, clock, **kwargs):
    kwargs = {"timeout_secs": 10.0} | kwargs
    return Endpoint(server.url, "m", sleep=clock.sleep, clock=clock, **kwargs)


def test_rows_are_never_mixed_up(server, clock):
    # The later the question, the sooner the answer.
    server.delay_secs = lambda text: 0.05 - int(text) * 0.001
    questions = ask(*(str(n) for n in range(40)))
    replies = endpoint(server, clock, concurrency=16)(questions)
    assert list(replies) == [question.id for question in questions]
    for n in range(40):
        assert replies[f"row-{n}"].text == f"answer to {n}"
        assert replies[f"row-{n}"].id == f"row-{n}"


def test_request_is_chat_completions_at_temperature_zero(server, clock):
    endpoint(server, clock, extra={"seed": 3})(ask("hi"))
    path, _, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.0,
        "max_tokens": 1024,
        "seed": 3,
    }


def test_waits_as_long_as_it_is_told(server, clock):
    server.plan["a"] = [BUSY, FINE]
    replies = endpoint(server, clock)(ask("a"))
    assert replies["row-0"].text == "answer to a"
    assert clock.slept == 7


def test_retry_after_may_be_a_date_and_nonsense_is_no_wait():
    assert wire._retry_after("Fri, 01 Jan 1999 00:00:00 GMT") == 0
    assert wire._retry_after("soon") is None
    assert wire._retry_after(None) is None


def test_an_hour_of_rate_limits_ends_in_an_error_not_in_lost_rows(server, clock):
    server.plan["a"] = [BUSY]
    judge = endpoint(server, clock, patience_secs=3600, max_tries=2)
    replies = judge(ask("a", "b"))
    assert replies["row-1"].text == "answer to b"
    assert replies["row-0"].text is None and "3600 s" in replies["row-0"].error
    assert "429" in replies["row-0"].error and 3500 < clock.slept <= 3600


def test_a_judge_that_is_down_costs_its_patience_once(server, clock):
    server.plan = {str(n): [BUSY] for n in range(200)}
    replies = endpoint(server, clock, patience_secs=60, concurrency=1)(
        ask(*(str(n) for n in range(200)))
    )
    assert all(reply.error for reply in replies.values())
    assert len(server.seen) < 20 and clock.slept <= 60


def test_a_wait_beyond_patience_costs_its_row_only(server, clock):
    server.plan["a"] = [(503, {"Retry-After": "99999"}, b"")]
    replies = endpoint(server, clock, concurrency=1)(ask("a", "b"))
    assert "503" in replies["row-0"].error and replies["row-1"].text
    assert clock.slept == 0


@pytest.mark.parametrize(
    "step,reason",
    [
        (DOWN, "HTTP 500"),
        ((200, {}, b"<html>"), "not a chat completion"),
        ((200, {}, b'{"choices": []}'), "not a chat completion"),
        ((200, {}, good("  ")), "empty answer"),
        ((200, {}, good(None)), "empty answer"),
    ],
)
def test_failures_are_tried_again_and_then_said(server, clock, step, reason):
    server.plan = {"a": [step], "b": [step, step, FINE]}
    replies = endpoint(server, clock, max_tries=3)(ask("a", "b", "c"))
    assert (
        reason in replies["row-0"].error and "3 failed tries" in replies["row-0"].error
    )
    assert replies["row-1"].text == "answer to b"
    assert replies["row-2"].text == "answer to c"
    assert len(server.seen) == 3 + 3 + 1
    assert clock.slept > 0


def test_a_slow_judge_runs_into_the_timeout(server, clock):
    server.delay_secs = lambda text: 0.5 if text == "slow" else 0.0
    judge = endpoint(server, clock, timeout_secs=0.2, max_tries=1)
    replies = judge(ask("slow", "fast"))
    assert "timed out" in replies["row-0"].error
    assert replies["row-1"].text == "answer to fast"


def test_one_refused_question_is_not_tried_again(server, clock):
    server.plan["a"] = [(400, {}, b"context too long")]
    replies = endpoint(server, clock)(ask("a", "b"))
    assert "context too long" in replies["row-0"].error and replies["row-1"].text
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    "status,said", [(401, "key"), (404, "address"), (307, "redir")]
)
def test_what_cannot_work_raises_at_once(server, clock, status, said):
    server.plan["a"] = [(status, {"Location": "http://127.0.0.1:1/"}, b"no")]
    with pytest.raises(EndpointError, match=said):
        endpoint(server, clock)(ask("a"))
    assert len(server.seen) == 1 and clock.slept == 0


@pytest.mark.parametrize(
    "url",
    ["localhost:8000/v1", "ftp://x/v1", "http://", "http://u:p@x/v1", "http://x:y"],
)
def test_addresses_that_cannot_be_asked(url):
    with pytest.raises(EndpointError) as error:
        Endpoint(url, "m")(ask("a"))
    assert "u:p" not in str(error.value)


def test_refused_connections_are_tried_again(clock):
    closed = Server()
    closed.close()
    replies = endpoint(closed, clock, max_tries=2)(ask("a"))
    assert "2 failed tries: ConnectionRefusedError" in replies["row-0"].error


def test_cache_answers_without_a_request(server, clock, tmp_path):
    judge = endpoint(server, clock, cache_dir=tmp_path)
    first = judge(ask("a", "b"))
    again = judge(ask("a", "b"))
    assert len(server.seen) == 2
    assert {i: r.text for i, r in again.items()} == {
        i: r.text for i, r in first.items()
    }
    assert all(r.cached for r in again.values())
    assert not any(r.cached for r in first.values())
    assert len(list(tmp_path.glob("*.json"))) == 2 and not list(tmp_path.glob("*.tmp"))
    for change in ({"model": "other"}, {"temperature": 0.5}, {"max_tokens": 2}):
        dataclasses.replace(judge, **change)(ask("a"))
    assert len(server.seen) == 5


def test_failures_are_not_cached_and_damaged_files_are_no_answers(
    server, clock, tmp_path
):
    server.plan["a"] = [DOWN, DOWN, FINE]
    judge = endpoint(server, clock, cache_dir=tmp_path, max_tries=2)
    assert judge(ask("a"))["row-0"].error and not list(tmp_path.iterdir())
    assert judge(ask("a"))["row-0"].text
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:-4])
    assert judge(ask("a"))["row-0"] == dataclasses.replace(
        judge(ask("a"))["row-0"], cached=False
    )
    assert len(server.seen) == 4


def test_the_key_is_sent_and_kept_nowhere(server, clock, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.plan = {"b": [(400, {}, f"bad key {KEY}".encode())]}
    judge = endpoint(server, clock, cache_dir=tmp_path, api_key_env="JUDGE_KEY")
    replies = judge(ask("a", "b"))
    assert server.seen[0][1]["Authorization"] == f"Bearer {KEY}"
    assert replies["row-0"].text and "[key]" in replies["row-1"].error
    server.plan = {"c": [(401, {}, f"bad key {KEY}".encode())]}
    with pytest.raises(EndpointError) as error:
        judge(ask("c"))
    shown = [repr(judge), repr(replies), str(error.value)]
    shown += [p.name + p.read_text() for p in tmp_path.rglob("*") if p.is_file()]
    assert len(shown) == 4 and not any(KEY in text for text in shown)


def test_a_key_that_is_not_set_or_not_sendable(server, clock, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    judge = endpoint(server, clock, api_key_env="JUDGE_KEY")
    with pytest.raises(EndpointError, match="JUDGE_KEY is not set"):
        judge(ask("a"))
    monkeypatch.setenv("JUDGE_KEY", "sk\nsecret")
    with pytest.raises(EndpointError) as error:
        judge(ask("a"))
    assert "secret" not in str(error.value) and not server.seen


def test_budget_counts_retries(server, clock):
    server.plan["0"] = [DOWN, DOWN, FINE]
    judge = endpoint(server, clock, budget_requests=4, concurrency=1)
    replies = judge(ask("0", "1", "2"))
    assert replies["row-0"].text and replies["row-1"].text
    assert "budget of 4" in replies["row-2"].error and len(server.seen) == 4
    assert "budget" in judge(ask("3"))["row-0"].error


def test_ids_are_unique(server, clock):
    questions = ask("a") * 2
    with pytest.raises(ValueError, match="row-0"):
        endpoint(server, clock)(questions)
    with pytest.raises(ValueError, match="row-0"):
        Local(lambda some: ["x"] * len(some))(questions)


def test_media_travel_as_data(server, clock):
    from PIL import Image

    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    parts = (
        Part("text", text="look"),
        Part("image", data=picture),
        Part("audio", data=np.zeros(80), meta={"rate": 8000}),
        Part("video", data=np.stack([picture, picture + 1])),
        Part("video", data=b"\0\0\0 ftyp"),
        Part("image", data=b"\xff\xd8\xff\xe0"),
        Part("audio", data=b"\xff\xf3\x00"),
        Part("video", data=media.dump("video", np.stack([picture, picture + 1]))),
    )
    assert endpoint(server, clock)([Question("q", (Message("user", parts),))])["q"].text
    text, image, sound, one, two, clip, jpeg, mp3, *gif = server.seen[0][2]["messages"][
        0
    ]["content"]
    assert text == {"type": "text", "text": "look"}
    assert gif == [one, two]
    for item, wanted in ((image, picture), (one, picture), (two, picture + 1)):
        head, _, data = item["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        shown = Image.open(io.BytesIO(base64.b64decode(data)))
        np.testing.assert_array_equal(np.asarray(shown), wanted)
    assert sound["input_audio"]["format"] == "wav"
    assert base64.b64decode(sound["input_audio"]["data"]).startswith(b"RIFF")
    assert clip["video_url"]["url"].startswith("data:video/mp4")
    assert jpeg["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert mp3["input_audio"]["format"] == "mp3"


@pytest.mark.parametrize(
    "part,said",
    [
        (Part("image", data=b"nonsense"), "no known format"),
        (Part("image", uri="/etc/hostname"), "no data"),
        (Part("image", uri="file:///etc/hostname"), "no data"),
        (Part("image", data=np.zeros((2, 2, 3))), "uint8"),
        (Part("image", data=np.zeros((0, 2, 3), np.uint8)), "uint8"),
        (Part("audio", data=np.zeros((2, 2))), "mono"),
        (Part("audio", data=np.zeros(2)), "rate"),
        (Part("video", data=b"GIF89a broken"), "cannot be decoded"),
        (Part("video", data=np.zeros((0, 2, 2, 3), np.uint8)), "no frames"),
    ],
)
def test_a_part_that_cannot_travel_costs_its_row_only(server, clock, part, said):
    questions = [Question("bad", (Message("user", (part,)),)), *ask("a")]
    replies = endpoint(server, clock)(questions)
    assert said in replies["bad"].error and replies["row-0"].text
    assert len(server.seen) == 1


def test_local_judge():
    sizes = []

    def answer(conversations):
        sizes.append(len(conversations))
        return [messages[-1].text.upper() for messages in conversations]

    replies = Local(answer, batch_size=2)(ask("a", " ", "c"))
    assert [r.text for r in replies.values()] == ["A", None, "C"] and sizes == [2, 1]
    assert replies["row-1"].error == "empty answer"
    with pytest.raises(ValueError, match="1 texts for 2"):
        Local(lambda some: ["x"])(ask("a", "b"))
