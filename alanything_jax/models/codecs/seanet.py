"""What EnCodec and Mimi share: SEANet's causal convolutions, and frames of codes.

SEANet (arXiv:2009.02095) as EnCodec has it (arXiv:2210.13438): strided convolutions and
residual blocks down to one latent a frame of samples, and the mirror image back. Written
from what transformers 5.24 computes, whose paths on disk the parameters keep.

Arrays are padded to a few sizes, so that few programs are compiled; `count` says how many
steps are real. What lies behind them is never seen by a real step, and each layer pads
the end of the real ones as transformers does for that very length.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

Params = Mapping[str, Any]
Read = Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Conv:
    """A causal convolution over time; with `up` a transposed one, trimmed at its end.

    Attributes:
      pad: "constant" (zeros), "replicate" or "reflect", of what is given to it.
      elu: ELU comes before it.
    """

    path: str
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = True
    pad: str = "constant"
    elu: bool = False
    up: bool = False


@dataclasses.dataclass(frozen=True)
class Residual:
    """The sum of two chains; an empty `shortcut` is the identity."""

    body: tuple[Conv, ...]
    shortcut: tuple[Conv, ...]


@dataclasses.dataclass(frozen=True)
class Lstm:
    """`depth` LSTM layers, added to what is given to them."""

    path: str
    width: int
    depth: int


Layers = tuple[Conv | Residual | Lstm, ...]


def encoder(c: Any, lstm: int = 0) -> Layers:
    """Samples [T, 1] to latents [frames, hidden]; `c` is a codec with the sizes."""
    conv = functools.partial(Conv, pad=c.pad_mode)
    layers = [conv("encoder.layers.0.conv", 1, c.num_filters, c.kernel_size)]
    # Numbers on disk count each ELU as a layer.
    at, width = 1, c.num_filters
    for ratio in reversed(c.upsampling_ratios):
        layers += _residuals(c, "encoder", at, width)
        at += c.num_residual_layers + 1
        sizes = (width, 2 * width, 2 * ratio, ratio)
        layers.append(conv(f"encoder.layers.{at}.conv", *sizes, elu=True))
        at, width = at + 1, 2 * width
    if lstm:
        layers.append(Lstm(f"encoder.layers.{at}.lstm", width, lstm))
        at += 1
    sizes = (width, c.hidden_size, c.last_kernel_size)
    return (*layers, conv(f"encoder.layers.{at + 1}.conv", *sizes, elu=True))


def decoder(c: Any, lstm: int = 0) -> Layers:
    """Latents [frames, hidden] to samples [frames * hop, 1]."""
    conv = functools.partial(Conv, pad=c.pad_mode)
    width = c.num_filters * 2 ** len(c.upsampling_ratios)
    layers = [conv("decoder.layers.0.conv", c.hidden_size, width, c.kernel_size)]
    at = 1
    if lstm:
        layers.append(Lstm(f"decoder.layers.{at}.lstm", width, lstm))
        at += 1
    for ratio in c.upsampling_ratios:
        sizes = (width, width // 2, 2 * ratio, ratio)
        path = f"decoder.layers.{at + 1}.conv"
        layers.append(conv(path, *sizes, elu=True, up=True))
        at, width = at + 2, width // 2
        layers += _residuals(c, "decoder", at, width)
        at += c.num_residual_layers
    sizes = (width, 1, c.last_kernel_size)
    return (*layers, conv(f"decoder.layers.{at + 1}.conv", *sizes, elu=True))


def _residuals(c, name, at, width):
    """The residual blocks of one resolution, numbered from `at`."""
    conv, inner, out = functools.partial(Conv, pad=c.pad_mode), width // c.compress, []
    for n in range(c.num_residual_layers):
        path, dilation = f"{name}.layers.{at + n}", c.dilation_growth_rate**n
        sizes = (width, inner, c.residual_kernel_size, 1, dilation)
        body = (
            conv(f"{path}.block.1.conv", *sizes, elu=True),
            conv(f"{path}.block.3.conv", inner, width, 1, elu=True),
        )
        short = (conv(f"{path}.shortcut.conv", width, width, 1),)
        out.append(Residual(body, short if c.use_conv_shortcut else ()))
    return out


def shapes(layers: Layers) -> dict[str, tuple[int, ...]]:
    """Of the arrays of layers: kernels [width, inputs a group, outputs], LSTMs' gates."""
    out = {}
    for layer in layers:
        if isinstance(layer, Residual):
            out |= shapes(layer.body + layer.shortcut)
        elif isinstance(layer, Lstm):
            shape = (layer.width, 4 * layer.width)
            for n in range(layer.depth):
                out[f"{layer.path}/{n}/input"] = out[f"{layer.path}/{n}/hidden"] = shape
                out[f"{layer.path}/{n}/bias"] = shape[1:]
        else:
            inputs = layer.inputs // layer.groups
            out[f"{layer.path}/kernel"] = (layer.kernel, inputs, layer.outputs)
            if layer.bias:
                out[f"{layer.path}/bias"] = (layer.outputs,)
    return out


