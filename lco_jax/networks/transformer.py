"""Decoder-only transformer of the families that descend from Llama.

Blocks of grouped-query attention with rotary positions, and of a gated linear
unit, with RMSNorm. Options of the configuration give the families' variants.
Sequences are padded on the left, so all sequences write their next token to the
same slot; positions count from the first real token.

Shapes: B sequences, L tokens, S cache slots, V vocabulary, H query heads in
groups that share one of K key-value heads, D features per head.

Source: Touvron et al. 2023, arXiv:2302.13971 (Llama); Ainslie et al. 2023,
arXiv:2305.13245 (grouped queries); Su et al. 2021, arXiv:2104.09864 (rotary);
Gemma Team 2024, arXiv:2408.00118 (caps, norms around, windows); OLMo Team 2024,
arXiv:2501.00656 (norms after).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lco_jax.networks import attention, partitioning, products
from lco_jax.networks import packing as packing_lib
from lco_jax.networks.partitioning import FSDP_AXIS, TENSOR_AXIS
from lco_jax.networks.transformer_config import (
  ACTIVATIONS,
  LayerOptions,
  TransformerConfig,
  are_alike,
  list_layer_options,
  stack,
)

# Models with at most this many layers are unrolled. A loop copies each layer's
# activations for the backward pass, which costs small models more than their
# matrix products. Larger models run and compile faster as a loop.
_MAX_UNROLLED = 4


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
    packing: of the tokens among all slots of the call; None if they are whole.
    positions: of the tokens; None if they follow from the padding.
  """

  start: Array
  padding: Array
  packing: packing_lib.Packing | None = None
  positions: attention.Positions | None = None

  def locate(self, length: int, num_slots: int) -> attention.Positions:
    """Positions of L tokens, and of those of S slots."""
    if self.positions is not None:
      return self.positions
    own = self.start + jnp.arange(length)  # [L]
    return attention.Positions(
      own[None] - self.padding[:, None],
      jnp.arange(num_slots)[None] - self.padding[:, None],
    )


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
  zeros = _lay_heads(jnp.zeros(shape, config.dtype))
  return KVCache(zeros, zeros)


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
    # Where layers are alike, their options are constants of the program.
    options = list_layer_options(config)
    alike = are_alike(options)
    self.layer_options = options[0] if alike else stack(options)
    blocks = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast, nn.broadcast if alike else 0, 0),
      length=config.num_layers,
      unroll=config.num_layers if config.num_layers <= _MAX_UNROLLED else 1,
    )
    self.blocks = blocks(config)
    self.final_norm = make_norm(config)
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
    self,
    tokens: Array,
    padding: Array,
    cache: KVCache | None = None,
    start=0,
    packing: packing_lib.Packing | None = None,
  ) -> tuple[Array, KVCache | None]:
    """Final hidden states, the input of `head`.

    Args:
      tokens: int32[B, L].
      padding: int32[B].
      cache: as of `__call__`.
      start: likewise.
      packing: of the slots [B, L] that are read; None for all.

    Returns:
      (float[B, L, width], or [T, width] of packed tokens; cache).
    """
    slots = Slots(jnp.asarray(start, jnp.int32), padding, packing)
    # Outside attention, all tokens share one axis: the fastest matrix products.
    flat = tokens.reshape(-1)
    if packing is not None:
      flat = packing_lib.pack(flat, packing)
    hidden = partitioning.look_up(self.embed.embedding, flat)
    hidden = scale_embedding(
      hidden.astype(self.config.dtype), self.config.embedding_scale
    )
    hidden, cache = self.blocks(hidden, slots, self.layer_options, cache)
    hidden = self.final_norm(hidden)
    if packing is not None:
      return hidden, cache
    return hidden.reshape(*tokens.shape, -1), cache

  def head(self, hidden: Array) -> Array:
    """Maps final hidden states float[..., width] to float32[..., V]."""
    if self.num_outputs is not None:
      return self.output(hidden)
    if not self.config.tied_embeddings:
      logits = lay_features(self.output(hidden))
      return attention.cap(logits, self.config.logit_cap)
    embedding = partitioning.lay_vocabulary(
      self.embed.embedding.astype(hidden.dtype)
    )
    logits = products.multiply_rows("rw,vw->rv", hidden, embedding)
    return attention.cap(lay_features(logits), self.config.logit_cap)


