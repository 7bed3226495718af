"""Eval-Anything, understanding: 164 questions over text, a picture or clip, and a sound.

alanything evaluate configs/amu.py

First get the data (1 GB) and unpack its archives in the same folder:

    hf download PKU-Alignment/EvalAnything-AMU --repo-type dataset \\
        --local-dir data/EvalAnything-AMU

and start a judge with OpenAI's interface (vLLM, SGLang, llama.cpp, a provider), or give
`--judge.url "" --judge.model DIR` for a model in this process. The judge reads text only.
Cost: an answer and a judgement a question. It has no `--tiny`: it needs the data.
"""

from alanything_jax.hub.source import ModelSource
from alanything_jax.pipelines.asking import JudgeSource
from alanything_jax.pipelines.eval_anything import AMU


def config() -> AMU:
    """The playground's aligned model, until there is a larger one."""
    return AMU(
        data="data/EvalAnything-AMU",
        model=ModelSource("runs/playground/export"),
        judge=JudgeSource("Qwen/Qwen3-8B", url="http://localhost:8000/v1"),
    )
