"""Attention of queries to keys, all at once or some queries at a time.

Shapes: B sequences, K key-value heads, G query heads of each, L tokens that are
read, S slots of keys, D features per head.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax.networks import products
from lco_jax.networks.transformer_config import LayerOptions, TransformerConfig

# Score of masked slots: gives attention weight 0 and, unlike −inf, no NaN.
_MASKED_SCORE = -1e30


class Positions(NamedTuple):
  """Positions of tokens in their sequences.

  Attributes:
    own: int32[B, L], of the tokens that are read.
    cached: int32[B, S], of the tokens in the slots of the cache, those that are
      read among them; negative for slots to ignore.
  """

  own: Array
  cached: Array


def attend(
  config: TransformerConfig,
  options: LayerOptions,
  query: Array,
  key: Array,
  value: Array,
  positions: Positions,
) -> Array:
  """Mixes the values of earlier tokens, and the own one, for each query.

  It computes the weights of `config.attention_block` queries of each sequence
  at a time, and computes them again in the backward pass. Each query still
  meets all keys at once: results are the same.

  Args:
    config: of the transformer.
    options: of the layer.
    query: float[B, K, G, L, D].
    key: float[B, K, S, D].
    value: float[B, K, S, D].
    positions: of the tokens.

  Returns:
    float[B, K, G, L, D].
  """

  def mix(query, own):  # Of all these queries at once.
    own, cached = own[..., None], positions.cached[:, None]
    allowed = (cached >= 0) & (cached <= own)  # [B, L, S]
    if options.window is not None:
      allowed &= own - cached < options.window
    # Merge a group's queries of all tokens: one product per key-value head.
    batch, num_kv, *_, features = grouped = query.shape
    scores = products.product(
      "bkmd,bksd->bkms", query.reshape(batch, num_kv, -1, features), key
    ).reshape(*grouped[:-1], -1)
    scale = features**-0.5
    if config.attention_scale is not None:
      scale = config.attention_scale
    scores = cap(scores * scale, config.attention_cap)
    scores = jnp.where(allowed[:, None, None], scores, _MASKED_SCORE)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    mixed = products.product(
      "bkms,bksd->bkmd",
      weights.reshape(batch, num_kv, -1, weights.shape[-1]),
      value,
    )
    return mixed.astype(value.dtype).reshape(grouped)

  if 0 < config.attention_block < query.shape[3]:
    return _map_blocks(mix, query, positions.own, config.attention_block)
  return mix(query, positions.own)


def _map_blocks(
  mix: Callable[[Array, Array], Array], query: Array, own: Array, block: int
) -> Array:
  """Maps (queries, their positions) → values, one block of tokens at a time."""
  length = query.shape[3]
  count = -(-length // block)

  def split(x, axis):  # Zeros fill up the last block.
    gaps = [(0, 0)] * x.ndim
    gaps[axis] = (0, count * block - length)
    shape = *x.shape[:axis], count, block, *x.shape[axis + 1 :]
    return jnp.moveaxis(jnp.pad(x, gaps).reshape(shape), axis, 0)

  mix = jax.checkpoint(mix)
  mixed = jax.lax.map(lambda part: mix(*part), (split(query, 3), split(own, 1)))
  mixed = jnp.moveaxis(mixed, 0, 3)  # [B, K, G, count, block, D]
  shape = *query.shape[:3], count * block, query.shape[-1]
  return mixed.reshape(shape)[:, :, :, :length]


def cap(x: Array, most: float | None) -> Array:
  """c tanh(x / c), which lies between -c and c; x itself for None."""
  return x if most is None else most * jnp.tanh(x / most)
