"""Align Anything's subsets, from files in the published layouts, against the rows put in."""

import dataclasses
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

import alanything_jax
from alanything_jax import experiment as recipes
from alanything_jax.cli.main import main
from alanything_jax.data import feedback, formats, groups, media, media_root, store
from alanything_jax.data.builders import align_anything as builders
from alanything_jax.data.byte_tokenizer import byte_tokenizer
from alanything_jax.data.encode import BadRecord
from alanything_jax.data.formats import align_anything
from alanything_jax.data.formats.align_anything_columns import SUBSETS
from alanything_jax.pipelines import data

CONFIG = Path(__file__).parents[2] / "configs" / "dpo_smollm2.py"
# letter -> dimension, as the data set's cards and analyses have them.
FIVE = {
    "p": "prompt_following",
    "o": "objective_rules",
    "c": "clarity",
    "i": "information_richness",
    "s": "safety",
}
AUDIO = FIVE | {"o": "audio_quality", "a": "consistency"}
AUDIO.pop("c")
IMAGE = FIVE | {"a": "aesthetics"}
IMAGE.pop("c")
VIDEO = {
    "p": "prompt_following",
    "v": "video_objective_reality",
    "a": "aesthetic",
    "i": "information_richness",
    "s": "safety",
    "t": "temporal_consistency",
    "c": "content_coherence",
    "m": "motion_naturalness",
}
DIMENSIONS = {"t2i": IMAGE, "t2a": AUDIO, "t2v": VIDEO}
DIMENSIONS["ti2ti"] = FIVE | {"m": "modality_consistency"}
REFINE = "##Critique: too short. ##Refinement: say more."


def png(n=0):
    return media.dump("image", np.full((4, 6, 3), n, np.uint8))


def wav(n=0):
    return media.dump("audio", np.full(16, n / 8, np.float32), rate=16000)


def gif(n=0):
    frames = np.full((2, 4, 4, 3), n, np.uint8)
    return media.dump("video", frames, fps=2)


def held(raw, name):
    return {"bytes": raw, "path": name}


def row(subset, n=0, chosen=1):
    """A row as the subset publishes it."""
    target = {"t2i": "image", "t2a": "audio", "t2v": "video"}.get(subset, "response")
    text = {"response_1": f"yes {n}", "response_2": f"no {n}"}
    own = {
        "t2t": {"question": f"q {n}", **text},
        "ti2t": {
            "question": f"q {n}",
            "image": held(png(n), "a.png"),
            **text,
            "res_1_from": "one",
            "res_2_from": "two",
        },
        "ta2t": {"prompt": f"q {n}", "audio_path": held(wav(n), None), **text},
        "tv2t": {
            "prompt": f"<video>\nq {n}",
            "video_path": f"./videos/{n}.gif",
            **text,
            "model_1": "one",
            "model_2": "two",
        },
        "t2i": {
            "prompt": f"q {n}",
            "image_1": held(png(n), None),
            "image_1_model": "one",
            "image_2": held(png(n + 1), None),
            "image_2_model": "two",
        },
        "t2a": {
            "prompt": f"q {n}",
            "response_1": held(wav(n), "1.wav"),
            "response_2": held(wav(n + 1), "2.wav"),
            "res_1_from": "one",
            "res_2_from": "two",
            "refine_prompt": "louder",
            "reasoning": "why",
        },
        "t2v": {
            "prompt": f"q {n}",
            "video_1": f"./videos/{n}.gif",
            "video_2": f"./videos/{n + 1}.gif",
        },
        "ti2ti": {
            "question": f"q {n}",
            "image": f"./images/{n}.png",
            **text,
            "output_image_1": f"./images/{n + 1}.png",
            "output_image_2": f"./images/{n + 2}.png",
        },
    }[subset]
    for letter, name in DIMENSIONS.get(subset, FIVE).items():
        own |= {f"{letter}_{target}": 2, f"{name}_rate_1": 1, f"{name}_rate_2": 3}
        own |= {f"{letter}_rationale_{k}": f"{name} of {k}" for k in (1, 2)}
    field = "text_{}_feedback" if subset == "t2a" else "text_critique_{}"
    own |= {field.format(1): REFINE, field.format(2): "##Critique: fine."}
    own |= {f"overall_{target}": chosen, "overall_textfeedback": "the first"}
    return own


MADE = {"videos": gif, "images": png}
ENDS = {"videos": "gif", "images": "png"}


def members(folder, count):
    end, make = ENDS[folder], MADE[folder]
    return [(f"./{folder}/{n}.{end}", make(n)) for n in range(count)]


