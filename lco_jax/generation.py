"""Sampling completions from a language model, with a key-value cache.

Prompts are read once (prefill), however many completions are asked of each,
then tokens are sampled one after the other until every sequence has ended.
Randomness belongs to the sequence: each has a key of its own, so what it
becomes does not depend on those beside it.

Shapes: N prompts, B sequences, P slots for a prompt, C for its completion, V
vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lco_jax import numerics, types

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Sampling:
  """The distribution that tokens are sampled from.

  Attributes:
    temperature: what logits are divided by, > 0; 0 takes the likeliest token.
    top_k: how many of the likeliest tokens are kept; 0 for all.
    top_p: smallest probability that the kept ones must add up to, in (0, 1].
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if not 0 <= self.temperature < math.inf:
      raise ValueError(
        f"temperature must be ≥ 0 and finite, got {self.temperature}"
      )
    if self.top_k < 0:
      raise ValueError(f"top_k must be ≥ 0, got {self.top_k}")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


class Completion(NamedTuple):
  """What was sampled.

  Attributes:
    tokens: int32[B, C]; after the end, 0.
    mask: bool[B, C], tokens that were sampled, the end included.
    behaviour_log_prob: float32[B, C], of the tokens under the distribution that
      they were sampled from, in nats; 0 outside the mask.
    logits: float32[B, C, V], the policy's own, before temperature and cuts; 0
      where nothing was computed.
    truncated: bool[B], completions that were cut off before they ended.
  """

  tokens: Array
  mask: Array
  behaviour_log_prob: Array
  logits: Array
  truncated: Array


def sampling_logits(logits: Array, sampling: Sampling) -> Array:
  """Logits of the distribution that is sampled from: −inf where cut off.

  Args:
    logits: float32[..., V], the policy's, in nats.
    sampling: temperature above 0, and cuts.

  Source: Holtzman et al. 2019, arXiv:1904.09751 (top-p).
  """
  logits = logits / sampling.temperature
  if 0 < sampling.top_k < logits.shape[-1]:
    least = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
    logits = jnp.where(logits >= least, logits, -jnp.inf)
  if sampling.top_p < 1:
    ordered = -jnp.sort(-logits, axis=-1)
    probs = jax.nn.softmax(ordered)
    before = jnp.cumsum(probs, axis=-1) - probs
    # The least likely token that is needed; all that are as likely stay.
    needed = jnp.where(before < sampling.top_p, ordered, jnp.inf)
    least = jnp.min(needed, axis=-1, keepdims=True)
    logits = jnp.where(logits >= least, logits, -jnp.inf)
  return logits


def sample_token(
  logits: Array, uniform: Array, sampling: Sampling
) -> tuple[Array, Array]:
  """Samples by inverting the cumulative distribution: one number per token.

  Args:
    logits: float32[..., V], the policy's.
    uniform: float32[...], in [0, 1).
    sampling: the distribution.

  Returns:
    (token int32[...], log-probability float32[...] with which it was sampled).
  """
  if sampling.temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.zeros(
      logits.shape[:-1], logits.dtype
    )
  log_probs = jax.nn.log_softmax(sampling_logits(logits, sampling))
  cumulative = jnp.cumsum(jnp.exp(log_probs), axis=-1)
  # Relative to the last, which rounding keeps from being 1. The first entry
  # above the threshold is never one of probability 0.
  above = cumulative > uniform[..., None] * cumulative[..., -1:]
  token = jnp.argmax(above, axis=-1).astype(jnp.int32)
  return token, numerics.select_action(log_probs, token)


