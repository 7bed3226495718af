"""PKU-Alignment/align-anything (200k preferences in eight subsets) as a TFDS data set.

The data are CC-BY-NC-4.0 and are not shipped. Download a subset, with its media:

    hf download PKU-Alignment/align-anything --repo-type dataset --local-dir RAW \\
        --include 'text-image-to-text/*'

Build it (T2V, TV2T and TI2TI read their videos and images out of the archives):

    python -m alanything_jax.data.builders.align_anything ti2t RAW ~/tensorflow_datasets

Load it, here or with TFDS; `DIR/val` is the split `val`, where there is one:

    alanything train CONFIG --data.path ~/tensorflow_datasets/align_anything/ti2t/1.0.0
    tfds.builder_from_directory(DIR).as_data_source("train")

Large subsets go over many workers with Apache Beam (the `beam` extra): `builder(...,
beam=True)` and TFDS's own `beam_options`. Extract the archives first: a worker reads them
from the start. Bad rows are listed, by part, in `RAW/quarantine`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alanything_jax.data import groups, sources, store
from alanything_jax.data.formats.align_anything_columns import SUBSETS
from alanything_jax.data.quarantine import Quarantine

NAME, VERSION, ROWS_PER_PART = "align_anything", "1.0.0", 1000
_SPLITS = {"train": "*train*", "val": "val*"}


def files(subset: str, raw: Path) -> dict[str, list[Path]]:
    """The downloaded files of a subset, by split.

    Raises FileNotFoundError: none for training.
    """
    folder = Path(raw) / SUBSETS[subset].folder
    found = {
        split: [p for p in sorted(folder.glob(name)) if p.suffix in sources.SUFFIXES]
        for split, name in _SPLITS.items()
    }
    if not found["train"]:
        raise FileNotFoundError(
            f"no train*.parquet or *train.json in {folder}. Download it: {__doc__}"
        )
    return {split: paths for split, paths in found.items() if paths}


def records(
    subset: str, quarantine: str, part: tuple[str, int, int]
) -> Iterator[tuple[str, dict[str, str]]]:
    """(key, features) of rows `first` to `stop` - 1 of a file; bad ones are set aside.

    Args:
      quarantine: the folder for their list. part: (path, first, stop).

    Raises TooManyBad: more than 5% of the part.
    """
    path, first, stop = part
    listed = Path(quarantine) / f"{subset}-{Path(path).stem}-{first}.jsonl"
    aside = Quarantine(listed)
    how = {"subset": subset, "first": first, "stop": stop}
    for row, example in groups.examples(path, NAME, **how):
        aside.seen += 1
        if isinstance(example, Exception):
            aside.add(path, row, example)
            continue
        yield example.id, {"id": example.id, "example": store.to_text(example)}
    if aside.entries:
        aside.close()


@functools.cache
def builder_class() -> Any:
    """The `tfds.core.GeneratorBasedBuilder`, one BuilderConfig a subset."""
    import tensorflow_datasets as tfds

    class AlignAnything(tfds.core.GeneratorBasedBuilder):
        """See the module."""

        VERSION = tfds.core.Version(VERSION)
        MANUAL_DOWNLOAD_INSTRUCTIONS = __doc__
        BUILDER_CONFIGS = [
            tfds.core.BuilderConfig(name=name, description=subset.folder)
            for name, subset in SUBSETS.items()
        ]
        name = NAME
        beam = False
        # Looking for it, TFDS would import importlib_resources, which it does not require.
        code_path = None

        def _info(self):
            text = {"example": tfds.features.Text(), "id": tfds.features.Text()}
            return tfds.core.DatasetInfo(
                builder=self,
                description="A prompt, two responses and feedback on them, as JSON.",
                features=tfds.features.FeaturesDict(text),
                homepage="https://huggingface.co/datasets/PKU-Alignment/align-anything",
                license="CC-BY-NC-4.0",
            )

        def _split_generators(self, dl_manager):
            raw = Path(dl_manager.manual_dir)
            found = files(self.builder_config.name, raw)
            return {
                split: self._generate_examples(paths, raw)
                for split, paths in found.items()
            }

        def _generate_examples(self, paths, raw):
            make = functools.partial(
                records, self.builder_config.name, str(raw / "quarantine")
            )
            if not self.beam:
                return (made for p in paths for made in make((str(p), 0, sys.maxsize)))
            import apache_beam as beam

            parts = [
                (str(p), *span)
                for p in paths
                for span in sources.spans(p, ROWS_PER_PART)
            ]
            return beam.Create(parts) | beam.Reshuffle() | beam.FlatMap(make)

    return AlignAnything


def builder(subset: str, data_dir: str | Path, beam: bool = False) -> Any:
    """The TFDS builder of a subset; `beam` makes its records on Apache Beam.

    Raises ValueError: no such subset.
    """
    if subset not in SUBSETS:
        raise ValueError(f"subset {subset!r}: choose one of {[*SUBSETS]}.")
    made = builder_class()(
        config=subset, data_dir=str(data_dir), file_format="array_record"
    )
    made.beam = beam
    return made


def build(
    subset: str, raw: str | Path, data_dir: str | Path, beam_options: Any = None
) -> Path:
    """Build a subset from its downloaded files; returns the data set's folder.

    With `beam_options` (Apache Beam's PipelineOptions) on Beam, else in this process.

    Raises: as `files` and `records`.
    """
    import tensorflow_datasets as tfds

    made = builder(subset, data_dir, beam=beam_options is not None)
    how = tfds.download.DownloadConfig(manual_dir=str(raw), beam_options=beam_options)
    made.download_and_prepare(download_config=how)
    return Path(made.data_dir)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: python -m {__spec__.name} SUBSET RAW DATA_DIR\n\n{__doc__}")
    print(f"wrote {build(*sys.argv[1:])}")
