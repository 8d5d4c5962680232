"""Decoder-only transformer with the architecture of Llama and Qwen2.

Pre-norm blocks: RMSNorm, grouped-query attention with rotary positions,
RMSNorm, SwiGLU. Sequences are padded on the left, so all sequences write their
next token to the same slot; positions count from the first real token.

Shapes: B sequences, L tokens, S cache slots, V vocabulary, H query heads in
groups that share one of K key-value heads, D features per head.

Source: Touvron et al. 2023, arXiv:2302.13971 (Llama); Ainslie et al. 2023,
arXiv:2305.13245 (grouped queries); Su et al. 2021, arXiv:2104.09864 (rotary).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lco_jax.networks import products

# Score of masked slots: gives attention weight 0 and, unlike −inf, no NaN.
_MASKED_SCORE = -1e30
# Models with at most this many layers are unrolled. A loop copies each layer's
# activations for the backward pass, which costs small models more than their
# matrix products. Larger models run and compile faster as a loop.
_MAX_UNROLLED = 4


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Sizes and options of a transformer.

  Attributes:
    vocab_size: V.
    num_layers: number of blocks.
    width: features per token.
    num_heads: H.
    num_kv_heads: K, a divisor of H.
    mlp_width: hidden features of the SwiGLU.
    head_dim: D, even; None for width / H.
    rope_theta: base of the rotary wavelengths.
    norm_epsilon: ε of RMSNorm.
    tied_embeddings: whether the output layer shares the embedding's weights.
    qkv_bias: whether queries, keys and values have biases, as in Qwen2.
    dtype: of the computation, float32 or bfloat16; parameters, attention
      weights and logits are float32. float64, which needs jax_enable_x64, helps
      to tell rounding from errors.
    rematerialize: whether the backward pass recomputes the blocks.
  """

  vocab_size: int
  num_layers: int
  width: int
  num_heads: int
  num_kv_heads: int
  mlp_width: int
  head_dim: int | None = None
  rope_theta: float = 10_000.0
  norm_epsilon: float = 1e-6
  tied_embeddings: bool = True
  qkv_bias: bool = False
  dtype: str = "float32"
  rematerialize: bool = False

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and value < 1:
        raise ValueError(f"{field.name} must be ≥ 1, got {value}")
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
    known = ("float32", "bfloat16")
    if self.dtype not in (*known, "float64"):
      raise ValueError(f"dtype must be float32 or bfloat16, got {self.dtype!r}")
    if self.dtype not in known and not jax.config.jax_enable_x64:
      raise ValueError("dtype float64 needs jax_enable_x64")

  @property
  def head_features(self) -> int:
    """D."""
    return self.head_dim or self.width // self.num_heads


class KVCache(NamedTuple):
  """Keys and values of the tokens read so far.

  Attributes:
    keys: float[layers, B, K, S, D], rotated; a single layer's cache has no
      layer axis.
    values: float[layers, B, K, S, D].
  """

  keys: Array
  values: Array


class Slots(NamedTuple):
  """Slots of the tokens of one call.

  Attributes:
    start: int32[], slot of the first token.
    padding: int32[B], number of padded slots on the left.
  """

  start: Array
  padding: Array


def empty_cache(
  config: TransformerConfig, batch_size: int, num_slots: int
) -> KVCache:
  """Makes a zero cache for B sequences of S slots."""
  shape = (
    config.num_layers,
    batch_size,
    config.num_kv_heads,
    num_slots,
    config.head_features,
  )
  zeros = jnp.zeros(shape, config.dtype)
  return KVCache(zeros, zeros)