class Block(nn.Module):
  """One layer: attention, then the MLP, each with a residual connection."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    hidden: Array,
    slots: Slots,
    options: LayerOptions,
    cache: KVCache | None,
  ) -> tuple[Array, KVCache | None]:
    """float[B · L, width] → the same; options and cache of this layer.

    Of packed tokens both are [T, width].
    """
    config = self.config

    def norm(x, name, place):
      if config.norms not in (place, "around"):
        return x
      return make_norm(config, name)(x)

    attend = Attention(config, name="attention")
    normed = norm(hidden, "attention_norm", "before")
    attended, cache = attend(normed, slots, options, cache)
    attended = norm(lay_rows(attended), "after_attention_norm", "after")
    hidden = lay_rows(hidden + attended)
    normed = norm(hidden, "mlp_norm", "before")
    gate = lay_features(_dense(config, config.mlp_width, "gate")(normed))
    up = lay_features(_dense(config, config.mlp_width, "up")(normed))
    down = _dense(config, config.width, "down", residual=True)
    activate = ACTIVATIONS[config.activation]
    mixed = lay_rows(down(activate(gate) * up))
    hidden = hidden + norm(mixed, "after_mlp_norm", "after")
    return lay_rows(hidden), cache


class Attention(nn.Module):
  """Causal grouped-query attention with rotary positions."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self, x: Array, slots: Slots, options: LayerOptions, cache: KVCache | None
  ) -> tuple[Array, KVCache | None]:
    """float[B · L, width], or [T, width] of packed tokens → the same."""
    config, packing = self.config, slots.packing
    batch = slots.padding.shape[0]
    size = x.shape[0] if packing is None else packing.places.size
    length = size // batch
    num_kv, features = config.num_kv_heads, config.head_features

    def project(name, heads):
      dense = _dense(config, heads * features, name, bias=config.qkv_bias)
      projected = lay_features(dense(x))
      if packing is not None:
        projected = packing_lib.unpack(projected, packing)
      return projected.reshape(batch, length, heads, features)

    def project_normed(name, heads):
      projected = project(name, heads)
      if config.query_key_norm is None:
        return projected
      norm = make_norm(config, f"{name}_norm")
      if config.query_key_norm == "head":
        return norm(projected)
      flat = projected.reshape(batch, length, -1)
      return norm(flat).reshape(projected.shape)

    num_slots = length if cache is None else cache.keys.shape[2]
    positions = slots.locate(length, num_slots)
    query = _rotate(
      project_normed("query", config.num_heads), positions.own, options
    )
    key = _rotate(project_normed("key", num_kv), positions.own, options)
    # The head axis precedes the slots: each head's keys are contiguous.
    key, value = (
      _lay_heads(jnp.swapaxes(x, 1, 2)) for x in (key, project("value", num_kv))
    )
    if cache is not None:
      at = (0, 0, slots.start, 0)
      key = jax.lax.dynamic_update_slice(cache.keys, key, at)
      value = jax.lax.dynamic_update_slice(cache.values, value, at)
      key, value = _lay_heads(key), _lay_heads(value)
      cache = KVCache(key, value)
    query = query.reshape(batch, length, num_kv, -1, features)
    query = query.transpose(0, 2, 3, 1, 4)  # [B, K, group, L, D]
    mixed = attention.attend(config, options, query, key, value, positions)
    mixed = mixed.transpose(0, 3, 1, 2, 4)
    output = _dense(config, config.width, "output", residual=True)
    mixed = lay_features(mixed.reshape(batch * length, -1))
    if packing is not None:
      mixed = packing_lib.pack(mixed, packing)
    return output(mixed), cache


def _rotate(x: Array, positions: Array, options: LayerOptions) -> Array:
  """Rotates pairs (i, i + D/2) of float[B, L, heads, D] by their position."""
  wide = jnp.promote_types(x.dtype, jnp.float32)
  angles = positions[..., None, None].astype(wide) * jnp.asarray(
    options.frequencies[None, None, None], wide
  )
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  if not isinstance(options.amplitude, np.float64) or options.amplitude != 1.0:
    amplitude = jnp.asarray(options.amplitude, wide)
    cos, sin = cos * amplitude, sin * amplitude
  first, second = jnp.split(x.astype(wide), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return rotated.astype(x.dtype)


def lay_rows(x: Array) -> Array:
  """Lays activations [rows, width] along the mesh: devices divide rows."""
  return partitioning.constrain(x, FSDP_AXIS, None)


def lay_features(x: Array) -> Array:
  """Lays [..., rows, features] along the mesh: devices divide both.

  Features are those of heads or of the gated linear unit, or the vocabulary.
  """
  return partitioning.constrain(x, FSDP_AXIS, TENSOR_AXIS)


def _lay_heads(x: Array) -> Array:
  """Lays [..., B, K, S, D] along the mesh: devices divide B and K."""
  return partitioning.constrain(x, FSDP_AXIS, TENSOR_AXIS, None, None)


def scale_embedding(x: Array, factor: float) -> Array:
  """x times a factor, rounded to the dtype of x; x itself for 1."""
  return x if factor == 1.0 else x * jnp.asarray(factor, x.dtype)


def make_norm(config: TransformerConfig, name: str | None = None) -> nn.Module:
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
  axes = partitioning.BACK if residual else partitioning.INTO
  product = products.widened_product if widened else products.dense_product

  def multiply(left, right, *rest, **options):
    return product(left, partitioning.gather(right, axes), *rest, **options)

  return nn.Dense(
    features,
    use_bias=bias,
    dtype=config.dtype,
    kernel_init=nn.initializers.variance_scaling(gain, "fan_in", "normal"),
    dot_general=multiply,
    name=name,
  )
