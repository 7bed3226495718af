"""The demo's models against each other, judged by the playground's oracle.

alanything evaluate configs/arena.py        (after `make demo`)

The page `runs/arena/vote.html` lets a person vote on the same battles, blind. For a judge
behind an OpenAI-compatible URL give `judge=Endpoint(url, model, api_key_env="MY_KEY")` of
`alanything_jax.rewards.judge` instead of the rule.
"""

from alanything_jax.generation.sampler import Sampling
from alanything_jax.pipelines.arena import Arena
from alanything_jax.playground import oracle, tasks


def config() -> Arena:
    """Three models, every pair on 64 new prompts."""
    return Arena(
        models=(
            ("base", "runs/demo/base/export"),
            ("aligned", "runs/demo/export"),
            ("binary", "runs/demo/binary/export"),
        ),
        prompts=tuple(tasks.prompts("test", 64, 77)),
        rule=oracle.rule,
        judge_name="oracle",
        sampling=Sampling(temperature=1.0),
        max_new_tokens=48,
    )