def make_reader(
  config: TransformerConfig,
  params: Any,
  batch_size: int,
  num_slots: int,
) -> tuple[Callable[..., Any], tuple[KVCache, ...]]:
  """Makes a faster `Transformer.hidden` for repeated incremental calls.

  A loop over stacked layers copies each layer's weights and cache out of the
  stack and back on every call. The reader unstacks the layers once.

  Args:
    config: sizes and options.
    params: parameters of the transformer.
    batch_size: B.
    num_slots: S.

  Returns:
    ((tokens, padding, cache, start) → (hidden, cache), and an empty cache with
    a KVCache per layer).
  """
  own = params["params"]
  layers = [
    jax.tree.map(lambda leaf, layer=layer: leaf[layer], own["blocks"])
    for layer in range(config.num_layers)
  ]
  block, norm = Block(config), _norm(config)
  embed = own["embed"]["embedding"]
  whole = empty_cache(config, batch_size, num_slots)

  def read(tokens, padding, cache, start):
    slots = Slots(jnp.asarray(start, jnp.int32), padding)
    hidden = embed[tokens.reshape(-1)].astype(config.dtype)
    written = []
    for layer, before in zip(layers, cache, strict=True):
      hidden, after = block.apply({"params": layer}, hidden, slots, before)
      written.append(after)
    hidden = norm.apply({"params": own["final_norm"]}, hidden)
    return hidden.reshape(*tokens.shape, -1), tuple(written)

  return read, tuple(
    KVCache(keys, values)
    for keys, values in zip(whole.keys, whole.values, strict=True)
  )


class Transformer(nn.Module):
  """Maps tokens to logits or values: `hidden`, then `head`.

  Attributes:
    config: sizes and options.
    num_outputs: outputs of a linear head; None for logits over the vocabulary.
  """

  config: TransformerConfig
  num_outputs: int | None = None

  def setup(self):
    """Makes the layers; their attribute names name the parameters."""
    config = self.config
    self.embed = nn.Embed(
      config.vocab_size,
      config.width,
      dtype=config.dtype,
      embedding_init=nn.initializers.normal(config.width**-0.5),
    )
    block = (
      nn.remat(Block, prevent_cse=False) if config.rematerialize else Block
    )
    # Parameters and cache of all blocks are stacked along a layer axis.
    layers = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast, 0),
      length=config.num_layers,
      unroll=config.num_layers if config.num_layers <= _MAX_UNROLLED else 1,
    )
    self.blocks = layers(config)
    self.final_norm = _norm(config)
    if self.num_outputs is not None or not config.tied_embeddings:
      self.output = _dense(
        config, self.num_outputs or config.vocab_size, widened=True
      )

  def __call__(
    self, tokens: Array, padding: Array, cache: KVCache | None = None, start=0
  ) -> tuple[Array, KVCache | None]:
    """Reads tokens that follow the cached tokens.

    Args:
      tokens: int32[B, L].
      padding: int32[B], slots to ignore on the left of the sequence.
      cache: earlier tokens; None to read a whole sequence at once.
      start: slot of the first token; 0 without a cache.

    Returns:
      (float32[B, L, V] or [B, L, num_outputs]; the cache with these tokens).
    """
    hidden, cache = self.hidden(tokens, padding, cache, start)
    return self.head(hidden), cache

  def hidden(
    self, tokens: Array, padding: Array, cache: KVCache | None = None, start=0
  ) -> tuple[Array, KVCache | None]:
    """Final hidden states, the input of `head`: (float[B, L, width], cache)."""
    slots = Slots(jnp.asarray(start, jnp.int32), padding)
    # Outside attention, all tokens share one axis: the fastest matrix products.
    hidden = self.embed(tokens.reshape(-1))
    hidden, cache = self.blocks(hidden, slots, cache)
    hidden = self.final_norm(hidden)
    return hidden.reshape(*tokens.shape, -1), cache

  def head(self, hidden: Array) -> Array:
    """Maps final hidden states float[..., width] to float32[..., V]."""
    if self.num_outputs is not None or not self.config.tied_embeddings:
      return self.output(hidden)
    embedding = self.embed.embedding.astype(hidden.dtype)
    return products.multiply_rows("rw,vw->rv", hidden, embedding)


class Block(nn.Module):
  """One layer: attention, then SwiGLU, each with a residual connection."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self, hidden: Array, slots: Slots, cache: KVCache | None
  ) -> tuple[Array, KVCache | None]:
    """float[B · L, width] → the same; the cache is this layer's."""
    config = self.config
    normed = _norm(config, "attention_norm")(hidden)
    attended, cache = Attention(config, name="attention")(normed, slots, cache)
    hidden = hidden + attended
    normed = _norm(config, "mlp_norm")(hidden)
    gate = _dense(config, config.mlp_width, "gate")(normed)
    up = _dense(config, config.mlp_width, "up")(normed)
    down = _dense(config, config.width, "down", residual=True)
    return hidden + down(nn.silu(gate) * up), cache


