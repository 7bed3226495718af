"""The model card: what it says of base, licence, data and recipe, and what it does not."""

import dataclasses

import pytest
from huggingface_hub.repocard import metadata_load

from alanything_jax import hub
from alanything_jax.hub.save import model_card
from alanything_jax.hub.tiny import tiny_bundle

FRONT = (
    "---\nlicense: other\nlicense_name: theirs\nlicense_link: LICENSE\n---\n# Base\n"
)


@pytest.mark.parametrize(
    "readme,expected,line",
    [
        (FRONT, ("other", "theirs", "LICENSE"), "other, as the base's card says"),
        (None, (None,) * 3, "unknown: see the base"),
        ("# no metadata\n", (None,) * 3, "unknown: see the base"),
        ("---\na: [\n---\n", (None,) * 3, "unknown: see the base"),
        ("---\n- a\n---\n", (None,) * 3, "unknown: see the base"),
    ],
    ids=["said", "no card", "no front matter", "broken", "a list"],
)
def test_the_licence_is_the_bases(readme, expected, line, tmp_path):
    base = hub.save(tiny_bundle("llama"), tmp_path / "base")
    (base / "README.md").unlink()
    if readme:
        (base / "README.md").write_text(readme)
    notes = {"data": "hf://datasets/some/pairs@main/a.parquet + mine.jsonl", "step": 3}
    out = hub.save(hub.load(base), tmp_path / "out", notes=notes)
    said = metadata_load(out / "README.md")
    names = ("license", "license_name", "license_link")
    assert tuple(said.get(n) for n in names) == expected
    assert said["datasets"] == ["some/pairs"] and "base_model" not in said
    text = (out / "README.md").read_text()
    assert f"- licence: {line}\n" in text and "- step: 3\n" in text
    assert "- base: base\n" in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    "family,task",
    [
        ("llama", "text-generation"),
        ("llava", "image-text-to-text"),
        ("qwen2_vl", "image-text-to-text"),
        ("qwen2_audio", "audio-text-to-text"),
        ("qwen2_5_omni_thinker", "any-to-any"),
    ],
)
def test_task_and_base_from_the_hub(family, task):
    bundle = dataclasses.replace(tiny_bundle(family), source="owner/some-1.5B")
    card = model_card(bundle, {})
    assert f"pipeline_tag: {task}\n" in card and "base_model: owner/some-1.5B\n" in card
    assert "datasets" not in card and "library_name: peft" not in card
    assert "library_name: peft\n" in model_card(bundle, {}, "peft")
