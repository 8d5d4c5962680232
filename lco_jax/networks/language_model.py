"""A language model as pure functions, with what generation needs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lco_jax import types
from lco_jax.networks import transformer

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """A transformer over a vocabulary, and nothing of its inside.

  Attributes:
    init: key → parameters.
    hidden: (parameters, tokens [B, L], padding [B], cache, start) → (final
      hidden states float[B, L, W], cache); cache and start may be left out.
    head: (parameters, float[..., W]) → logits float32[..., V]; V is 1 for a
      model of values.
    apply: `hidden`, then `head`.
    empty_cache: (B, slots) → cache for `hidden`.
    reader: (parameters, B, slots) → (read, cache): `hidden` of these parameters
      for calls in a loop, (tokens, padding, cache, start) → (float[B, L, W],
      cache); its cache is a pytree of arrays [B, ...].
    vocab_size: V.
  """

  init: Callable[[types.PRNGKey], types.Params]
  hidden: Callable
  head: Callable[[types.Params, Array], Array]
  apply: Callable
  empty_cache: Callable[[int, int], transformer.KVCache]
  reader: Callable[[types.Params, int, int], tuple[Callable, Any]]
  vocab_size: int


def make_language_model(config: transformer.TransformerConfig) -> LanguageModel:
  """Builds the model of a configuration."""
  return _make(config, transformer.Transformer(config))


def make_value_model(config: transformer.TransformerConfig) -> LanguageModel:
  """Builds a model of the same shape with one output, a value."""
  return _make(config, transformer.Transformer(config, num_outputs=1))


def with_body_of(params: types.Params, other: types.Params) -> types.Params:
  """A value model's parameters with all of a policy's but its output layer."""
  body = {k: v for k, v in other["params"].items() if k != "output"}
  return {"params": params["params"] | body}


def attention_of(params: types.Params) -> types.Params:
  """The attention projections among a model's parameters, or gradients."""
  return params["params"]["blocks"]["attention"]


def head_of(params: types.Params) -> types.Params:
  """The part of a model's parameters that its `head` needs."""
  own = params["params"]
  name = "output" if "output" in own else "embed"
  return {"params": {name: own[name]}}


def _make(config, module) -> LanguageModel:
  tokens, padding = jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32)
  return LanguageModel(
    init=lambda key: module.init(key, tokens, padding),
    hidden=functools.partial(module.apply, method="hidden"),
    head=functools.partial(module.apply, method="head"),
    apply=module.apply,
    empty_cache=functools.partial(transformer.empty_cache, config),
    reader=functools.partial(transformer.make_reader, config),
    vocab_size=config.vocab_size,
  )
