"""Which columns the eight subsets of PKU-Alignment/align-anything have, as a table.

`A|B` are names of which the first one there is taken; `{n}` is 1 and 2.

The names of T2I (its start), TI2T (its start), T2A, TV2T and what T2T and TA2T share with
them are those of the data set's cards and of code that reads it. Not seen, and therefore
accepted by pattern: the critiques of TI2T (as TV2T or as T2A), `overall_image`, and in
T2V and TI2TI all but the prompt: media of a response by the usual spellings, and
dimensions by their `<dimension>_rate_{n}`, whose letter is their first one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from alanything_jax.schema import Modality

_SHARED = {
    "p": "prompt_following",
    "o": "objective_rules",
    "i": "information_richness",
    "s": "safety",
}


@dataclasses.dataclass(frozen=True)
class Subset:
    """One subset.

    Attributes:
      folder: its configuration's name, and its folder, in the published data set.
      prompt: the column of the prompt's text.
      media: what else the prompt shows: (kind, column).
      responses: what response n is made of, in order: (kind, column).
      target: `<letter>_<target>` says which response is better along a dimension, and
        `overall_<target>` which is better.
      letters: letter -> dimension, of `<letter>_<target>` and `<letter>_rationale_{n}`.
    """

    folder: str
    prompt: str
    responses: tuple[tuple[Modality, str], ...]
    media: tuple[tuple[Modality, str], ...] = ()
    target: str = "response"
    letters: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {**_SHARED, "c": "clarity"}
    )


_TEXT = (("text", "response_{n}"),)

SUBSETS: Mapping[str, Subset] = {
    "t2t": Subset("text-to-text", "question|prompt", _TEXT),
    "ti2t": Subset(
        "text-image-to-text", "question|prompt", _TEXT, (("image", "image"),)
    ),
    "ta2t": Subset(
        "text-audio-to-text", "prompt|question", _TEXT, (("audio", "audio_path|audio"),)
    ),
    "tv2t": Subset(
        "text-video-to-text", "prompt|question", _TEXT, (("video", "video_path|video"),)
    ),
    "t2i": Subset(
        "text-to-image",
        "prompt|question",
        (("image", "image_{n}"),),
        target="image",
        letters={**_SHARED, "a": "aesthetics"},
    ),
    "t2a": Subset(
        "text-to-audio",
        "prompt|question",
        (("audio", "response_{n}"),),
        target="audio",
        letters={**_SHARED, "o": "audio_quality", "a": "consistency"},
    ),
    "t2v": Subset(
        "text-to-video",
        "prompt|question",
        (("video", "video_{n}|video_{n}_path|video_path_{n}|response_{n}"),),
        target="video|response",
        letters={
            **_SHARED,
            "o": "video_objective_reality",
            "v": "video_objective_reality",
            "a": "aesthetic",
            "t": "temporal_consistency",
            "c": "content_coherence",
            "m": "motion_naturalness",
        },
    ),
    "ti2ti": Subset(
        "text-image-to-text-image",
        "question|prompt|input_text",
        (
            ("text", "response_{n}|response_{n}_text|output_text_{n}|text_{n}"),
            (
                "image",
                "output_image_{n}|output_image_url_{n}|response_{n}_image|"
                "response_image_{n}|image_{n}",
            ),
        ),
        (("image", "image|image_path|image_url|input_image"),),
        target="response|output|image",
        letters={**_SHARED, "c": "clarity", "m": "modality_consistency"},
    ),
}

# Said of a response, and of both together.
CRITIQUES = "text_critique_{n}|text_{n}_feedback"
OVERALL_CRITIQUE = "overall_textfeedback"
# Known columns that have no place in an Example but `extra`.
MODELS = "model_{n}|res_{n}_from|image_{n}_model|video_{n}_model|response_{n}_model"
KEPT = ("refine_prompt", "reasoning")
