"""Reading of tokens by functions of a transformer's parameters.

`make_reader` is for loops that read one token at a time, `read_narrow` for
matrices in few bits. Both compute what `Transformer.hidden` computes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax.networks import (
  attention,
  narrow_matrices,
  partitioning,
  transformer,
)
from lco_jax.networks import packing as packing_lib
from lco_jax.networks.transformer_config import (
  TransformerConfig,
  list_layer_options,
  stack,
)


def make_reader(
  config: TransformerConfig,
  params: Any,
  batch_size: int,
  num_slots: int,
) -> tuple[Callable[..., Any], Any]:
  """Makes a faster `Transformer.hidden` for repeated incremental calls.

  A loop over stacked layers copies each layer's weights and cache out of the
  stack and back on every call. The reader unstacks the layers once.

  Args:
    config: sizes and options.
    params: parameters of the transformer.
    batch_size: B.
    num_slots: S.

  Returns:
    ((tokens, padding, cache, start, positions) → (hidden, cache), and an empty
    cache of arrays [B, ...]: a KVCache per layer, or one [B, layers, ...] for
    narrow matrices). The positions may be left out.
  """
  own = params["params"]
  if narrow_matrices.is_narrow(params):  # Unstacked, all would stay widened.

    def read_stacked(tokens, padding, cache, start, positions=None):
      hidden, cache = read_narrow(
        config,
        params,
        tokens,
        padding,
        _swap_axes(cache),
        start,
        positions=positions,
      )
      return hidden, _swap_axes(cache)

    return read_stacked, _swap_axes(
      transformer.empty_cache(config, batch_size, num_slots)
    )
  layers = [
    jax.tree.map(lambda leaf, layer=layer: leaf[layer], own["blocks"])
    for layer in range(config.num_layers)
  ]
  block, options = transformer.Block(config), list_layer_options(config)
  whole = transformer.empty_cache(config, batch_size, num_slots)

  def read(tokens, padding, cache, start, positions=None):
    slots = transformer.Slots(
      jnp.asarray(start, jnp.int32), padding, positions=positions
    )
    hidden = _embed(config, params, tokens)
    written = []
    for layer, own_options, before in zip(layers, options, cache, strict=True):
      hidden, after = block.apply(
        {"params": layer}, hidden, slots, own_options, before
      )
      written.append(after)
    return _finish(config, params, tokens, hidden), tuple(written)

  return read, tuple(
    transformer.KVCache(keys, values)
    for keys, values in zip(whole.keys, whole.values, strict=True)
  )


def _swap_axes(cache: transformer.KVCache) -> transformer.KVCache:
  """Swaps the axes of layers and of sequences."""
  return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), cache)


def read_narrow(
  config: TransformerConfig,
  params: Any,
  tokens: Array,
  padding: Array,
  cache: transformer.KVCache | None = None,
  start=0,
  packing: packing_lib.Packing | None = None,
  positions: attention.Positions | None = None,
) -> tuple[Array, transformer.KVCache | None]:
  """Reads tokens as `Transformer.hidden`, widening one layer at a time."""
  slots = transformer.Slots(
    jnp.asarray(start, jnp.int32), padding, packing, positions
  )
  if packing is not None:
    tokens = packing_lib.pack(tokens.reshape(-1), packing)
  block = transformer.Block(config)

  def step(hidden, own):
    layer, own_options, before = own
    return block.apply(
      {"params": narrow_matrices.widen(layer)},
      hidden,
      slots,
      own_options,
      before,
    )

  # Else the backward pass would keep the widened matrices of all layers.
  step = jax.checkpoint(step, prevent_cse=False)
  options = jax.tree.map(
    jnp.asarray,
    stack(list_layer_options(config)),
  )
  hidden, cache = jax.lax.scan(
    step,
    _embed(config, params, tokens),
    (params["params"]["blocks"], options, cache),
  )
  return _finish(config, params, tokens, hidden), cache


def _embed(config: TransformerConfig, params: Any, tokens: Array) -> Array:
  """Embeds tokens [B, L], or [T] if they are packed: [B · L, width]."""
  embedding = params["params"]["embed"]["embedding"]
  if isinstance(embedding, dict):
    rows = narrow_matrices.take_rows(embedding, tokens.reshape(-1))
  else:
    rows = partitioning.look_up(embedding, tokens.reshape(-1))
  return transformer.scale_embedding(
    rows.astype(config.dtype), config.embedding_scale
  )


def _finish(
  config: TransformerConfig,
  params: Any,
  tokens: Array,
  hidden: Array,
) -> Array:
  """Final hidden states, [B, L, width], or [T, width] of packed tokens."""
  own = {"params": params["params"]["final_norm"]}
  return (
    transformer.make_norm(config).apply(own, hidden).reshape(*tokens.shape, -1)
  )
