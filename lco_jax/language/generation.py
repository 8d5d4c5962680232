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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lco_jax import checks, networks, numerics, types

Array = jax.Array

# Tokens that are summed up before one is sampled.
_BLOCK = 256
# A number that is less by more than rounding can bring back.
_BELOW_ONE = 1 - 2**-23


@dataclasses.dataclass(frozen=True)
class Sampling:
  """The distribution that tokens are sampled from.

  Raises:
    ValueError: naming the setting that is out of range.
  """

  temperature: float = checks.setting(
    1.0, "divisor of logits; 0 takes the likeliest token", at_least=0.0
  )
  top_k: int = checks.setting(
    0, "how many of the likeliest tokens are kept; 0 for all", at_least=0
  )
  top_p: float = checks.setting(
    1.0,
    "smallest probability that the kept tokens must add up to",
    above=0.0,
    at_most=1.0,
  )

  def __post_init__(self):
    checks.check_settings(self)


class Completion(NamedTuple):
  """What was sampled.

  Attributes:
    tokens: int32[B, C]; after the end, 0.
    mask: bool[B, C], tokens that were sampled, the end included.
    behaviour_log_prob: float32[B, C], of the tokens under the distribution that
      they were sampled from, in nats; 0 outside the mask.
    observed: pytree [B, C, ...], what was asked for of each step: by default
      the policy's own logits, float32[B, C, V], before temperature and cuts; 0
      where nothing was computed.
    truncated: bool[B], completions that were cut off before they ended.
  """

  tokens: Array
  mask: Array
  behaviour_log_prob: Array
  observed: Any
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
  probs = jnp.exp(log_probs)
  # First which block of tokens, then which of its tokens: a running sum over a
  # large vocabulary takes several times as long as two short ones.
  block_size = min(_BLOCK, probs.shape[-1])
  gaps = [(0, 0)] * (probs.ndim - 1) + [(0, -probs.shape[-1] % block_size)]
  blocks = jnp.pad(probs, gaps).reshape(*uniform.shape, -1, block_size)
  block, uniform = _inverted(jnp.sum(blocks, axis=-1), uniform)
  chosen = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)
  within, _ = _inverted(chosen[..., 0, :], uniform)
  token = (block * block_size + within).astype(jnp.int32)
  return token, numerics.select_action(log_probs, token)


def _inverted(weights: Array, uniform: Array) -> tuple[Array, Array]:
  """Where a cumulative distribution passes a number, and how far behind.

  Args:
    weights: float32[..., K], ≥ 0, not all 0.
    uniform: float32[...], in [0, 1).

  Returns:
    (entry int32[...], never one of weight 0; the number's place within it
    float32[...], uniform in [0, 1) again).
  """
  cumulative = jnp.cumsum(weights, axis=-1)
  # Relative to the last, which rounding keeps from being 1. The first entry
  # above the threshold is never one of weight 0.
  threshold = uniform * cumulative[..., -1]
  entry = jnp.argmax(cumulative > threshold[..., None], axis=-1)
  bounds = jnp.pad(cumulative, [(0, 0)] * (weights.ndim - 1) + [(1, 0)])
  low, high = (
    jnp.take_along_axis(bounds, (entry + side)[..., None], axis=-1)[..., 0]
    for side in (0, 1)
  )
  rest = (threshold - low) / (high - low)
  return entry, jnp.clip(rest, 0.0, _BELOW_ONE)


# (params, hidden states float[B, W], logits float32[B, V], tokens int32[B]) →
# pytree [B, ...].
Observe = Callable[[types.Params, Array, Array, Array], Any]


def the_logits(
  params: types.Params, hidden: Array, logits: Array, token: Array
) -> Array:
  """Observes the logits themselves."""
  del params, hidden, token
  return logits