def tar(files, mode="w:gz"):
    """A tar of (name, bytes) or TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as file:
        for entry in files:
            if isinstance(entry, tarfile.TarInfo):
                file.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            file.addfile(info, io.BytesIO(entry[1]))
    return out.getvalue()


def publish(folder, subset, rows, split="train"):
    """The files of a subset, in the layout of the data set's repository."""
    place = folder / SUBSETS[subset].folder
    place.mkdir(parents=True, exist_ok=True)
    if subset not in ("t2v", "tv2t", "ti2ti"):
        table = pyarrow.Table.from_pylist(rows)
        path = place / f"{split}_{len(rows)}.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=2)
        return path
    name = "9k_train.json" if subset == "t2v" else "train_10k.json"
    (place / name).write_text(json.dumps(rows))
    media_folder = "images" if subset == "ti2ti" else "videos"
    raw = tar(members(media_folder, len(rows) + 3)[::-1])
    if subset == "t2v":
        cut = len(raw) // 3
        pieces = (raw[:cut], raw[cut : 2 * cut], raw[2 * cut :])
        for n, piece in enumerate(pieces):
            (place / f"videos.tar.gz{n}").write_bytes(piece)
    else:
        (place / f"{media_folder}.tar.gz").write_bytes(raw)
    return place / name


def content(message):
    return [p.text if p.kind == "text" else (p.kind, p.data) for p in message.parts]


EXPECTED = {
    "t2t": (["q 0"], ["yes 0"], ["no 0"]),
    "ti2t": ([("image", png()), "q 0"], ["yes 0"], ["no 0"]),
    "ta2t": ([("audio", wav()), "q 0"], ["yes 0"], ["no 0"]),
    "tv2t": ([("video", gif()), "q 0"], ["yes 0"], ["no 0"]),
    "t2i": (["q 0"], [("image", png())], [("image", png(1))]),
    "t2a": (["q 0"], [("audio", wav())], [("audio", wav(1))]),
    "t2v": (["q 0"], [("video", gif())], [("video", gif(1))]),
    "ti2ti": (
        [("image", png()), "q 0"],
        ["yes 0", ("image", png(1))],
        ["no 0", ("image", png(2))],
    ),
}


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("named", [False, True])
def test_every_column_has_its_place(tmp_path, subset, named):
    path = publish(tmp_path, subset, [row(subset, n, 1 + n % 2) for n in range(3)])
    how = {"format": "align_anything", "subset": subset} if named else {}
    found = [example for _, example in groups.examples(str(path), **how)]
    assert [e.feedback.chosen for e in found] == [0, 1, 0]
    example, dimensions = found[0], DIMENSIONS.get(subset, FIVE)
    sides = [example.prompt[0], *(r.messages[0] for r in example.responses)]
    assert tuple(map(content, sides)) == EXPECTED[subset]
    said = example.feedback
    assert {
        (r.response, r.dimension): (r.score, r.rationale) for r in said.ratings
    } == {
        (k, name): ((1.0, 3.0)[k], f"{name} of {k + 1}")
        for name in dimensions.values()
        for k in (0, 1)
    }
    assert [(c.response, c.text) for c in said.critiques] == [
        (0, REFINE),
        (1, "##Critique: fine."),
        (None, "the first"),
    ]
    choices = example.extra["choices"]
    assert {c["dimension"]: c["chosen"] for c in choices} == dict.fromkeys(
        dimensions.values(), 1
    )
    assert example.extra["subset"] == subset and "unknown" not in example.extra
    kept = {"one", "two"} if subset in ("ti2t", "t2i", "t2a", "tv2t") else set()
    kept |= {"louder", "why"} if subset == "t2a" else set()
    assert {
        v for k, v in example.extra.items() if k not in ("subset", "choices")
    } == kept
    # Another rater's choice joins the data set's, which stays.
    more = feedback.add(example, choices=[feedback.choice("ann", [0.0, 1.0])])
    assert len(more.extra["choices"]) == len(dimensions) + 2


def test_no_subset_is_taken_for_another_and_other_formats_keep_theirs():
    for subset in SUBSETS:
        assert align_anything.subset_of(row(subset)) == subset
    for other in (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"messages": []},
        {"question": "a", "response_1": "b", "response_2": "c"},
    ):
        assert not align_anything.claims(other)


