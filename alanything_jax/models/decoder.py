"""The decoder every text family shares: declared once, scanned over stacked layers.

A transformer with rotary positions, grouped-query attention and a gated feed-forward; the
flags of `DecoderConfig` cover the families, `fuse` puts media into its rows.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from alanything_jax.models import attention, blockwise, fuse, layers, moe, quant
from alanything_jax.models import cache as caches
from alanything_jax.models.cache import Cache, Recent
from alanything_jax.models.cache import init_cache as init_cache
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

    unit = "zeros" if cfg.norm_plus_one else "ones"

    def norm(*size, axis=None):
        axes = ("layers", *[None] * (len(size) - 1), axis)
        return {"scale": ParamSpec((L, *size), axes, unit)}

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
    if cfg.qk_norm == "rms":
        attn |= {"q_norm": norm(H), "k_norm": norm(H)}
    if cfg.qk_norm == "layer":
        for name, heads in (("q_norm", N), ("k_norm", K)):
            bias = ParamSpec((L, heads, H), ("layers", None, None), "zeros")
            attn[name] = norm(heads, H) | {"bias": bias}
    names = ["attn_norm", "mlp_norm"]
    if cfg.norm_place == "both":
        names += ["attn_post_norm", "mlp_post_norm"]
    specs = {
        "embed": {
            "text": {"table": ParamSpec((V, D), ("vocab", "embed"), "normal", D)}
        },
        "layers": {
            **{name: norm(D, axis="embed") for name in names},
            "attn": attn,
            "mlp": moe.specs(cfg)
            if cfg.moe
            else {
                "gate": kernel((D, F), ("embed", "mlp"), D, mlp),
                "up": kernel((D, F), ("embed", "mlp"), D, mlp),
                "down": kernel((F, D), ("mlp", "embed"), F, mlp),
            },
        },
        "final_norm": {"scale": ParamSpec((D,), ("embed",), unit)},
    }
    if cfg.encoders:
        specs["encoders"] = fuse.encoder_specs(cfg)
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
    params = quant.cast(params, compute_dtype)
    x = place(embed(params, cfg, batch.tokens, compute_dtype))
    x, taps = fuse.put_media(
        params, cfg, x, batch.media, backend=backend, block=block, rules=rules
    )
    return _run(
        params,
        cfg,
        place(x),
        batch.position,
        attend,
        None,
        lora,
        lora_scale,
        remat,
        mixed,
        place,
        taps,
        rules,
    )[0]


def embed(
    params: dict, cfg: DecoderConfig, tokens: jax.Array, compute_dtype: Any, loop=False
) -> jax.Array:
    """Token ids [B, T] -> [B, T, D]; `loop`: as `cache.lookup`."""
    table = params["embed"]["text"]["table"]
    x = caches.lookup(table, tokens) if loop else jnp.take(table, tokens, axis=0)
    if cfg.embed_scale is not None:
        # The factor is rounded as the table is: checkpoints were trained so.
        x = x * jnp.asarray(cfg.embed_scale, x.dtype)
    return x.astype(compute_dtype)


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
    taps=None,
    rules=None,
):
    """Scan the stacked layers; `attend(q, k, v, slides, cache) -> (out, cache)`."""
    if remat not in REMAT:
        raise ValueError(f"remat {remat!r}: choose one of {REMAT}.")
    tables = layers.rope_tables(cfg, position)
    local = layers.rope_tables(cfg, position, True) if cfg.local_theta else tables
    slides = jnp.array(cfg.window_layers or (False,) * cfg.num_layers)
    number = jnp.arange(cfg.num_layers)
    lora_layers = (lora or {}).get("layers", {})

    def body(x, layer):
        p, adapter, slides, number, cache = layer
        turns = tables
        if cfg.local_theta:
            pairs = zip(local, tables, strict=True)
            turns = tuple(jnp.where(slides, near, far) for near, far in pairs)
        x, cache = _layer(
            x, p, adapter, cfg, turns, slides, cache, attend, lora_scale, mixed, rules
        )
        if taps is not None:
            tap = taps[jnp.minimum(number, cfg.deepstack - 1)]
            x = x + jnp.where(number < cfg.deepstack, tap, 0)
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
    stacked = (params["layers"], lora_layers, slides, number, cache)
    x, cache = jax.lax.scan(body, x, stacked)
    return _norm(cfg, x, params["final_norm"]), cache


def _norm(cfg, x, p):
    return layers.rms_norm(x, p["scale"], cfg.norm_eps, cfg.norm_plus_one)


def _qk_norm(cfg, x, p):
    if cfg.qk_norm == "layer":
        return layers.layer_norm(x, p["scale"], p["bias"], 1e-5)
    return _norm(cfg, x, p) if cfg.qk_norm else x


def _layer(x, p, adapter, cfg, tables, slides, cache, attend, scale, mixed, rules):
    """One block: attention, then feed-forward, each added to x."""
    attn, lora = p["attn"], adapter.get("attn", {})
    before, both = cfg.norm_place != "after", cfg.norm_place == "both"

    def add(x, out, name):
        if cfg.norm_place == "after":
            out = _norm(cfg, out, p[f"{name}_norm"])
        elif both:
            out = _norm(cfg, out, p[f"{name}_post_norm"])
        return x + out

    h = _norm(cfg, x, p["attn_norm"]) if before else x
    q, k, v = (
        layers.dense(h, attn[n], lora.get(n), 1, scale, mixed) for n in ("q", "k", "v")
    )
    q = _qk_norm(cfg, q, attn.get("q_norm"))
    k = _qk_norm(cfg, k, attn.get("k_norm"))
    q, k = layers.rotate(q, *tables), layers.rotate(k, *tables)
    if cfg.query_scale is not None:
        # Backends divide by the root of the head's width.
        q = q * jnp.asarray(cfg.query_scale * cfg.head_width**0.5, q.dtype)
    out, cache = attend(q, k, v, slides, cache)
    x = add(x, layers.dense(out, attn["o"], lora.get("o"), 2, scale, mixed), "attn")
    h = _norm(cfg, x, p["mlp_norm"]) if before else x
    if cfg.moe:
        mlp = moe.mlp(h, p["mlp"], cfg, rules)
    else:
        mlp = layers.gated_mlp(
            h, p["mlp"], adapter.get("mlp", {}), scale, mixed, cfg.activation
        )
    return add(x, mlp, "mlp"), cache


def step(
    params: dict,
    cfg: DecoderConfig,
    tokens: jax.Array,
    cache: Cache,
    *,
    num_new: jax.Array | None = None,
    prompt: Batch | None = None,
    embedded: jax.Array | None = None,
    lora: dict | None = None,
    lora_scale: float = 1.0,
) -> tuple[jax.Array, Cache]:
    """Append tokens [B, S] to each row's cache; hidden states [B, S, D] and new cache.

    `num_new` [B] says how many of the S are real (prompts of unequal length are padded
    on the right): what the padding wrote is overwritten by the next call. `prompt` has the
    media, positions and spans of the first tokens, where there are any. `embedded`
    [B, S, D] stands in the place of the tokens' embeddings.
    """
    batch_size, width = tokens.shape
    place = cache.length[:, None] + jnp.arange(width)
    slots = jnp.arange(cache.k.shape[-1])
    turns = jnp.stack([place + cache.ahead[:, None]] * 3, axis=1)
    grown = jnp.full((batch_size,), width) if num_new is None else num_new
    ahead = cache.ahead
    if prompt is not None:
        turns = prompt.position
        last = jnp.take_along_axis(turns[:, 0], grown[:, None] - 1, axis=1)[:, 0]
        ahead = last + 1 - grown

    def attend(q, k, v, slides, layer_cache):
        keys, values = caches.write(layer_cache, caches.as_cached(k, v), cache.length)
        mask = slots <= place[..., None]
        if prompt is not None:
            span = jnp.pad(prompt.span, ((0, 0), (0, len(slots) - width)))
            mask |= (span[:, None] == prompt.span[..., None]) & (span[:, None] > 0)
        if any(cfg.window_layers):
            near = place[..., None] - slots < cfg.sliding_window
            mask &= near | ~slides
        return caches.attend(q, [(keys, values, mask)]), (keys, values)

    x, taps = embedded, None
    dtype, mixed = _compute(params, cache)
    if embedded is None:
        x = embed(params, cfg, tokens, dtype)
    if prompt is not None:
        x, taps = fuse.put_media(params, cfg, x, prompt.media)
    x, (k, v) = _run(
        params,
        cfg,
        x,
        turns,
        attend,
        (cache.k, cache.v),
        lora,
        lora_scale,
        "none",
        mixed,
        taps=taps,
    )
    return x, Cache(k, v, cache.length + grown.astype(jnp.int32), ahead)


def _compute(params, cache):
    """Type of hidden states: the cache's; and whether kernels are narrower than it."""
    dtype = jax.tree.leaves(cache.k)[0].dtype
    table = params["embed"]["text"]["table"].dtype
    return dtype, dtype == jnp.float32 and table == jnp.bfloat16