class Attention(nn.Module):
  """Causal grouped-query attention with rotary positions."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self, x: Array, slots: Slots, cache: KVCache | None
  ) -> tuple[Array, KVCache | None]:
    """float[B · L, width] → the same."""
    config = self.config
    batch = slots.padding.shape[0]
    length = x.shape[0] // batch
    num_kv, features = config.num_kv_heads, config.head_features

    def project(name, heads):
      dense = _dense(config, heads * features, name, bias=config.qkv_bias)
      return dense(x).reshape(batch, length, heads, features)

    own_slots = slots.start + jnp.arange(length)  # [L]
    positions = own_slots[None] - slots.padding[:, None]  # [B, L]
    query = _rotate(project("query", config.num_heads), positions, config)
    key = _rotate(project("key", num_kv), positions, config)
    # The head axis precedes the slots: each head's keys are contiguous.
    key, value = (
      jnp.swapaxes(x, 1, 2) for x in (key, project("value", num_kv))
    )
    if cache is not None:
      at = (0, 0, slots.start, 0)
      key = jax.lax.dynamic_update_slice(cache.keys, key, at)
      value = jax.lax.dynamic_update_slice(cache.values, value, at)
      cache = KVCache(key, value)
    read = jnp.arange(key.shape[2])  # [S]
    allowed = (read[None, None] <= own_slots[None, :, None]) & (
      read[None, None] >= slots.padding[:, None, None]
    )  # [B, L, S]
    # Merge a group's queries of all tokens: one product per key-value head.
    query = query.reshape(batch, length, num_kv, -1, features)
    query = query.transpose(0, 2, 3, 1, 4)  # [B, K, group, L, D]
    grouped = query.shape
    scores = products.product(
      "bkmd,bksd->bkms", query.reshape(batch, num_kv, -1, features), key
    ).reshape(*grouped[:-1], -1)
    scores = jnp.where(
      allowed[:, None, None], scores * features**-0.5, _MASKED_SCORE
    )
    weights = jax.nn.softmax(scores).astype(value.dtype)
    mixed = products.product(
      "bkms,bksd->bkmd",
      weights.reshape(batch, num_kv, -1, weights.shape[-1]),
      value,
    ).astype(value.dtype)
    mixed = mixed.reshape(grouped).transpose(0, 3, 1, 2, 4)
    output = _dense(config, config.width, "output", residual=True)
    return output(mixed.reshape(batch * length, -1)), cache


def _rotate(x: Array, positions: Array, config: TransformerConfig) -> Array:
  """Rotates pairs (i, i + D/2) of float[B, L, heads, D] by their position."""
  half = x.shape[-1] // 2
  # Use float64 on the host, because errors grow with the position.
  frequencies = config.rope_theta ** -(np.arange(half) / half)
  wide = jnp.promote_types(x.dtype, jnp.float32)
  angles = positions[..., None, None].astype(wide) * jnp.asarray(
    frequencies[None, None, None], wide
  )
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first, second = jnp.split(x.astype(wide), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return rotated.astype(x.dtype)


def _norm(config: TransformerConfig, name: str | None = None) -> nn.Module:
  """x / rms(x) times a learned scale, computed in float32."""
  return nn.RMSNorm(config.norm_epsilon, dtype=config.dtype, name=name)


def _dense(
  config: TransformerConfig,
  features: int,
  name: str | None = None,
  bias: bool = False,
  residual: bool = False,
  widened: bool = False,
) -> Any:
  """Makes a linear layer.

  Args:
    config: sizes and options of the transformer.
    features: size of the output.
    name: name of the parameters.
    bias: whether to add a bias.
    residual: whether the output adds to the residual stream, which scales the
      initial weights down.
    widened: whether the output is float32 for every computation dtype.
  """
  gain = 1.0 / (2 * config.num_layers) if residual else 1.0
  return nn.Dense(
    features,
    use_bias=bias,
    dtype=config.dtype,
    kernel_init=nn.initializers.variance_scaling(gain, "fan_in", "normal"),
    dot_general=(
      products.widened_product if widened else products.dense_product
    ),
    name=name,
  )