def test_unknown_columns_are_kept_and_told(tmp_path, capsys):
    rows = [row("t2t", n) | {"mood": n, "z_rationale_1": "?"} for n in range(3)]
    path = publish(tmp_path, "t2t", rows)
    assert main(["data", "convert", str(path), str(tmp_path / "d")]) == 0
    assert "mood (3), z_rationale_1 (3)" in capsys.readouterr().out.replace("\n", " ")
    extra = store.read(tmp_path / "d")[2].extra
    assert extra["unknown"] == {"mood": 2, "z_rationale_1": "?"}
    assert main(["data", "check", str(path)]) == 0
    assert "unknown column mood" in capsys.readouterr().out
    told = []
    need = (byte_tokenizer(), 2, tmp_path / "q.jsonl", told.append)
    groups.load_groups(groups.Data(str(path)), *need)
    assert "mood (3)" in told[0]


def test_missing_scores_leave_what_there_is():
    bare = row("t2t") | {"clarity_rate_1": None, "safety_rate_2": None}
    bare |= {"s_rationale_2": None, "c_response": 0, "text_critique_1": None}
    said = align_anything.read(bare, "x").feedback
    assert len(said.ratings) == 8
    assert ("clarity of 1", 0, "clarity") in [
        (c.text, c.response, c.dimension) for c in said.critiques
    ]
    choices = align_anything.read(bare, "x").extra["choices"]
    tie = next(c for c in choices if c["dimension"] == "clarity")
    assert tie["chosen"] is None and tie["votes"] == [0.5, 0.5]


def test_without_a_preference_a_row_is_kept_but_not_compared(tmp_path):
    rows = [row("t2t", n, chosen) for n, chosen in enumerate((1, 0, 2, 3))]
    path = publish(tmp_path, "t2t", rows)
    found = [example for _, example in groups.examples(str(path))]
    assert [e.feedback.chosen for e in found] == [0, None, 1, None]
    assert found[3].extra["overall_response"] == 3
    told, need = [], (byte_tokenizer(), 2, tmp_path / "q.jsonl")
    train, _ = groups.load_groups(groups.Data(str(path)), *need, told.append)
    assert [g.id[-1] for g in train] == ["0", "2"]
    assert "2 kept (2 without a preference)" in told[0]


@pytest.mark.parametrize(
    "change, subset, told",
    [
        ({"response_2": None}, "t2t", "response_2: missing; subset 't2t'"),
        ({"response_2": 5}, "t2t", "response_2: expected text, got 5"),
        ({"image": 5}, "ti2t", "image: expected a path, bytes, or a struct"),
        ({"clarity_rate_1": "high"}, "t2t", "clarity_rate: no number: 'high'"),
    ],
)
def test_bad_values_name_their_column(change, subset, told):
    with pytest.raises(BadRecord, match=told):
        align_anything.read(row(subset) | change, "x", subset)


def test_subsets_are_align_anythings_alone():
    for name, subset in (("trl", "t2t"), ("auto", "t2x")):
        with pytest.raises(ValueError, match="only align_anything has subsets"):
            formats.reader(name, (), row("t2t"), subset)


def test_samples_come_with_their_rate():
    sound = {"array": [0.0, 0.5, -0.5], "sampling_rate": 8000, "path": "a.flac"}
    example = align_anything.read(row("ta2t") | {"audio_path": sound}, "x")
    samples, meta = media.load(example.prompt[0].parts[0])
    np.testing.assert_array_equal(samples, np.float32([0, 0.5, -0.5]))
    assert meta["rate"] == 8000 and meta["path"] == "a.flac"


def test_deep_and_printed_pictures_load():
    grey, printed = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((3, 5), 0x8001, np.uint16)).save(grey, "PNG")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(printed, "JPEG", quality=100)
    for raw, colour in ((grey, (128, 128, 128)), (printed, (255, 0, 0))):
        shown = row("ti2t") | {"image": held(raw.getvalue(), None)}
        part = align_anything.read(shown, "x").prompt[0].parts[0]
        pixels, _ = media.load(part)
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
        assert np.abs(pixels[0, 0].astype(int) - colour).max() <= 2


# --- media beside the rows ---


def video_rows(folder, *paths):
    rows = [row("tv2t") | {"video_path": path} for path in paths]
    (folder / "train_10k.json").write_text(json.dumps(rows))
    return str(folder / "train_10k.json")


