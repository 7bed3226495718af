"""Prompts in; answers of several models, grades, choices and language feedback out.

alanything annotate configs/annotate.py --stages.prompts prompts.jsonl

The judge is a server with OpenAI's interface, or, with `--judge.url "" --judge.model DIR`, a
model in this process. Per record of two answers it is asked about 2 x 5 grades, 2 x 5
choices, 2 criticisms and 2 overall choices. `--label-studio` also writes tasks for people,
`--annotated FILE` reads Label Studio's JSON export of them back, and says how often people
and judge agree. It has no `--tiny`: it needs a judge.
"""

from alanything_jax.pipelines.annotate import Annotate
from alanything_jax.pipelines.annotate_recipe import Annotation
from alanything_jax.pipelines.asking import JudgeSource


def config() -> Annotation:
    """Two small chat models, a large one judges."""
    return Annotation(
        stages=Annotate(prompts="prompts.jsonl"),
        models=(
            ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
            ("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct"),
        ),
        judge=JudgeSource("Qwen/Qwen3-8B", url="http://localhost:8000/v1"),
    )