def generate(
  model: Callable[..., Any],
  empty_cache: Callable[[int, int], Any],
  params: types.Params,
  prompt: Array,
  padding: Array,
  keys: types.PRNGKey,
  num_tokens: int,
  end: int,
  sampling: Sampling,
) -> Completion:
  """Completes prompts.

  Args:
    model: (params, tokens [B, L], padding [B], cache, start) → (logits
      float32[B, L, V], cache).
    empty_cache: (B, slots) → cache, arrays [layers, B, ...].
    params: of the model.
    prompt: int32[N, P], padded on the left.
    padding: int32[N], how many of its slots hold no token.
    keys: PRNG keys [B], one for each sequence, B a multiple of N: sequence i
      completes prompt i mod N.
    num_tokens: C.
    end: token that ends a sequence.
    sampling: the distribution to sample from.
  """
  (num_prompts, prompt_length), batch_size = prompt.shape, len(keys)
  if batch_size % num_prompts:
    raise ValueError(f"{batch_size} keys for {num_prompts} prompts")
  num_samples = batch_size // num_prompts
  uniform = jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(keys)
  sample = functools.partial(sample_token, sampling=sampling)

  def record(completion, time, logits, ended):
    """Samples at a time for those that have not ended."""
    token, log_prob = sample(logits, uniform[:, time])
    token = jnp.where(ended, 0, token)
    return completion._replace(
      tokens=completion.tokens.at[:, time].set(token),
      mask=completion.mask.at[:, time].set(~ended),
      behaviour_log_prob=completion.behaviour_log_prob.at[:, time].set(
        jnp.where(ended, 0.0, log_prob)
      ),
      logits=completion.logits.at[:, time].set(logits),
      truncated=~ended & (token != end),
    ), token

  cache = empty_cache(num_prompts, prompt_length + num_tokens)
  logits, cache = model(params, prompt, padding, cache, 0)
  # Every sample goes on from its own copy of what was read.
  cache = jax.tree.map(
    lambda leaf: jnp.tile(leaf, (1, num_samples) + (1,) * (leaf.ndim - 2)),
    cache,
  )
  first = jnp.tile(logits[:, -1], (num_samples, 1))
  padding = jnp.tile(padding, num_samples)
  shape = (batch_size, num_tokens)
  blank = Completion(
    tokens=jnp.zeros(shape, jnp.int32),
    mask=jnp.zeros(shape, bool),
    behaviour_log_prob=jnp.zeros(shape, jnp.float32),
    logits=jnp.zeros((*shape, logits.shape[-1]), jnp.float32),
    truncated=jnp.ones(batch_size, bool),
  )
  completion, token = record(blank, 0, first, ~blank.truncated)

  def going_on(carry):
    time, _, _, completion = carry
    return (time < num_tokens) & completion.truncated.any()

  def step(carry):
    time, token, cache, completion = carry
    logits, cache = model(
      params, token[:, None], padding, cache, prompt_length + time - 1
    )
    ended = ~completion.truncated
    completion, token = record(completion, time, logits[:, 0], ended)
    return time + 1, token, cache, completion

  *_, completion = jax.lax.while_loop(
    going_on, step, (jnp.int32(1), token, cache, completion)
  )
  return completion


def completion_outputs(
  model: Callable[..., Any],
) -> Callable[[types.Params, types.Samples | types.TokenBatch], Array]:
  """(parameters, completions) → outputs [..., C, V] before each token."""
  return lambda params, batch: completion_logits(
    model, params, batch.prompt, batch.padding, batch.action
  )


def completion_logits(
  model: Callable[..., Any],
  params: types.Params,
  prompt: Array,
  padding: Array,
  completion: Array,
) -> Array:
  """Logits from which each token of given completions would be chosen.

  Args:
    model: as of `generate`; read whole, without a cache.
    params: of the model.
    prompt: int32[..., P], padded on the left.
    padding: int32[...].
    completion: int32[..., C].

  Returns:
    float32[..., C, V].
  """
  leading = padding.shape
  tokens = jnp.concatenate([prompt, completion], axis=-1)
  logits, _ = model(
    params, tokens.reshape(-1, tokens.shape[-1]), padding.reshape(-1)
  )
  logits = logits[:, prompt.shape[-1] - 1 : -1]
  return logits.reshape(*leading, *logits.shape[1:])
