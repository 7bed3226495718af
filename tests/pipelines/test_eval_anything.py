"""AMU and AMG as recipes: published layouts in, sums by hand out; resumed; judge down."""

import dataclasses
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import alanything_jax
from alanything_jax.hub.source import ModelSource
from alanything_jax.pipelines import asking, eval_anything
from alanything_jax.pipelines.asking import JudgeDown, JudgeSource, open_judge
from alanything_jax.pipelines.eval_anything import AMG, AMU, describe
from alanything_jax.playground import oracle, tasks
from alanything_jax.rewards.judge import Question, Reply
from alanything_jax.schema import Message, Part, Response

DIMENSIONS = ("perception", "reasoning", "instruction-following", "safety")
GRADES = dict(zip(DIMENSIONS, (8, 6, 4, 2), strict=True))


class Judge:
    """Grades by what `grade(question)` says; an Exception is a failure of the judge."""

    def __init__(self, grade):
        self.grade, self.asked = grade, []

    def __call__(self, questions):
        replies = {}
        for question in questions:
            self.asked.append(question)
            said = self.grade(question)
            failed = isinstance(said, Exception)
            replies[question.id] = Reply(
                question.id, None if failed else said, str(said) if failed else None
            )
        return replies


def said(*parts):
    parts = (Part("text", text=p) if isinstance(p, str) else p for p in parts)
    return Response((Message("assistant", tuple(parts)),))


def run(recipe, folder):
    return alanything_jax.evaluate(recipe, folder, say=lambda line: None)


@pytest.fixture
def amu_data(tmp_path):
    """Eight questions in the layout of EvalAnything-AMU, media of the playground."""
    root = tmp_path / "EvalAnything-AMU"
    rows = []
    for n in range(8):
        names = f"visual/{n}.png", f"auditory/{n}.wav"
        for name, task in zip(names, ("i2t", "a2t"), strict=True):
            (example,) = tasks.prompts("test", 1, n, (task,))
            part = next(p for p in example.prompt[-1].parts if p.kind != "text")
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(oracle.as_file(part).data)
        keywords = {"visual": ["lake"], "auditory": ["bell"]}
        rows.append(
            {
                "question_id": n,
                "question": f"question {n}",
                "visual_modality_path": names[0],
                "auditory_modality_path": names[1],
                "evaluation_dimension": DIMENSIONS[n % 4],
                "annotations": [{"answer": "a bell by a lake", "keywords": keywords}],
            }
        )
    (root / "config.json").write_text(json.dumps(rows))
    return root


@pytest.fixture
def model(monkeypatch):
    """Stands in for a model on disk: answers by `model.answer(prompt)`; counts."""

    class Stored:
        prompts = []
        answer = staticmethod(lambda prompt: said(f"about {prompt[-1].text}"))

        def __call__(self, source, max_new_tokens, sampling, seed=0):
            def ask(prompts):
                self.prompts += prompts
                return [self.answer(prompt) for prompt in prompts]

            return ask

    Stored.prompts = []
    stored = Stored()
    monkeypatch.setattr(asking, "stored_model", stored)
    return stored


def by_dimension(question):
    rubric, shown = (m.text for m in question.messages)
    number = int(shown.split("about question ")[1].split()[0])
    return f"so so [[{list(GRADES.values())[number % 4]}]]"


def test_amu_by_hand_and_resumed(amu_data, model, tmp_path):
    judge = Judge(by_dimension)
    recipe = AMU(str(amu_data), ModelSource("some/model"), judge)
    report = run(recipe, tmp_path / "run")
    assert [p.kind for p in model.prompts[0][-1].parts] == ["image", "audio", "text"]
    assert {k: v["value"] for k, v in report["dimensions"].items()} == GRADES
    assert report["totals"] == {"amu": 5.0} and report["complete"]
    assert report == json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["model"] == "some/model" and len(judge.asked) == 8
    shown = "\n".join(describe(report))
    assert "dimensions safety" in shown and "2.000 (2 scored)" in shown
    # Nothing is asked twice, neither the model nor the judge.
    assert run(recipe, tmp_path / "run") == report
    assert len(model.prompts) == len(judge.asked) == 8
    other = dataclasses.replace(recipe, model=ModelSource("other/model"))
    with pytest.raises(ValueError, match="model.path: 'some/model' -> 'other/model'"):
        run(other, tmp_path / "run")


