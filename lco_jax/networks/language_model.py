"""A language model as pure functions, with what generation needs."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lco_jax import types
from lco_jax.networks import transformer

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """A transformer over a vocabulary, and nothing of its inside.

  Attributes:
    vocab_size: V.
    init: key → parameters.
    apply: (parameters, tokens [B, L], padding [B], cache, start) → (logits
      float32[B, L, V], cache); cache and start may be left out.
    empty_cache: (B, slots) → cache.
  """

  vocab_size: int
  init: Callable[[types.PRNGKey], types.Params]
  apply: Callable
  empty_cache: Callable[[int, int], transformer.KVCache]


def make_language_model(config: transformer.TransformerConfig) -> LanguageModel:
  """Builds the model of a configuration."""
  module = transformer.Transformer(config)
  tokens, padding = jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32)
  return LanguageModel(
    vocab_size=config.vocab_size,
    init=lambda key: module.init(key, tokens, padding),
    apply=module.apply,
    empty_cache=functools.partial(transformer.empty_cache, config),
  )
