"""Mimi (Kyutai's Moshi, arXiv:2410.00037): 12.5 frames a second, semantic and acoustic.

SEANet as in EnCodec without its LSTM, then a causal transformer of a sliding window and a
convolution to half the frame rate; back in mirror image. One residual quantizer reads the
latents for meaning (its first codes were distilled from WavLM), another for sound.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from alanything_jax.models.codecs import seanet, vq
from alanything_jax.models.layers import layer_norm, rotate

# Arrays of a transformer layer: our name -> that on disk; matrices are transposed.
LAYER = {
    "query": "self_attn.q_proj.weight",
    "key": "self_attn.k_proj.weight",
    "value": "self_attn.v_proj.weight",
    "out": "self_attn.o_proj.weight",
    "up": "mlp.fc1.weight",
    "down": "mlp.fc2.weight",
    "norm_in/scale": "input_layernorm.weight",
    "norm_in/bias": "input_layernorm.bias",
    "norm_mlp/scale": "post_attention_layernorm.weight",
    "norm_mlp/bias": "post_attention_layernorm.bias",
    "gain_attention": "self_attn_layer_scale.scale",
    "gain_mlp": "mlp_layer_scale.scale",
}
TRANSFORMERS = ("encoder_transformer", "decoder_transformer")


@dataclasses.dataclass(frozen=True)
class Mimi:
    """Codes run frame by frame, semantic ones first; all levels share 0 .. size - 1.

    Attributes:
      rate: samples a second; nothing is resampled. size: codes of a codebook.
      codebooks: levels used, num_semantic_quantizers .. num_quantizers.
      max_seconds: of a block. stride: latents of the transformers to one frame of codes.
      The others have the names and meaning that they have in config.json.
    """

    rate: int = 24000
    size: int = 2048
    codebooks: int = 32
    max_seconds: float = 10.0
    stride: int = 2
    num_quantizers: int = 32
    num_semantic_quantizers: int = 1
    vector_quantization_hidden_dimension: int = 256
    hidden_size: int = 512
    num_filters: int = 64
    num_residual_layers: int = 1
    upsampling_ratios: tuple[int, ...] = (8, 6, 5, 4)
    kernel_size: int = 7
    last_kernel_size: int = 3
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    compress: int = 2
    pad_mode: str = "constant"
    use_conv_shortcut: bool = False
    upsample_groups: int = 512
    num_hidden_layers: int = 8
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int = 64
    sliding_window: int = 250
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    kind: ClassVar = "audio"
    stop: ClassVar = True

    def __post_init__(self):
        least, most = self.num_semantic_quantizers, self.num_quantizers
        if not least <= self.codebooks <= most:
            raise ValueError(f"codebooks={self.codebooks}: give {least} to {most}.")

    @property
    def frame(self) -> int:
        """Codes of a frame."""
        return self.codebooks

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return math.prod(self.upsampling_ratios) * self.stride

    @property
    def length(self) -> int:
        """Most codes of a block."""
        return seanet.limit(self)

    @property
    def _projected(self) -> bool:
        return self.vector_quantization_hidden_dimension != self.hidden_size

    @property
    def _quantizers(self) -> dict[str, tuple[int, int]]:
        """Per quantizer the levels it has and those used."""
        semantic = self.num_semantic_quantizers
        return {
            "semantic": (semantic, semantic),
            "acoustic": (self.num_quantizers - semantic, self.codebooks - semantic),
        }

    @property
    def _convs(self) -> tuple[seanet.Layers, seanet.Layers]:
        """Convolutions to and from the codes' frame rate."""
        sizes = (self.hidden_size, self.hidden_size, 2 * self.stride, self.stride)
        down = seanet.Conv("downsample.conv", *sizes, bias=False, pad="replicate")
        up = seanet.Conv(
            "upsample.conv", *sizes, groups=self.upsample_groups, bias=False, up=True
        )
        return (down,), (up,)

    @property
    def _layers(self) -> seanet.Layers:
        """All convolutions."""
        down, up = self._convs
        return seanet.encoder(self) + down + up + seanet.decoder(self)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the arrays that `params` holds."""
        hidden, width = self.hidden_size, self.vector_quantization_hidden_dimension
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (levels, _) in self._quantizers.items():
            shapes[f"{name}/table"] = (levels, self.size, width)
            if self._projected:
                shapes[f"{name}/in"] = (hidden, width)
                shapes[f"{name}/out"] = (width, hidden)
        query = self.num_attention_heads * self.head_dim
        key = self.num_key_value_heads * self.head_dim
        matrices = {
            "query": (hidden, query),
            "key": (hidden, key),
            "value": (hidden, key),
            "out": (query, hidden),
            "up": (hidden, self.intermediate_size),
            "down": (self.intermediate_size, hidden),
        }
        for name in TRANSFORMERS:
            for part in LAYER:
                shape = matrices.get(part, (hidden,))
                shapes[f"{name}/{part}"] = (self.num_hidden_layers, *shape)
        return seanet.shapes(self._layers) | shapes

    def coded(
        self, params: seanet.Params, samples: jax.Array, count: jax.Array
    ) -> jax.Array:
        """As `seanet.to_codes`, which compiles it."""
        x, count = seanet.apply(params, seanet.encoder(self), samples[:, None], count)
        x = _transformer(self, params, TRANSFORMERS[0], x)
        x, _ = seanet.apply(params, self._convs[0], x, count)
        codes = []
        for name, (_, used) in self._quantizers.items():
            latents = x @ params[f"{name}/in"] if self._projected else x
            if used:
                table = params[f"{name}/table"][:used]
                codes.append(vq.quantize(table, latents)[0])
        return jnp.concatenate(codes, axis=-1).T

    def restored(
        self, params: seanet.Params, codes: jax.Array, count: jax.Array
    ) -> jax.Array:
        """As `seanet.to_audio`, which compiles it."""
        latents, at = jnp.zeros((codes.shape[1], self.hidden_size)), 0
        for name, (_, used) in self._quantizers.items():
            if used:
                table = params[f"{name}/table"][:used]
                rows = vq.looked_up(table, codes[at : at + used].T)
                latents += rows @ params[f"{name}/out"] if self._projected else rows
            at += used
        x, count = seanet.apply(params, self._convs[1], latents, count)
        x = _transformer(self, params, TRANSFORMERS[1], x)
        return seanet.apply(params, seanet.decoder(self), x, count)[0][:, 0]

    def encode(self, params: seanet.Params, media: np.ndarray) -> np.ndarray:
        """float32 [samples] -> codes [frames * codebooks]; see `seanet.encode`."""
        return seanet.encode(self, params, media)

    def decode(self, params: seanet.Params, codes: np.ndarray) -> np.ndarray:
        """Codes [n * codebooks] -> float32 [n * hop]; see `seanet.decode`."""
        return seanet.decode(self, params, codes)


def _transformer(codec, params, name, x):
    """x [T, hidden] through its layers; a step sees the window that ends with it."""
    half = codec.head_dim // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / half
    angles = jnp.arange(len(x))[:, None] / codec.rope_theta**exponents
    cos, sin = jnp.cos(angles)[None], jnp.sin(angles)[None]

    def heads(x):
        return rearrange(x, "t (n h) -> 1 t n h", h=codec.head_dim)

    def layer(x, p):
        near = layer_norm(x, p["norm_in/scale"], p["norm_in/bias"], codec.norm_eps)
        attended = jax.nn.dot_product_attention(
            rotate(heads(near @ p["query"]), cos, sin),
            rotate(heads(near @ p["key"]), cos, sin),
            heads(near @ p["value"]),
            is_causal=True,
            local_window_size=(codec.sliding_window - 1, 0),
        )
        attended = rearrange(attended, "1 t n h -> t (n h)")
        x = x + p["gain_attention"] * (attended @ p["out"])
        near = layer_norm(x, p["norm_mlp/scale"], p["norm_mlp/bias"], codec.norm_eps)
        inner = jax.nn.gelu(near @ p["up"], approximate=False)
        return x + p["gain_mlp"] * (inner @ p["down"]), None

    stacked = {part: params[f"{name}/{part}"] for part in LAYER}
    return jax.lax.scan(layer, x, stacked)[0]


def from_hf(
    config: Mapping[str, Any], read: seanet.Read
) -> tuple[Mimi, dict[str, np.ndarray]]:
    """The codec with all its codebooks, and its arrays.

    For fewer, `dataclasses.replace(codec, codebooks=8)` takes the same arrays.

    Args:
      config: config.json. read: name on disk -> float32 array, weight norm resolved.

    Raises ValueError: an option that is not supported; missing or misshaped tensors.
    """
    rope = config.get("rope_parameters") or {}
    needs = {
        "use_causal_conv": True,
        "trim_right_ratio": 1.0,
        "audio_channels": 1,
        "hidden_act": "gelu",
        "attention_bias": False,
        "rope_scaling": None,
        "rope_type": "default",
    }
    fields = seanet.fields({**rope, **config}, Mimi, needs)
    fields["codebooks"] = fields.get("num_quantizers", Mimi.num_quantizers)
    if not config.get("head_dim"):
        heads = fields.get("num_attention_heads", Mimi.num_attention_heads)
        fields["head_dim"] = fields.get("hidden_size", Mimi.hidden_size) // heads
    codec = Mimi(**fields)
    # As transformers: the rates of latents and codes, where config.json says the latter.
    latents = math.ceil(codec.rate / math.prod(codec.upsampling_ratios))
    frames = config.get("frame_rate") or config.get("_frame_rate")
    stride = int(latents / (frames or codec.rate / codec.hop))
    codec = dataclasses.replace(codec, stride=stride)
    params = seanet.arrays(codec._layers, read)
    for name, (levels, _) in codec._quantizers.items():
        at = f"quantizer.{name}_residual_vector_quantizer"
        books = [f"{at}.layers.{n}.codebook" for n in range(levels)]
        # A running mean over what was near: its sum and its count.
        sums, counts = (
            np.stack([read(f"{book}.{part}") for book in books])
            for part in ("embed_sum", "cluster_usage")
        )
        params[f"{name}/table"] = sums / np.maximum(counts, 1e-5)[..., None]
        if codec._projected:
            for ours, theirs in (("in", "input_proj"), ("out", "output_proj")):
                params[f"{name}/{ours}"] = read(f"{at}.{theirs}.weight")[..., 0].T
    for name in TRANSFORMERS:
        for part, path in LAYER.items():
            layers = range(codec.num_hidden_layers)
            params[f"{name}/{part}"] = np.stack(
                [read(f"{name}.layers.{n}.{path}").T for n in layers]
            )
    return codec, seanet.whole(codec, params)