def test_a_question_that_changed_is_answered_and_graded_again(
    amu_data, model, tmp_path
):
    judge = Judge(lambda question: "[[5]]")
    recipe = AMU(str(amu_data), ModelSource("m"), judge)
    run(recipe, tmp_path / "run")
    rows = json.loads((amu_data / "config.json").read_text())
    rows[3]["question"] = "question 33"
    (amu_data / "config.json").write_text(json.dumps(rows))
    run(recipe, tmp_path / "run")
    assert "question 33" in judge.asked[-1].messages[-1].text
    assert len(judge.asked) == 9


def test_a_judge_that_fails_some_is_asked_those_again(amu_data, model, tmp_path):
    judge = Judge(
        lambda q: (
            OSError("server down")
            if "about question 3" in q.messages[-1].text
            else "[[5]]"
        )
    )
    recipe = AMU(str(amu_data), ModelSource("m"), judge)
    report = run(recipe, tmp_path / "run")
    assert not report["complete"] and report["problems"] == {"judge: server down": 1}
    assert "start the same command again" in describe(report)[-1]
    judge.grade = lambda question: "[[5]]"
    assert run(recipe, tmp_path / "run")["complete"]
    assert len(judge.asked) == 9


def test_a_model_that_reads_none_of_the_questions(amu_data, tmp_path):
    recipe = AMU(str(amu_data), ModelSource("tiny:llama"), Judge(by_dimension))
    with pytest.raises(ValueError, match="none of the 8 questions.*audio, image.*path"):
        run(recipe, tmp_path / "run")


def test_data_that_are_not_there(tmp_path):
    recipe = AMU(str(tmp_path / "none"), ModelSource("m"), Judge(by_dimension))
    with pytest.raises(FileNotFoundError, match="no EvalAnything-AMU.*hf download"):
        run(recipe, tmp_path / "run")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="--data another folder"):
        run(recipe, tmp_path / "run")
    made = AMG(str(tmp_path), "gone", ModelSource("m"), Judge(by_dimension), kinds=())
    with pytest.raises(FileNotFoundError, match="EvalAnything-Selection_Synergy"):
        run(made, tmp_path / "run")


# --- generation ---


@pytest.fixture
def amg_data(tmp_path):
    root = tmp_path / "follow"
    root.mkdir()
    for kind in ("text", "image", "audio", "video"):
        row = {"prompt_id": kind, "prompt": f"make {kind}"}
        asked = {"question_id": "q", "question": "?", "choice": ["x", "y"]}
        rows = [row | asked | {"answer": "B"} if kind in ("audio", "video") else row]
        (root / f"{kind}_instruct.json").write_text(json.dumps(rows))
    rows = [
        {"instruction_uid": 1, "instruction": "tell and draw"}
        | {"selection": json.dumps({"ti": 3, "t": 1})},
        {"instruction_uid": 2, "instruction": "all"}
        | {"selection": json.dumps({"tia": 3, "t": 1})},
    ]
    (tmp_path / "select").mkdir()
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "select" / "test.parquet")
    return {"instructions": str(root), "selection": str(tmp_path / "select")}


def medium(kind):
    shape = {"image": (4, 4, 3), "video": (2, 4, 4, 3)}.get(kind, (8,))
    dtype, meta = (np.float32, {"rate": 8000}) if kind == "audio" else (np.uint8, {})
    return Part(kind, data=np.zeros(shape, dtype), meta=meta)


MADE = {
    "make text": ("words",),
    "make image": (medium("image"),),
    "make audio": (medium("audio"),),
    "make video": (medium("video"),),
    "tell and draw": ("words", medium("image")),
    "all": ("words", medium("image"), medium("audio")),
}