def append(
    params: dict,
    cfg: DecoderConfig,
    tokens: jax.Array,
    cache: Cache,
    recent: Recent,
    *,
    lora: dict | None = None,
    lora_scale: float = 1.0,
) -> tuple[jax.Array, Recent]:
    """One more token [B] of each row, into `recent`; hidden states [B, D].

    `params["layers"]`, the adapter's and both caches are stacked, or all are tuples.
    """
    place = cache.length + recent.count
    turns = jnp.stack([place + cache.ahead] * 3, axis=1)[..., None]
    slots, fresh = (
        jnp.arange(jax.tree.leaves(store.k)[0].shape[-1]) for store in (cache, recent)
    )
    old = (slots < cache.length[:, None])[:, None]
    new = (fresh <= recent.count)[None, None]

    def attend(q, k, v, slides, layer_cache):
        *before, keys, values = layer_cache
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(
                store, x.astype(store.dtype), recent.count, axis
            )
            for store, x, axis in zip(
                (keys, values), caches.as_cached(k, v), (3, 2), strict=True
            )
        )
        masks = old, new
        if any(cfg.window_layers):
            far = slots <= (place - cfg.sliding_window)[:, None, None]
            masks = (
                old & ~(far & slides),
                new & ~((fresh <= recent.count - cfg.sliding_window) & slides),
            )
        parts = [(*before, masks[0]), (keys, values, masks[1])]
        return caches.attend(q, parts), (keys, values)

    dtype, mixed = _compute(params, cache)
    x = embed(params, cfg, tokens[:, None], dtype, loop=True)
    stores = (cache.k, cache.v, recent.k, recent.v)
    run = _run_unstacked if isinstance(cache.k, tuple) else _run
    x, (k, v) = run(
        params, cfg, x, turns, attend, stores, lora, lora_scale, "none", mixed
    )
    return x[:, 0], Recent(k, v, recent.count + 1)


def _run_unstacked(
    params, cfg, x, position, attend, stores, lora, lora_scale, remat, mixed
):
    """`_run` over tuples of layers, without taps."""
    del remat
    far = layers.rope_tables(cfg, position)
    near = layers.rope_tables(cfg, position, True) if cfg.local_theta else far
    # Else XLA for CPU takes sines anew for every head of every layer.
    far, near = jax.lax.optimization_barrier((far, near))
    adapters = (lora or {}).get("layers", ({},) * cfg.num_layers)
    slides = cfg.window_layers or (False,) * cfg.num_layers
    made = []
    for p, adapter, slide, *cache in zip(
        params["layers"], adapters, slides, *stores, strict=True
    ):
        turns = near if slide else far
        flag = jnp.array(slide)
        x, new = _layer(
            x, p, adapter, cfg, turns, flag, cache, attend, lora_scale, mixed, None
        )
        made.append(new)
    return _norm(cfg, x, params["final_norm"]), tuple(zip(*made, strict=True))
