"""Accuracy on easy-VQA's test pictures, after configs/vqa_easy.py and vqa_easy_dpo.py.

alanything export runs/vqa_easy_dpo runs/vqa_easy_dpo/export
alanything evaluate configs/vqa_easy_eval.py

Figures are in the docstrings of those two. transformers' LlavaForConditionalGeneration,
with its own processor, gives the same answer to each of the first 100 questions.
"""

from alanything_jax.data.groups import Data
from alanything_jax.pipelines.eval_answers import AnswerEval


def config() -> AnswerEval:
    """Greedy answers, right where they are the test split's word for word."""
    return AnswerEval(
        name="vqa_easy_eval",
        models=(("sft", "runs/vqa_easy/export"), ("dpo", "runs/vqa_easy_dpo/export")),
        data=Data(
            path="pypi:easy-vqa==1.0/easy_vqa/data//test/questions.json",
            sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
            format="easy_vqa",
        ),
    )