def test_an_extracted_folder_or_one_elsewhere(tmp_path):
    (tmp_path / "json").mkdir()
    (tmp_path / "media" / "videos").mkdir(parents=True)
    (tmp_path / "media" / "videos" / "0.gif").write_bytes(gif())
    path = video_rows(tmp_path / "json", "./videos/0.gif")
    ((_, error),) = groups.examples(path)
    assert "no videos/0.gif in" in str(error)
    root = str(tmp_path / "media")
    source = data.Source(path, "align_anything", subset="tv2t", media_root=root)
    ((_, example),) = data.some(source, 0, 5)
    part = example.prompt[0].parts[0]
    assert part.data == gif() and part.meta["path"] == "./videos/0.gif"
    with pytest.raises(ValueError, match="is no folder"):
        list(groups.examples(path, media_folder=root + "/none"))


@pytest.mark.parametrize("name", ["../secret.gif", "/etc/hostname", "videos/link.gif"])
def test_no_path_leads_out_of_the_folder(tmp_path, name):
    (tmp_path / "secret.gif").write_bytes(gif())
    (tmp_path / "in" / "videos").mkdir(parents=True)
    (tmp_path / "in" / "videos" / "link.gif").symlink_to(tmp_path / "secret.gif")
    for uri in (name, f"file://{name}"):
        ((_, error),) = groups.examples(video_rows(tmp_path / "in", uri), subset="tv2t")
        assert "leads out of" in str(error) and "media_root" in str(error)


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "entry, told",
    [
        (("../0.gif", gif()), "leads out of the archive"),
        (("/videos/0.gif", gif()), "leads out of the archive"),
        (special("videos/0.gif", tarfile.SYMTYPE, "/etc/hostname"), "is a link"),
        (special("videos/0.gif", tarfile.LNKTYPE, "videos/1.gif"), "is a link"),
        (special("videos/0.gif", tarfile.FIFOTYPE), "is a link or a device"),
    ],
)
def test_archives_that_reach_elsewhere_stop_the_reading(tmp_path, entry, told):
    (tmp_path / "videos.tar").write_bytes(tar([entry], "w"))
    path = video_rows(tmp_path, "./videos/0.gif")
    with pytest.raises(media_root.ArchiveError, match=told):
        list(groups.examples(path))
    assert main(["data", "convert", path, str(tmp_path / "d")]) == 1


def test_a_header_cannot_ask_for_all_memory(tmp_path):
    long = special("x", tarfile.XHDTYPE)
    long.size = 1 << 30
    (tmp_path / "videos.tar").write_bytes(long.tobuf(tarfile.USTAR_FORMAT))
    with pytest.raises(media_root.ArchiveError, match="a header of 1073741824 bytes"):
        list(groups.examples(video_rows(tmp_path, "./videos/0.gif")))


def test_archives_are_read_no_further_than_needed_and_in_any_order(tmp_path):
    bad = ("../x", b"")
    files = [*members("videos", 3), bad]
    (tmp_path / "videos.tar").write_bytes(tar(files, "w"))
    names = [f"videos/{n}.gif" for n in (2, 0, 1, 0)]
    found = [e for _, e in groups.examples(video_rows(tmp_path, *names))]
    assert [e.prompt[0].parts[0].data for e in found] == [gif(n) for n in (2, 0, 1, 0)]


