"""lmms-eval: tasks of pictures through our adapter, against our own generation."""

import json

import numpy as np
import pytest
from PIL import Image

from alanything_jax import evaluate, hub
from alanything_jax.generation.generate import generate
from alanything_jax.hub.tiny import tiny_bundle
from alanything_jax.pipelines.harness import Harness

pytest.importorskip("lmms_eval", reason="lmms_eval is not here: pip install lmms-eval")

QUESTIONS = ("What is this?", "Is it red?", "A kite?")
# The picture lies beside the task; functions of a YAML file are lmms_eval's own way.
UTILS = """
from pathlib import Path
from PIL import Image

def visual(doc):
    return [Image.open(Path(__file__).parent / doc["picture"]).convert("RGB")]
"""
TASK = """
task: pictures
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_visual: !function pictures.visual
doc_to_text: q
doc_to_target: a
generation_kwargs: {{max_new_tokens: 6, temperature: 0, top_p: 0, num_beams: 1, until: []}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_answers_are_those_of_generate(family, tmp_path):
    hub.save(tiny_bundle(family), tmp_path / "model")
    bundle = hub.load(tmp_path / "model")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rng, prompts = np.random.default_rng(3), []
    for n, question in enumerate(QUESTIONS):
        path = tasks / f"{n}.png"
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(path)
        parts = [{"type": "image", "url": path.read_bytes()}]
        parts.append({"type": "text", "text": question})
        prompts.append([{"role": "user", "content": parts}])
    said = [a[0].text for a in generate(bundle, prompts, max_new_tokens=6)]
    assert len(set(said)) > 1
    rows = [
        {"q": q, "picture": f"{n}.png", "a": said[n] if n else "no"}
        for n, q in enumerate(QUESTIONS)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "pictures.py").write_text(UTILS)
    yaml = TASK.format(data=data, cache=tmp_path / "cache")
    (tasks / "pictures.yaml").write_text(yaml)
    recipe = Harness(
        str(tmp_path / "model"),
        ("pictures",),
        package="lmms_eval",
        include_path=str(tasks),
        batch_size=2,
    )
    report = evaluate(recipe, tmp_path / "run")
    samples = json.loads((tmp_path / "run" / "samples.json").read_text())["pictures"]
    assert [row["resps"][0][0] for row in samples] == said
    assert report["results"]["pictures"]["exact_match,none"] == pytest.approx(2 / 3)