def generate(
  model: networks.LanguageModel,
  params: types.Params,
  prompt: Array,
  padding: Array,
  keys: types.PRNGKey,
  num_tokens: int,
  end: int | Sequence[int],
  sampling: Sampling,
  observe: Observe = the_logits,
) -> Completion:
  """Completes prompts.

  Args:
    model: to sample from.
    params: of the model.
    prompt: int32[N, P], padded on the left.
    padding: int32[N], how many of its slots hold no token.
    keys: PRNG keys [B], one for each sequence, B a multiple of N: sequence i
      completes prompt i mod N.
    num_tokens: C.
    end: token that ends a sequence, or several of which each does.
    sampling: the distribution to sample from.
    observe: what to keep of each step.
  """
  prompt_length, batch_size = prompt.shape[1], len(keys)
  num_samples = _samples_of_each(batch_size, len(prompt), "keys")
  uniform = jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(keys)
  sample = functools.partial(sample_token, sampling=sampling)
  ends = jnp.atleast_1d(jnp.asarray(end, jnp.int32))

  def next_token(time, hidden, ended):
    logits = model.head(params, hidden)
    token, log_prob = sample(logits, uniform[:, time])
    token = jnp.where(ended, 0, token)
    log_prob = jnp.where(ended, 0.0, log_prob)
    return token, log_prob, observe(params, hidden, logits, token)

  def record(completion, time, hidden, ended):
    """Samples at a time for those that have not ended."""
    token, log_prob, observed = next_token(time, hidden, ended)
    return completion._replace(
      tokens=completion.tokens.at[:, time].set(token),
      mask=completion.mask.at[:, time].set(~ended),
      behaviour_log_prob=completion.behaviour_log_prob.at[:, time].set(
        log_prob
      ),
      observed=jax.tree.map(
        lambda all_steps, own: all_steps.at[:, time].set(own),
        completion.observed,
        observed,
      ),
      truncated=~ended & ~jnp.isin(token, ends),
    ), token

  read, cache = model.reader(params, len(prompt), prompt_length + num_tokens)
  hidden, cache = read(prompt, padding, cache, 0)
  # Every sample goes on from its own copy of what was read.
  cache = _repeated(cache, num_samples)
  first = _repeated(hidden[:, -1], num_samples)
  padding = _repeated(padding, num_samples)
  shape = (batch_size, num_tokens)
  running = jnp.ones(batch_size, bool)
  blank = Completion(
    tokens=jnp.zeros(shape, jnp.int32),
    mask=jnp.zeros(shape, bool),
    behaviour_log_prob=jnp.zeros(shape, jnp.float32),
    observed=jax.tree.map(
      lambda own: jnp.zeros((*shape, *own.shape[1:]), own.dtype),
      jax.eval_shape(next_token, 0, first, ~running)[2],
    ),
    truncated=running,
  )
  completion, token = record(blank, 0, first, ~running)

  def going_on(carry):
    time, _, _, completion = carry
    return (time < num_tokens) & completion.truncated.any()

  def step(carry):
    time, token, cache, completion = carry
    hidden, cache = read(
      token[:, None], padding, cache, prompt_length + time - 1
    )
    ended = ~completion.truncated
    completion, token = record(completion, time, hidden[:, 0], ended)
    return time + 1, token, cache, completion

  *_, completion = jax.lax.while_loop(
    going_on, step, (jnp.int32(1), token, cache, completion)
  )
  return completion


def completion_logits(
  model: networks.LanguageModel,
  params: types.Params,
  prompt: Array,
  padding: Array,
  completion: Array,
) -> Array:
  """Logits from which each token of given completions would be chosen.

  Args:
    model: read whole, without a cache.
    params: of the model.
    prompt: int32[..., P], padded on the left.
    padding: int32[...].
    completion: int32[..., C].

  Returns:
    float32[..., C, V].
  """
  hidden = completion_hidden(
    model,
    params,
    prompt.reshape(-1, prompt.shape[-1]),
    padding.reshape(-1),
    completion.reshape(-1, completion.shape[-1]),
  )
  logits = model.head(params, hidden)
  return logits.reshape(*completion.shape, -1)


def completion_hidden(
  model: networks.LanguageModel,
  params: types.Params,
  prompt: Array,
  padding: Array,
  completion: Array,
) -> Array:
  """Final hidden states from which each token of completions is chosen.

  Where several complete one prompt it is read once, as in `generate`.

  Args:
    model: to read with.
    params: of the model.
    prompt: int32[N, P], padded on the left.
    padding: int32[N].
    completion: int32[B, C], B a multiple of N: row i completes prompt i mod N.

  Returns:
    float[B, C, W].
  """
  prompt_length, length = prompt.shape[1], completion.shape[1]
  num_samples = _samples_of_each(len(completion), len(prompt), "completions")
  if num_samples == 1:
    tokens = jnp.concatenate([prompt, completion[:, :-1]], axis=1)
    hidden, _ = model.hidden(params, tokens, padding)
    return hidden[:, prompt_length - 1 :]
  cache = model.empty_cache(len(prompt), prompt_length + length)
  hidden, cache = model.hidden(params, prompt, padding, cache, 0)
  first = _repeated(hidden[:, -1:], num_samples)
  if length == 1:
    return first
  rest, _ = model.hidden(
    params,
    completion[:, :-1],
    _repeated(padding, num_samples),
    _repeated(cache, num_samples, axis=1),
    prompt_length,
  )
  return jnp.concatenate([first, rest], axis=1)


def _samples_of_each(number: int, num_prompts: int, what: str) -> int:
  if number % num_prompts:
    raise ValueError(f"{number} {what} for {num_prompts} prompts")
  return number // num_prompts


def _repeated(tree: Any, times: int, axis: int = 0) -> Any:
  """The whole axis again and again, in every leaf."""
  return jax.tree.map(
    lambda leaf: jnp.tile(
      leaf, (1,) * axis + (times,) + (1,) * (leaf.ndim - axis - 1)
    ),
    tree,
  )
