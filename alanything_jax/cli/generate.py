"""`alanything generate --model M --prompt P`."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import rich.progress
import tyro

from alanything_jax import generate, hub
from alanything_jax.data import media, sources
from alanything_jax.data.files import write_aside
from alanything_jax.generation.generate import Answer, streamer
from alanything_jax.generation.sampler import Sampling


@dataclasses.dataclass(frozen=True)
class Options:
    """Rows in, rows out.

    Attributes:
      model: Hugging Face directory, hub id or .gguf file.
      prompt: a .json or .jsonl file of rows with a `prompt` (text or messages), or text. A
        row with `"output": "image"` asks for one picture, such as
        {"prompt": "a red kite", "output": "image"}; so with "audio" and "video".
      out: the rows with their `responses`, as .jsonl.
      batch_size: answers made at a time; as some end, others begin.
      stop: texts that end an answer, such as "\\n\\n"; it is cut off before them.
      stop_tokens: tokens that end an answer, beside the model's own.
      guidance: of pictures that Janus draws; 1 = none.
    """

    model: str
    prompt: str
    out: Path = Path("generated.jsonl")
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_samples: int = 1
    batch_size: int = 8
    seed: int = 0
    guidance: float = 5.0
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[str, ...] = ()


def main(argv: Sequence[str]) -> int:
    """Parse, generate, write."""
    options = tyro.cli(Options, prog="alanything generate", args=list(argv))
    rows = read_prompts(options.prompt)
    answers = answer(options, rows)
    folder = options.out.with_name(options.out.stem + "_media")
    lines = []
    for n, (row, some) in enumerate(zip(rows, answers, strict=True)):
        made = [as_row(a, folder, f"{n}-{k}") for k, a in enumerate(some)]
        lines.append(json.dumps(row | {"responses": made}) + "\n")
    write_aside(options.out, "".join(lines))
    if len(rows) == 1:
        # As text it was shown while it was made.
        print("" if _streams(rows) else answers[0][0].text)
    media = f", media in {folder}/" if folder.exists() else ""
    print(
        f"wrote {options.out}: {len(rows)} rows{media}\n"
        f"next: alanything chat --model {options.model}"
    )
    return 0


def answer(options: Options, rows: Sequence[dict]) -> list[list[Answer]]:
    """Of every row its answers; rows that ask for the same medium are made together."""
    bundle, out = hub.load(options.model), {}
    names = [field.name for field in dataclasses.fields(Sampling)]
    sampling = Sampling(**{name: getattr(options, name) for name in names})
    names = "max_new_tokens num_samples batch_size seed guidance stop stop_tokens"
    same = {name: getattr(options, name) for name in names.split()}
    show = streamer(bundle.tokenizer, _write) if _streams(rows) else None
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        transient=True,
        disable=_streams(rows),
    ) as bar:
        for output in sorted({row.get("output", "text") for row in rows}):
            which = [n for n, r in enumerate(rows) if r.get("output", "text") == output]
            task = bar.add_task(f"generating {output}", total=len(which))
            some = generate(
                bundle,
                [rows[n]["prompt"] for n in which],
                sampling=sampling,
                output=output,
                on_batch=functools.partial(_advance, bar, task),
                on_tokens=show,
                **same,
            )
            out |= zip(which, some, strict=True)
    return [out[n] for n in range(len(rows))]


def _streams(rows):
    """Of one prompt the text itself is the progress."""
    return len(rows) == 1 and rows[0].get("output", "text") == "text"


def _write(text):
    print(text, end="", flush=True)


def _advance(bar, task, done):
    bar.update(task, completed=done)


def as_row(answer: Answer, folder: Path, name: str) -> dict:
    """An answer as JSON; its media become files `folder/<name>-<number>.png` and so on."""
    files = []
    parts = [p for m in answer.response.messages for p in m.parts if p.kind != "text"]
    for number, part in enumerate(parts):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}-{number}{media.SUFFIX[part.kind]}"
        path.write_bytes(part.data)
        files.append({"kind": part.kind, "file": str(path)})
    figures = ("logp", "num_tokens", "finished")
    row = {"text": answer.text, "media": files}
    return row | {name: getattr(answer, name) for name in figures}


def read_prompts(prompt: str) -> list[dict]:
    """Rows with a `prompt` field, from a file or from the text itself.

    Raises:
      ValueError: a row without a prompt.
      FileNotFoundError: it looks like a file, and there is none.
    """
    if not prompt.endswith(sources.SUFFIXES):
        return [{"prompt": prompt}]
    rows = []
    for number, row in sources.rows(prompt):
        if isinstance(row, Exception):
            raise ValueError(f"{prompt}: {row}")
        if "prompt" not in row:
            raise ValueError(
                f"{prompt} row {number} has no `prompt`; it has {sorted(row)}. Name the "
                "field with the text or the messages `prompt`."
            )
        rows.append(row)
    return rows
