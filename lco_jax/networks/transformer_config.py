"""Sizes and options of transformers, and of their single layers."""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

# Sees all earlier tokens: a window longer than any text.
_NO_WINDOW = 2**30
_MAY_BE_0 = ("attention_block",)
# Of the gated linear unit.
ACTIVATIONS = {
  "silu": nn.silu,
  "gelu": functools.partial(nn.gelu, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Sizes and options of a transformer.

  Attributes:
    vocab_size: V.
    num_layers: number of blocks.
    width: features per token.
    num_heads: H.
    num_kv_heads: K, a divisor of H.
    mlp_width: hidden features of the gated linear unit.
    head_dim: D, even; None for width / H.
    rope_theta: base of the rotary wavelengths.
    rope_divisors: D / 2 numbers that divide the rotary frequencies, by which
      models are extended to longer texts; None for 1.
    rope_amplitude: factor of rotated queries and keys.
    window: earlier tokens that a windowed layer sees, the own included; None
      for all.
    window_layers: numbers of the windowed layers; None for all layers.
    window_rope_theta: base of the rotary wavelengths of windowed layers, which
      have no divisors; None for those of the others.
    unrotated_layers: numbers of the layers without rotary positions.
    activation: of the gated linear unit, a key of ACTIVATIONS.
    norms: where RMSNorm is: before attention and the gated linear unit, after
      them, or around them, which is both.
    query_key_norm: whether RMSNorm of queries and keys is over the features of
      each "head", over those of "all" heads, or absent, None.
    embedding_scale: factor of the embeddings.
    attention_scale: factor of queries · keys; None for D^(-1/2).
    attention_cap: c in c tanh(score / c) of attention; None for none.
    logit_cap: c in c tanh(logit / c) of the output; None for none.
    norm_epsilon: ε of RMSNorm.
    tied_embeddings: whether the output layer shares the embedding's weights.
    qkv_bias: whether queries, keys and values have biases, as in Qwen2.
    dtype: of the computation, float32 or bfloat16; parameters, attention
      weights and logits are float32. float64, which needs jax_enable_x64, helps
      to tell rounding from errors.
    rematerialize: whether the backward pass recomputes the blocks.
    attention_block: tokens of a sequence whose attention weights exist at a
      time; 0 for all.
  """

  vocab_size: int
  num_layers: int
  width: int
  num_heads: int
  num_kv_heads: int
  mlp_width: int
  head_dim: int | None = None
  rope_theta: float = 10_000.0
  rope_divisors: tuple[float, ...] | None = None
  rope_amplitude: float = 1.0
  window: int | None = None
  window_layers: tuple[int, ...] | None = None
  window_rope_theta: float | None = None
  unrotated_layers: tuple[int, ...] = ()
  activation: str = "silu"
  norms: str = "before"
  query_key_norm: str | None = None
  embedding_scale: float = 1.0
  attention_scale: float | None = None
  attention_cap: float | None = None
  logit_cap: float | None = None
  norm_epsilon: float = 1e-6
  tied_embeddings: bool = True
  qkv_bias: bool = False
  dtype: str = "float32"
  rematerialize: bool = False
  attention_block: int = 0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      least = 0 if field.name in _MAY_BE_0 else 1
      if field.type is int and value < least:
        raise ValueError(f"{field.name} must be ≥ {least}, got {value}")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_kv_heads {self.num_kv_heads} does not divide"
        f" num_heads {self.num_heads}"
      )
    if self.head_dim is None and self.width % self.num_heads:
      raise ValueError(
        f"num_heads {self.num_heads} does not divide width {self.width}"
      )
    if self.head_features % 2:
      raise ValueError(f"head_dim must be even, got {self.head_features}")
    for name, known in (
      ("activation", tuple(ACTIVATIONS)),
      ("norms", ("before", "after", "around")),
      ("query_key_norm", (None, "head", "all")),
    ):
      value = getattr(self, name)
      if value not in known:
        raise ValueError(f"{name} {value!r} is not among {known}")
    divisors = self.rope_divisors
    if divisors is not None and len(divisors) != self.head_features // 2:
      raise ValueError(
        f"rope_divisors has {len(divisors)} numbers, not head_dim / 2 ="
        f" {self.head_features // 2}"
      )
    for name in ("window_layers", "unrotated_layers"):
      for number in getattr(self, name) or ():
        if not 0 <= number < self.num_layers:
          raise ValueError(f"{name}: there is no layer {number}")
    known = ("float32", "bfloat16")
    if self.dtype not in (*known, "float64"):
      raise ValueError(f"dtype must be float32 or bfloat16, got {self.dtype!r}")
    if self.dtype not in known and not jax.config.jax_enable_x64:
      raise ValueError("dtype float64 needs jax_enable_x64")

  @property
  def head_features(self) -> int:
    """D."""
    return self.head_dim or self.width // self.num_heads


class LayerOptions(NamedTuple):
  """Options in which layers differ; a layer axis comes first for several.

  Attributes:
    frequencies: float[D / 2], turn of each rotary pair from token to token.
    amplitude: float[], factor of rotated queries and keys.
    window: int32[], earlier tokens that are seen; None for all.
  """

  frequencies: Any
  amplitude: Any
  window: Any


def list_layer_options(config: TransformerConfig) -> tuple[LayerOptions, ...]:
  """Lists how each layer rotates and how far it sees, in NumPy's float64."""
  half = config.head_features // 2
  exponents = -np.arange(half) / half
  divisors = (
    np.ones(half)
    if config.rope_divisors is None
    else np.asarray(config.rope_divisors, np.float64)
  )
  windowed = range(config.num_layers)
  if config.window is None:
    windowed = ()
  elif config.window_layers is not None:
    windowed = config.window_layers
  layers = []
  for number in range(config.num_layers):
    frequencies = config.rope_theta**exponents / divisors
    amplitude = np.float64(config.rope_amplitude)
    if number in windowed and config.window_rope_theta is not None:
      frequencies = config.window_rope_theta**exponents
      amplitude = np.float64(1.0)
    if number in config.unrotated_layers:  # Turned by no angle.
      frequencies, amplitude = np.zeros(half), np.float64(1.0)
    window = None
    if windowed:
      window = np.int32(config.window if number in windowed else _NO_WINDOW)
    layers.append(LayerOptions(frequencies, amplitude, window))
  return tuple(layers)


def are_alike(layers: tuple[LayerOptions, ...]) -> bool:
  """Whether all layers have the same options."""
  return all(
    jax.tree.all(jax.tree.map(np.array_equal, layers[0], layer))
    for layer in layers
  )


def stack(layers: tuple[LayerOptions, ...]) -> LayerOptions:
  """Stacks the options of layers along a layer axis."""
  return jax.tree.map(lambda *own: np.stack(own), *layers)