def arrays(layers: Layers, read: Read) -> dict[str, np.ndarray]:
    """The layers' arrays from those of torch, which `read` gives by their names."""
    out = {}
    for layer in layers:
        if isinstance(layer, Residual):
            out |= arrays(layer.body + layer.shortcut, read)
        elif isinstance(layer, Lstm):
            for n in range(layer.depth):
                path, at = f"{layer.path}/{n}", f"{layer.path}."
                out[f"{path}/input"] = read(f"{at}weight_ih_l{n}").T
                out[f"{path}/hidden"] = read(f"{at}weight_hh_l{n}").T
                biases = (read(f"{at}bias_{part}_l{n}") for part in ("ih", "hh"))
                out[f"{path}/bias"] = sum(biases)
        else:
            weight = read(f"{layer.path}.weight")
            if layer.up:
                # [inputs, outputs a group, width], a kernel that runs backwards.
                dims = "(g i) o w -> w i (g o)"
                kernel = rearrange(weight[..., ::-1], dims, g=layer.groups)
            else:
                kernel = rearrange(weight, "o i w -> w i o")
            out[f"{layer.path}/kernel"] = kernel
            if layer.bias:
                out[f"{layer.path}/bias"] = read(f"{layer.path}.bias")
    return out


def apply(
    params: Params, layers: Layers, x: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """x [T, C], of which `count` steps are real, through layers; both of the result."""
    for layer in layers:
        if isinstance(layer, Residual):
            short, _ = apply(params, layer.shortcut, x, count)
            x = short + apply(params, layer.body, x, count)[0]
        elif isinstance(layer, Lstm):
            x = x + _lstm(params, layer, x)
        else:
            x, count = _convolved(params, layer, x, count)
    return x, count


def _convolved(params, conv, x, count):
    x = jax.nn.elu(x) if conv.elu else x
    options: dict[str, Any] = {"rhs_dilation": (conv.dilation,)}
    if conv.up:
        strides, ends = (1,), (conv.kernel - 1, conv.stride - 1)
        options["lhs_dilation"] = (conv.stride,)
        count = count * conv.stride
    else:
        left = (conv.kernel - 1) * conv.dilation + 1 - conv.stride
        x = _padded(x, count, left, conv.stride, conv.pad)
        strides, ends = (conv.stride,), (0, 0)
        count = -(-count // conv.stride)
    y = jax.lax.conv_general_dilated(
        x[None],
        params[f"{conv.path}/kernel"],
        strides,
        (ends,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=conv.groups,
        **options,
    )[0]
    return (y + params[f"{conv.path}/bias"] if conv.bias else y), count


def _padded(x, count, left, stride, mode):
    """[T, C] with `left` steps before it, and its real ones filled up to whole strides."""
    right = -count % stride

    def outside(at):
        if mode == "constant":
            return jnp.zeros((len(at), x.shape[1]), x.dtype)
        if mode == "replicate":
            return x[jnp.clip(at, 0, count - 1)]
        # What is too short to be mirrored is made longer by zeros at its end first.
        longer = jnp.maximum(count, jnp.maximum(left, right) + 1)
        source = jnp.abs(at)
        source = jnp.where(source < longer, source, 2 * (longer - 1) - source)
        found = x[jnp.clip(source, 0, len(x) - 1)]
        return jnp.where((source < count)[:, None], found, 0.0)

    whole = jnp.pad(x, ((0, -len(x) % stride), (0, 0)))
    out = jnp.concatenate([outside(jnp.arange(-left, 0)), whole])
    # Up to stride - 1 steps are needed; those behind are as unreal as what they replace.
    behind = count + jnp.arange(stride - 1)
    return out.at[left + behind].set(outside(behind), mode="drop")


def _lstm(params, layer, x):
    for n in range(layer.depth):
        hidden = params[f"{layer.path}/{n}/hidden"]

        def step(state, given, hidden=hidden):
            h, cell = state
            i, f, g, o = jnp.split(given + h @ hidden, 4)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (h, cell), h

        given = x @ params[f"{layer.path}/{n}/input"] + params[f"{layer.path}/{n}/bias"]
        zeros = jnp.zeros(layer.width, x.dtype)
        _, x = jax.lax.scan(step, (zeros, zeros), given)
    return x


@functools.partial(jax.jit, static_argnums=0)
def to_codes(
    codec: Any, params: Params, samples: jax.Array, count: jax.Array
) -> jax.Array:
    """Samples [T], of which `count` are real -> codes [codebooks, ceil(T / hop)] int32.

    The first ceil(count / hop) frames are real.
    """
    # Codes are compared: no rounding of factors to bfloat16 on accelerators.
    with jax.default_matmul_precision("highest"):
        return codec.coded(params, samples, count)


@functools.partial(jax.jit, static_argnums=0)
def to_audio(
    codec: Any, params: Params, codes: jax.Array, count: jax.Array
) -> jax.Array:
    """Codes [codebooks, F], of which `count` frames are real -> samples [F * hop].

    The first count * hop samples are real; they may lie outside -1..1.
    """
    with jax.default_matmul_precision("highest"):
        return codec.restored(params, codes, count)


def encode(codec: Any, params: Params, media: np.ndarray) -> np.ndarray:
    """float32 [samples] -> codes [frames * codebooks] int32, frame by frame.

    Raises ValueError: no samples, another shape or dtype, too many; wrong arrays.
    """
    check(codec, params)
    if media.ndim != 1 or not len(media) or media.dtype != np.float32:
        raise ValueError(f"audio {media.dtype} {media.shape}, not float32 [samples].")
    frames, most = -(-len(media) // codec.hop), codec.length // codec.codebooks
    if frames > most:
        raise ValueError(
            f"{len(media) / codec.rate:.2f} s of audio; the codec takes "
            f"{most * codec.hop / codec.rate:.2f} s: cut it, or raise max_seconds."
        )
    padded = np.zeros(_room(frames) * codec.hop, np.float32)
    padded[: len(media)] = media
    codes = np.asarray(to_codes(codec, dict(params), padded, len(media)))
    return codes[:, :frames].T.reshape(-1)


def decode(codec: Any, params: Params, codes: np.ndarray) -> np.ndarray:
    """Codes [n * codebooks] -> float32 [n * hop] in -1..1.

    Raises ValueError: no whole frames, or too many; a code out of range; wrong arrays.
    """
    check(codec, params)
    codes = np.asarray(codes)
    frames, rest = divmod(codes.size, codec.codebooks)
    most = codec.length // codec.codebooks
    if codes.ndim != 1 or rest or not 0 < frames <= most:
        raise ValueError(
            f"{codes.shape} codes are not 1 to {most} whole frames of {codec.codebooks}."
        )
    if not 0 <= codes.min() <= codes.max() < codec.size:
        raise ValueError(
            f"codes {codes.min()} .. {codes.max()}; the codec has 0 .. {codec.size - 1}."
        )
    padded = np.zeros((codec.codebooks, _room(frames)), np.int32)
    padded[:, :frames] = codes.reshape(frames, codec.codebooks).T
    out = np.asarray(to_audio(codec, dict(params), padded, frames))
    return np.clip(out[: frames * codec.hop], -1.0, 1.0)


def _room(frames):
    """Frames of the program that serves so many: a power of two."""
    return 1 << max(3, (frames - 1).bit_length())


def check(codec: Any, params: Params) -> None:
    """Raises ValueError naming arrays that are missing, unknown or misshaped."""
    wanted = codec.shapes()
    given = {path: tuple(value.shape) for path, value in params.items()}
    wrong = sorted(p for p in {*wanted, *given} if wanted.get(p) != given.get(p))
    if wrong:
        said = [f"{p}: {given.get(p)}, expected {wanted.get(p)}" for p in wrong[:4]]
        raise ValueError(
            f"{len(wrong)} arrays do not fit the codec ({'; '.join(said)}). Give those "
            "that were loaded with it."
        )


def whole(codec: Any, params: Params) -> dict[str, np.ndarray]:
    """Arrays as a codec keeps them: float32, contiguous; checked as `check` does."""
    check(codec, params)
    return {k: np.ascontiguousarray(v, np.float32) for k, v in params.items()}


def limit(codec: Any) -> int:
    """Most codes of a block: the whole frames of `max_seconds`, at least one."""
    frames = int(codec.max_seconds * codec.rate / codec.hop)
    return max(1, frames) * codec.codebooks


def fields(config: Mapping[str, Any], kind: Any, needs: Mapping[str, Any]) -> dict:
    """Those fields of a kind of codec that config.json says; it may leave out any.

    Args:
      needs: what other keys must say, if they are there; their only supported values.

    Raises ValueError: one says something else.
    """
    wrong = {k: config[k] for k, v in needs.items() if config.get(k, v) != v}
    if wrong:
        said = ", ".join(f"{k}={v!r} (needs {needs[k]!r})" for k, v in wrong.items())
        raise ValueError(
            f"config.json of this {config.get('model_type')} has {said}: not supported. "
            "Give one of the causal mono codecs, such as facebook/encodec_24khz or "
            "kyutai/mimi."
        )
    names = {f.name for f in dataclasses.fields(kind)}
    found = {k: v for k, v in config.items() if k in names and v is not None}
    sizes = {
        "rate": config.get("sampling_rate", kind.rate),
        "size": config.get("codebook_size", kind.size),
    }
    return sizes | {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