def grade(question):
    """8 for text, 6 for pictures; hears the right thing, sees the wrong one."""
    kinds = {p.kind for m in question.messages for p in m.parts}
    for kind, reply in {"audio": "[[B]]", "video": "[[A]]", "image": "[[6]]"}.items():
        if kind in kinds:
            return reply
    return "[[8]]"


def fits(one, two):
    return {"image": 0.5, "audio": 0.25}[two.kind] if one.kind == "text" else 1.0


def test_amg_by_hand(amg_data, model, tmp_path):
    model.answer = lambda prompt: said(*MADE[prompt[-1].text])
    understood = {name: {"value": 4.0, "count": 1, "missing": 0} for name in DIMENSIONS}
    (tmp_path / "amu.json").write_text(json.dumps({"dimensions": understood}))
    recipe = AMG(
        **amg_data,
        model=ModelSource("m"),
        judge=(judge := Judge(grade)),
        scorer=fits,
        amu_report=str(tmp_path / "amu.json"),
    )
    report = run(recipe, tmp_path / "run")
    follow = {name: mean["value"] for name, mean in report["follow"].items()}
    assert follow == {
        "T": 8,
        "V": 3,
        "A": 10,
        "text": 8,
        "image": 6,
        "audio": 10,
        "video": 0,
    }
    assert report["select"]["alpha"]["value"] == (0.75 + 0.25) / 2
    synergy = {name: mean["value"] for name, mean in report["synergy"].items()}
    assert synergy == {"TV": 0.5, "TA": 0.25, "VA": 1.0}
    # alpha * (T-V + T-A + V-A), each (S_i + S_j) / 2 * S_ij
    made = 0.5 * (5.5 * 0.5 + 9 * 0.25 + 6.5 * 1.0)
    assert report["totals"]["amg"] == pytest.approx(made)
    assert report["totals"]["overall"] == pytest.approx((4 + made) / 2)
    assert report["notes"] == [] and report["complete"]
    assert run(recipe, tmp_path / "run") == report
    assert len(judge.asked) == 4 and len(model.prompts) == 6


def test_amg_says_what_it_lacks(amg_data, model, tmp_path):
    model.answer = lambda prompt: said("words only")
    recipe = AMG(**amg_data, model=ModelSource("m"), judge=Judge(grade), amu_report="x")
    report = run(recipe, tmp_path / "run")
    assert report["totals"]["amg"] is None and report["totals"]["overall"] is None
    assert report["problems"]["no audio output (audio)"] == 1
    shown = "\n".join(describe(report))
    assert "--scorer" in shown and "--amu-report" in shown


def test_an_agent_writes_instructions_for_generators(amg_data, model, tmp_path):
    asked = {"image": [], "audio": [], "video": []}

    def generator(kind):
        def make(prompts):
            asked[kind] += [prompt[-1].text for prompt in prompts]
            return [said(medium(kind)) for _ in prompts]

        return make

    def answer(prompt):
        text = prompt[-1].text
        if text == "make text":
            return said("words")
        sound = "ding" if text.endswith(("make audio", "all")) else "None"
        return said(
            "[[response]]: words\n[[image_instruction]]: a lake\n"
            f"[[audio_instruction]]: {sound}"
        )

    model.answer = answer
    recipe = AMG(
        **amg_data,
        model=ModelSource("m"),
        judge=Judge(grade),
        agent=True,
        generators=tuple((kind, generator(kind)) for kind in asked),
        scorer=fits,
    )
    report = run(recipe, tmp_path / "run")
    # Pictures for "make image", "make audio" and both choices; the clip's for the clip.
    assert asked["video"] == ["a lake"] and asked["image"] == ["a lake"] * 4
    assert asked["audio"] == ["ding"] * 2
    assert report["follow"]["video"]["count"] == report["follow"]["audio"]["count"] == 1
    assert report["chosen"] == {"counts": {"ti": 1, "tia": 1}, "defaulted": 0}
    assert report["synergy"]["VA"] == {"value": 1.0, "count": 1, "missing": 1}
    assert run(recipe, tmp_path / "run") == report and len(asked["image"]) == 4