def test_large_members_missing_parts_and_broken_archives(tmp_path):
    raw = tar([("videos/0.gif", gif()), ("videos/1.gif", gif() + bytes(900))])
    (tmp_path / "videos.tar.gz").write_bytes(raw)
    limits = media.MediaLimits(max_bytes=len(gif()))
    with media_root.opened(tmp_path) as root:
        root = dataclasses.replace(root, limits=limits)
        assert root.read("./videos/0.gif") == gif()
        with pytest.raises(media.MediaError, match="1.gif in .* is larger than"):
            root.read("./videos/1.gif")
        with pytest.raises(media.MediaError, match=r"no x.gif in .*videos.tar.gz"):
            root.read("x.gif")
        root.archives[0].close()
    (tmp_path / "videos.tar.gz").write_bytes(raw[: len(raw) // 2])
    path = video_rows(tmp_path, "./videos/1.gif")
    with pytest.raises(media_root.ArchiveError, match="a part missing or cut off"):
        list(groups.examples(path))
    (tmp_path / "videos.tar.gz").rename(tmp_path / "videos.tar.gz0")
    (tmp_path / "videos.tar.gz2").write_bytes(b"")
    ((_, error),) = groups.examples(path)
    assert "split into parts [0, 2]: one is missing" in str(error)


# --- convert, inspect, train; the TFDS builder ---


@pytest.mark.parametrize("subset", ["t2a", "t2v"])
def test_convert_and_inspect(tmp_path, capsys, subset):
    path = publish(tmp_path, subset, [row(subset, n) for n in range(3)])
    out = str(tmp_path / "d")
    argv = ["--format", "align_anything", "--subset", subset]
    argv += ["--media-root", str(path.parent)]
    assert main(["data", "convert", str(path), out, *argv]) == 0
    assert "3 of 3 records" in capsys.readouterr().out
    # The media are inside: the files are not needed any more.
    for file in path.parent.iterdir():
        file.unlink()
    part = store.read(Path(out))[2].responses[1].messages[0].parts[0]
    made = {"t2a": wav, "t2v": gif}[subset]
    assert part.data == made(3)
    assert main(["data", "inspect", out, "--count", "1"]) == 0
    assert f"<{part.kind}>" in capsys.readouterr().out


def test_a_converted_subset_trains(tmp_path):
    path = publish(tmp_path, "t2t", [row("t2t", n, 1 + n % 2) for n in range(12)])
    data.convert(data.Source(str(path), subset="t2t"), tmp_path / "d")
    recipe = recipes.tiny(recipes.load(CONFIG))
    change = dataclasses.replace
    recipe = change(
        recipe,
        data=change(recipe.data, path=str(tmp_path / "d"), heldout_groups=0),
        train=change(recipe.train, steps=2, tensorboard=False),
    )
    run = alanything_jax.train(recipe, tmp_path / "run", say=lambda line: None)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert lines[-1]["step"] == 2 and np.isfinite(lines[-1]["loss"])


def raw_files(tmp_path):
    raw = tmp_path / "raw"
    rows = [row("ti2t", n) for n in range(5)]
    rows[3]["response_1"] = None
    table = pyarrow.Table.from_pylist(rows)
    (raw / "text-image-to-text").mkdir(parents=True)
    path = raw / "text-image-to-text" / "train.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    publish(raw, "ti2t", [row("ti2t", 7)], "val")
    return raw


def test_the_builder_writes_what_we_and_tfds_read(tmp_path, monkeypatch):
    monkeypatch.setattr(builders.Quarantine, "close", lambda self: None)
    raw = raw_files(tmp_path)
    out = builders.build("ti2t", raw, tmp_path / "tfds")
    assert out == tmp_path / "tfds" / "align_anything" / "ti2t" / "1.0.0"
    found = {e.id: e for _, e in groups.examples(str(out))}
    assert sorted(found) == [f"train-{n}" for n in (0, 1, 2, 4)]
    assert found["train-4"].prompt[0].parts[0].data == png(4)
    ((_, val),) = groups.examples(str(out / "val"))
    assert val.id == "val_1-0"
    with pytest.raises(ValueError, match="the split 'test'"):
        store.read(out, "test")
    code = f"""
import sys
import tensorflow_datasets as tfds
source = tfds.builder_from_directory({str(out)!r}).as_data_source("train")
print(len(source), sorted(r["id"].decode() for r in source)[0])
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "4 train-0", done.stderr
    configs = builders.builder_class().builder_configs
    assert sorted(configs) == sorted(SUBSETS)


def test_parts_make_the_whole_and_list_what_is_bad(tmp_path):
    raw = raw_files(tmp_path)
    (path,) = builders.files("ti2t", raw)["train"]
    spans = builders.sources.spans(path, 2)
    assert spans == [(0, 2), (2, 4), (4, 5)]

    def make(*span):
        return builders.records("ti2t", str(tmp_path), (str(path), *span))

    keys = [key for span in (spans[0], spans[2]) for key, _ in make(*span)]
    assert keys == ["train-0", "train-1", "train-4"]
    with pytest.raises(ValueError, match="1 of 2 records are bad"):
        list(make(2, 4))
    assert "response_1: missing" in (tmp_path / "ti2t-train-2.jsonl").read_text()
    with pytest.raises(FileNotFoundError, match="hf download PKU-Alignment"):
        builders.files("t2t", raw)
    with pytest.raises(ValueError, match="subset 't2x': choose one of"):
        builders.builder("t2x", tmp_path)


def test_the_builder_on_beam(tmp_path):
    if importlib.util.find_spec("apache_beam") is None:
        pytest.skip("apache_beam is not installed: the builder's Beam path is untested")
    from apache_beam.options.pipeline_options import PipelineOptions

    raw = tmp_path / "raw"
    publish(raw, "ti2t", [row("ti2t", n) for n in range(5)])
    plain = builders.build("ti2t", raw, tmp_path / "plain")
    beam = builders.build("ti2t", raw, tmp_path / "beam", PipelineOptions([]))
    ids = [{e.id for _, e in groups.examples(str(out))} for out in (plain, beam)]
    assert ids[0] == ids[1] and len(ids[0]) == 5
