"""The decoder every text family shares: declared once, scanned over stacked layers.

Pre-norm transformer with rotary positions, grouped-query attention and SwiGLU; the
flags of `DecoderConfig` cover Llama, Mistral, Qwen2 and Qwen3.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from alanything_jax.models import attention, blockwise, layers
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.params import ParamSpec
from alanything_jax.schema import Batch
from alanything_jax.sharding.rules import Rules, constrain

REMAT = ("none", "dots", "full")


def param_specs(cfg: DecoderConfig, score_head: bool = False) -> dict[str, Any]:
    """The declaration of every parameter; `score_head` adds a scalar head."""
    L, D, F, V = cfg.num_layers, cfg.width, cfg.ffw_width, cfg.vocab_size
    N, K, H = cfg.num_heads, cfg.num_kv_heads, cfg.head_width

    def kernel(shape, axes, fan_in, bias):
        entry = {"kernel": ParamSpec((L, *shape), ("layers", *axes), "normal", fan_in)}
        if bias is not None:
            dims, names = shape[bias:], axes[bias:]
            entry["bias"] = ParamSpec((L, *dims), ("layers", *names), "zeros")
        return entry

    def norm(size, axis):
        return {"scale": ParamSpec((L, size), ("layers", axis), "ones")}

    qkv, o, mlp = (
        1 if cfg.qkv_bias else None,
        2 if cfg.o_bias else None,
        1 if cfg.mlp_bias else None,
    )
    attn = {
        "q": kernel((D, N, H), ("embed", "heads", None), D, qkv),
        "k": kernel((D, K, H), ("embed", "kv_heads", None), D, qkv),
        "v": kernel((D, K, H), ("embed", "kv_heads", None), D, qkv),
        "o": kernel((N, H, D), ("heads", None, "embed"), N * H, o),
    }
    if cfg.qk_norm:
        attn |= {"q_norm": norm(H, None), "k_norm": norm(H, None)}
    specs = {
        "embed": {
            "text": {"table": ParamSpec((V, D), ("vocab", "embed"), "normal", D)}
        },
        "layers": {
            "attn_norm": norm(D, "embed"),
            "attn": attn,
            "mlp_norm": norm(D, "embed"),
            "mlp": {
                "gate": kernel((D, F), ("embed", "mlp"), D, mlp),
                "up": kernel((D, F), ("embed", "mlp"), D, mlp),
                "down": kernel((F, D), ("mlp", "embed"), F, mlp),
            },
        },
        "final_norm": {"scale": ParamSpec((D,), ("embed",), "ones")},
    }
    heads = {}
    if not cfg.tied and not score_head:
        heads["text"] = {"kernel": ParamSpec((D, V), ("embed", "vocab"), "normal", D)}
    if score_head:
        heads["score"] = {"kernel": ParamSpec((D, 1), ("embed", None), "normal", D)}
    return specs | ({"heads": heads} if heads else {})


def hidden(
    params: dict,
    cfg: DecoderConfig,
    batch: Batch,
    *,
    lora: dict | None = None,
    lora_scale: float = 1.0,
    compute_dtype: Any = jnp.float32,
    mixed: bool = False,
    remat: str = "none",
    backend: str = "dense",
    block: int = 128,
    rules: Rules | None = None,
) -> jax.Array:
    """Hidden states [B, T, D] after the final norm, for a whole batch of groups.

    `mixed` multiplies by kernels in bfloat16 while all else is in `compute_dtype`;
    `rules` place activations on the mesh that is set.
    """
    rows = attention.rows_of(batch)
    full = attention.plan(rows, None, backend, block)
    sliding = None
    if any(cfg.window_layers):
        sliding = attention.plan(rows, cfg.sliding_window, backend, block)

    def attend(q, k, v, slides, _):
        if sliding is None:
            return attention.attend(q, k, v, full, rules), None
        mask = jax.tree.map(lambda a, b: jnp.where(slides, a, b), sliding, full)
        return attention.attend(q, k, v, mask, rules), None

    def place(x):
        return constrain(x, ("batch", "length", None), rules)

    # Each device casts its shards, so that it is the small copies that travel.
    params = jax.tree.map(lambda x: x.astype(compute_dtype), params)
    x = place(embed(params, batch.tokens, compute_dtype))
    position = batch.position[:, 0]
    return _run(
        params, cfg, x, position, attend, None, lora, lora_scale, remat, mixed, place
    )[0]


def embed(params: dict, tokens: jax.Array, compute_dtype: Any) -> jax.Array:
    """Token ids [B, T] -> [B, T, D]."""
    return jnp.take(params["embed"]["text"]["table"], tokens, axis=0).astype(
        compute_dtype
    )


def _run(
    params,
    cfg,
    x,
    position,
    attend,
    cache,
    lora,
    lora_scale,
    remat,
    mixed=False,
    place=lambda x: x,
):
    """Scan the stacked layers; `attend(q, k, v, slides, cache) -> (out, cache)`."""
    if remat not in REMAT:
        raise ValueError(f"remat {remat!r}: choose one of {REMAT}.")
    tables = layers.rope_tables(cfg, position)
    slides = jnp.array(cfg.window_layers or (False,) * cfg.num_layers)
    lora_layers = (lora or {}).get("layers", {})

    def body(x, layer):
        p, adapter, slides, cache = layer
        x, cache = _layer(
            x, p, adapter, cfg, tables, slides, cache, attend, lora_scale, mixed
        )
        return place(x), cache

    if remat == "full":
        body = jax.checkpoint(body)
    elif remat == "dots":
        policies = jax.checkpoint_policies
        policy = policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable,
            policies.save_only_these_names(blockwise.SAVED),
        )
        body = jax.checkpoint(body, policy=policy)
    x, cache = jax.lax.scan(body, x, (params["layers"], lora_layers, slides, cache))
    return layers.rms_norm(x, params["final_norm"]["scale"], cfg.norm_eps), cache


def _layer(x, p, adapter, cfg, tables, slides, cache, attend, scale, mixed):
    """One pre-norm block: attention, then feed-forward, each added to x."""
    attn, lora = p["attn"], adapter.get("attn", {})
    h = layers.rms_norm(x, p["attn_norm"]["scale"], cfg.norm_eps)
    q, k, v = (
        layers.dense(h, attn[n], lora.get(n), 1, scale, mixed) for n in ("q", "k", "v")
    )
    if cfg.qk_norm:
        q = layers.rms_norm(q, attn["q_norm"]["scale"], cfg.norm_eps)
        k = layers.rms_norm(k, attn["k_norm"]["scale"], cfg.norm_eps)
    q, k = layers.rotate(q, *tables), layers.rotate(k, *tables)
    out, cache = attend(q, k, v, slides, cache)
    x = x + layers.dense(out, attn["o"], lora.get("o"), 2, scale, mixed)
    h = layers.rms_norm(x, p["mlp_norm"]["scale"], cfg.norm_eps)
    mlp = layers.gated_mlp(h, p["mlp"], adapter.get("mlp", {}), scale, mixed)
    return x + mlp, cache


@flax.struct.dataclass
class Cache:
    """Keys and values of tokens already seen.

    Attributes:
      k, v: [L, B, Tmax, K, H].
      length: [B] int32, how many slots of each row are in use.
    """

    k: jax.Array
    v: jax.Array
    length: jax.Array


def init_cache(
    cfg: DecoderConfig, batch_size: int, max_tokens: int, dtype: Any = jnp.float32
) -> Cache:
    """An empty cache for `batch_size` sequences of at most `max_tokens`."""
    shape = (cfg.num_layers, batch_size, max_tokens, cfg.num_kv_heads, cfg.head_width)
    return Cache(
        jnp.zeros(shape, dtype),
        jnp.zeros(shape, dtype),
        jnp.zeros((batch_size,), jnp.int32),
    )


def step(
    params: dict,
    cfg: DecoderConfig,
    tokens: jax.Array,
    cache: Cache,
    *,
    num_new: jax.Array | None = None,
    lora: dict | None = None,
    lora_scale: float = 1.0,
) -> tuple[jax.Array, Cache]:
    """Append tokens [B, S] to each row's cache; hidden states [B, S, D] and new cache.

    `num_new` [B] says how many of the S are real (prompts of unequal length are padded
    on the right): what the padding wrote is overwritten by the next call.
    """
    batch_size, width = tokens.shape
    position = cache.length[:, None] + jnp.arange(width)
    slots = jnp.arange(cache.k.shape[2])

    def attend(q, k, v, slides, layer_cache):
        keys, values = (
            jax.vmap(
                lambda c, new, at: jax.lax.dynamic_update_slice_in_dim(c, new, at, 0)
            )(old, new.astype(old.dtype), cache.length)
            for old, new in zip(layer_cache, (k, v), strict=True)
        )
        mask = slots <= position[..., None]
        if any(cfg.window_layers):
            near = position[..., None] - slots < cfg.sliding_window
            mask &= near | ~slides
        out = attention.dense(q, keys.astype(q.dtype), values.astype(q.dtype), mask)
        return out, (keys, values)

    x = embed(params, tokens, cache.k.dtype)
    x, (k, v) = _run(
        params, cfg, x, position, attend, (cache.k, cache.v), lora, lora_scale, "none"
    )
    grown = jnp.full((batch_size,), width) if num_new is None else num_new
    return x, Cache(k, v, cache.length + grown.astype(jnp.int32))