def test_a_reward_model_scores_what_fits():
    source = "playground:48x1"
    loaded = asking.load_model(ModelSource(source), score_head=True)
    one = Part("text", text="a picture")
    two = oracle.part("image", np.zeros(16, np.int32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval_anything, "load_model", lambda source: loaded)
        assert 0 < eval_anything._fits(source)(one, two) < 1


# --- judges ---


@pytest.fixture
def server():
    """An OpenAI-compatible server; `server.reply` is what it says, or a status code."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            http.bodies.append(body)
            status = http.reply if isinstance(http.reply, int) else 200
            message = {"choices": [{"message": {"content": http.reply}}]}
            raw = json.dumps(message).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    http.bodies, http.reply = [], "fine [[7]]"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield http
    http.shutdown()
    thread.join()


def at(server, **more):
    return JudgeSource("gpt", f"http://127.0.0.1:{server.server_port}/v1", **more)


def test_a_judge_behind_a_url(server, amu_data, model, tmp_path):
    source = dataclasses.replace(at(server), temperature=0.5, max_tokens=77)
    recipe = AMU(str(amu_data), ModelSource("m"), source)
    assert run(recipe, tmp_path / "run")["totals"] == {"amu": 7.0}
    assert len(server.bodies) == 9  # one asks whether it is there
    assert server.bodies[-1]["model"] == "gpt"
    assert (server.bodies[-1]["temperature"], server.bodies[-1]["max_tokens"]) == (
        0.5,
        77,
    )
    kept = (tmp_path / "run" / "config.json").read_text()
    assert "gpt (77 tokens, temperature 0.5)" in kept and "127.0.0.1" not in kept


def test_a_file_that_is_only_named_travels_with_the_question(server, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG....")
    parts = (Part("image", uri=str(tmp_path / "a.png")), Part("text", text="?"))
    ask = open_judge(at(server))
    ask([Question("q", (Message("user", parts),))])
    url = server.bodies[-1]["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    # Only media leave this machine, whatever a record names.
    (tmp_path / "secret.mp4").write_bytes(b"password")
    parts = (Part("video", uri=str(tmp_path / "secret.mp4")),)
    replies = ask([Question("q", (Message("user", parts),))])
    assert "no data" in replies["q"].error and len(server.bodies) == 2


def test_judges_that_cannot_be_asked(server, amu_data, model, tmp_path):
    place = at(server).url
    server.reply = 404
    for source, why in [
        (at(server), "404"),
        (JudgeSource("gpt", "http://127.0.0.1:9/v1"), "refused"),
        (JudgeSource("gpt", "localhost:8000"), "http"),
        (JudgeSource("gpt", "http://[broken"), "malformed"),
        (JudgeSource("gpt", place, api_key_env="NO_SUCH_KEY"), "NO_SUCH_KEY"),
    ]:
        recipe = AMU(str(amu_data), ModelSource("m"), source)
        with pytest.raises(JudgeDown, match=why) as caught:
            run(recipe, tmp_path / "run")
        assert "--judge.url" in str(caught.value)
    # Found out before the model is asked.
    assert not model.prompts
    server.reply = ""  # a model that thinks to the end of its tokens is there
    open_judge(at(server))


def test_a_judge_in_this_process():
    judge = open_judge(JudgeSource("tiny:llama", max_tokens=4))
    text = (Message("user", (Part("text", text="hi"),)),)
    seen = (Message("user", (Part("image", data=b"\x89PNG"),)),)
    replies = judge([Question("a", text), Question("b", seen)])
    assert replies["a"].text or replies["a"].error == "empty answer"
    assert replies["b"].error == "tiny:llama cannot read the question"
    with pytest.raises(JudgeDown, match="no model at /no/such/judge.*--judge.model"):
        open_judge(JudgeSource("/no/such/judge"))
