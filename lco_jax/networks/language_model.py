"""Language models as pure functions for training and generation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from lco_jax import types
from lco_jax.networks import (
  narrow_matrices,
  transformer,
  transformer_reading,
)
from lco_jax.networks.transformer_config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """A transformer over a vocabulary, as pure functions.

  Attributes:
    init: key → parameters.
    hidden: (parameters, tokens [B, L], padding [B], cache, start, packing) →
      (final hidden states float[B, L, W], or [T, W] of packed tokens, cache);
      the last three are optional, and only updates on packed tokens give a
      packing.
    head: (parameters, float[..., W]) → logits float32[..., V]; V is 1 for a
      value model.
    apply: `hidden`, then `head`.
    empty_cache: (B, slots) → cache for `hidden`.
    reader: (parameters, B, slots) → (read, cache), a faster `hidden` for loops.
      `read` maps (tokens, padding, cache, start, positions) to
      (float[B, L, W], cache); its cache is a pytree of arrays [B, ...]. Only
      `refilling` gives positions.
    vocab_size: V.
  """

  init: Callable[[types.PRNGKey], types.Params]
  hidden: Callable
  head: Callable[[types.Params, Array], Array]
  apply: Callable
  empty_cache: Callable[[int, int], transformer.KVCache]
  reader: Callable[[types.Params, int, int], tuple[Callable, Any]]
  vocab_size: int


def make_language_model(
  config: TransformerConfig,
) -> LanguageModel:
  """Builds the model of a configuration."""
  return _make(config, transformer.Transformer(config))


def make_value_model(
  config: TransformerConfig,
) -> LanguageModel:
  """Builds a model of the same shape with a single output, the value."""
  return _make(config, transformer.Transformer(config, num_outputs=1))


def copy_body(params: types.Params, source: types.Params) -> types.Params:
  """Replaces all of a value model's parameters but its output by a policy's."""
  body = {k: v for k, v in source["params"].items() if k != "output"}
  return {"params": params["params"] | body}


def select_attention(params: types.Params) -> types.Params:
  """Selects the attention projections of parameters or gradients."""
  return params["params"]["blocks"]["attention"]


def select_head(params: types.Params) -> types.Params:
  """Selects the parameters that the model's `head` reads."""
  own = params["params"]
  name = "output" if "output" in own else "embed"
  return {"params": {name: narrow_matrices.widen(own[name])}}


def _make(config, module) -> LanguageModel:
  tokens, padding = jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32)

  def read(params, tokens, padding, cache=None, start=0, packing=None):
    rest = (tokens, padding, cache, start, packing)
    if narrow_matrices.is_narrow(params):
      return transformer_reading.read_narrow(config, params, *rest)
    return module.apply(params, *rest, method="hidden")

  def head(params, hidden):
    return module.apply(select_head(params), hidden, method="head")

  def apply(params, tokens, padding, cache=None, start=0):
    hidden, cache = read(params, tokens, padding, cache, start)
    return head(params, hidden), cache

  return LanguageModel(
    init=lambda key: module.init(key, tokens, padding),
    hidden=read,
    head=head,
    apply=apply,
    empty_cache=functools.partial(transformer.empty_cache, config),
    reader=functools.partial(transformer_reading.make_reader, config),
    vocab_size=config.vocab_size,
  )
