"""Sampling of completions from a language model with a key-value cache.

Each prompt is read once (prefill) for all its completions. Then all sequences
sample one token at a time until every sequence has ended. Each sequence has its
own random key, so it does not depend on the others in its batch.

Shapes: N prompts, B sequences, P prompt slots, C completion slots, V tokens in
the vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import checks, networks, numerics, types
from lco_jax.checks import setting
from lco_jax.language import refilling
from lco_jax.networks import partitioning
from lco_jax.training import rows

# Size of the vocabulary blocks whose sums are sampled first.
_BLOCK = 256
# The largest float32 below 1 that rounding cannot turn into 1.
_BELOW_ONE = 1 - 2**-23


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Options of the sampling distribution."""

  temperature: float = setting(
    1.0, "divisor of the logits; 0 selects the likeliest token", at_least=0.0
  )
  top_k: int = setting(
    0, "number of likeliest tokens to keep; 0 keeps all", at_least=0
  )
  top_p: float = setting(
    1.0,
    "keeps the fewest likeliest tokens with at least this probability",
    above=0.0,
    at_most=1.0,
  )

  def __post_init__(self):
    checks.check_settings(self)


class Completion(NamedTuple):
  """Sampled completions.

  Attributes:
    tokens: int32[B, C]; 0 after the end.
    mask: bool[B, C], sampled tokens, the end token included.
    behaviour_log_prob: float32[B, C], log-probabilities of the tokens under the
      sampling distribution, in nats; 0 outside the mask.
    observed: pytree [B, C, ...], outputs of `observe` at each step, by default
      the policy's logits, float32[B, C, V], before temperature, top-k and
      top-p; 0 at steps that were not computed.
    truncated: bool[B], completions cut off before their end token.
    num_steps: int32[B], how often tokens of all running sequences were read
      until the last token was sampled.
  """

  tokens: Array
  mask: Array
  behaviour_log_prob: Array
  observed: Any
  truncated: Array
  num_steps: Array


def sampling_logits(logits: Array, sampling: Sampling) -> Array:
  """Logits of the sampling distribution, −inf at excluded tokens.

  Args:
    logits: float32[..., V], the policy's, in nats.
    sampling: options, with temperature > 0.

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
    # Keep the tokens that reach top_p, and all tokens tied with the last one.
    needed = jnp.where(before < sampling.top_p, ordered, jnp.inf)
    least = jnp.min(needed, axis=-1, keepdims=True)
    logits = jnp.where(logits >= least, logits, -jnp.inf)
  return logits


def sample_token(
  logits: Array, uniform: Array, sampling: Sampling
) -> tuple[Array, Array]:
  """Samples a token from one uniform number by inverting the CDF.

  Args:
    logits: float32[..., V], the policy's.
    uniform: float32[...], in [0, 1).
    sampling: options of the distribution.

  Returns:
    (token int32[...], its log-probability float32[...] when sampling).
  """
  if sampling.temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.zeros(
      logits.shape[:-1], logits.dtype
    )
  log_probs = jax.nn.log_softmax(sampling_logits(logits, sampling))
  probs = jnp.exp(log_probs)
  # Sample a block of tokens, then a token in it: a cumulative sum over a large
  # vocabulary takes several times as long as two short sums.
  block_size = min(_BLOCK, probs.shape[-1])
  gaps = [(0, 0)] * (probs.ndim - 1) + [(0, -probs.shape[-1] % block_size)]
  blocks = jnp.pad(probs, gaps).reshape(*uniform.shape, -1, block_size)
  block, uniform = _invert_cdf(jnp.sum(blocks, axis=-1), uniform)
  chosen = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)
  within, _ = _invert_cdf(chosen[..., 0, :], uniform)
  token = (block * block_size + within).astype(jnp.int32)
  return token, numerics.select_action(log_probs, token)


def _invert_cdf(weights: Array, uniform: Array) -> tuple[Array, Array]:
  """Inverts the cumulative distribution of unnormalised weights.

  Args:
    weights: float32[..., K], ≥ 0, not all 0.
    uniform: float32[...], in [0, 1).

  Returns:
    (entry int32[...], always of positive weight; position of the number inside
    that entry, float32[...], again uniform in [0, 1)).
  """
  cumulative = jnp.cumsum(weights, axis=-1)
  # Scale by the last sum, which rounding may keep from being 1. The first entry
  # above the threshold always has positive weight.
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


def observe_logits(
  params: types.Params, hidden: Array, logits: Array, token: Array
) -> Array:
  """Observes the policy's logits."""
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
  observe: Observe = observe_logits,
  num_slots: int = 0,
  limits: Array | None = None,
) -> Completion:
  """Samples completions of prompts.

  Args:
    model: language model.
    params: parameters of the model.
    prompt: int32[N, P], padded on the left.
    padding: int32[N], number of padded slots of each prompt.
    keys: PRNG keys [B], one per sequence. B is a multiple of N; sequences are
      ordered as `rows.flatten` orders samples and prompts.
    num_tokens: C.
    end: the token or tokens that end a sequence.
    sampling: options of the sampling distribution.
    observe: computes the outputs to keep of each step.
    num_slots: sequences that run at a time, see `refilling`; 0 for all.
    limits: int32[B], tokens of each sequence at most, from 1 to C; None for C.
  """
  # Files give NumPy arrays, which the compiled loop cannot index.
  params, padding = jax.tree.map(jnp.asarray, (params, padding))
  batch_size, length = len(keys), prompt.shape[1]
  num_samples = _count_samples(batch_size, len(prompt), "keys")
  if limits is None:
    limits = jnp.full(batch_size, num_tokens)
  sampler = _Sampler(
    lambda hidden: model.head(params, hidden),
    functools.partial(observe, params),
    sampling,
    jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(keys),
    jnp.atleast_1d(jnp.asarray(end, jnp.int32)),
    jnp.minimum(limits, num_tokens),
  )
  in_slots = 0 < num_slots < batch_size
  read, caches = model.reader(
    params, len(prompt), length if in_slots else length + num_tokens
  )
  hidden, caches = read(prompt, padding, caches, 0)
  first = rows.repeat(hidden[:, -1], num_samples)
  completion, token, ended = sampler.sample(
    sampler.make_blank(first),
    (slice(None), 0),
    0,
    first,
    jnp.zeros(batch_size, bool),
  )
  if in_slots:
    waiting = refilling.Waiting(
      # Those that the first token ended come last.
      sequences=jnp.argsort(ended, stable=True),
      count=jnp.sum(~ended),
      tokens=token,
      prompts=rows.repeat(jnp.arange(len(prompt)), num_samples),
      padding=padding,
      caches=caches,
    )
    _, cache = model.reader(params, num_slots, length + num_tokens)
    return refilling.continue_in_slots(
      read, waiting, cache, length, num_tokens, sampler.sample, completion
    )
  # Every sample continues from its own copy of the prompt's cache.
  cache, padding = rows.repeat((caches, padding), num_samples)

  def step(carry):
    time, token, ended, cache, completion = carry
    hidden, cache = read(token[:, None], padding, cache, length + time - 1)
    completion, token, ended = sampler.sample(
      completion, (slice(None), time), time, hidden[:, 0], ended
    )
    return time + 1, token, ended, cache, completion

  *_, completion = jax.lax.while_loop(
    lambda carry: partitioning.any_shard(~carry[2].all()),
    step,
    (jnp.int32(1), token, ended, cache, completion),
  )
  return completion


class _Sampler(NamedTuple):
  """Samples next tokens, and records them.

  Attributes:
    head: hidden states float[R, W] → logits float32[R, V].
    observe: (hidden states, logits, tokens) → pytree [R, ...].
    sampling: options of the distribution.
    uniform: float32[B, C], a random number for each token.
    ends: int32[E], tokens that end a sequence.
    limits: int32[B], tokens of each sequence at most.
  """

  head: Callable[[Array], Array]
  observe: Callable[[Array, Array, Array], Any]
  sampling: Sampling
  uniform: Array
  ends: Array
  limits: Array

  def make_blank(self, hidden: Array) -> Completion:
    """Completions without tokens, of hidden states float[B, W]."""
    shape = self.uniform.shape
    token = jnp.zeros(len(hidden), jnp.int32)
    observed = jax.eval_shape(
      lambda: self.observe(hidden, self.head(hidden), token)
    )
    return Completion(
      tokens=jnp.zeros(shape, jnp.int32),
      mask=jnp.zeros(shape, bool),
      behaviour_log_prob=jnp.zeros(shape, jnp.float32),
      observed=jax.tree.map(
        lambda own: jnp.zeros((*shape, *own.shape[1:]), own.dtype), observed
      ),
      truncated=jnp.ones(len(hidden), bool),
      num_steps=jnp.zeros(len(hidden), jnp.int32),
    )

  def sample(
    self,
    completion: Completion,
    place: tuple[Any, Any],
    step: Array,
    hidden: Array,
    ended: Array,
  ) -> tuple[Completion, Array, Array]:
    """Samples the next token of each of R rows that has not ended.

    Args:
      completion: the tokens before.
      place: (sequence, time) of each row's token, as indices of [B, C]. Rows
        of sequence B are dropped.
      step: int32[], how often rows were read until now.
      hidden: float[R, W], final hidden states that predict the tokens.
      ended: bool[R].

    Returns:
      (completion with the tokens; tokens int32[R]; rows that have ended now,
      bool[R]).
    """
    sequence, time = place
    logits = self.head(hidden)
    token, log_prob = sample_token(logits, self.uniform[place], self.sampling)
    token = jnp.where(ended, 0, token)
    is_end = jnp.isin(token, self.ends)

    def write(every, own):
      return every.at[place].set(own, mode="drop")

    def update(every, own):
      own = jnp.where(ended, every[sequence], own)
      return every.at[sequence].set(own, mode="drop")

    completion = completion._replace(
      tokens=write(completion.tokens, token),
      mask=write(completion.mask, ~ended),
      behaviour_log_prob=write(
        completion.behaviour_log_prob, jnp.where(ended, 0.0, log_prob)
      ),
      observed=jax.tree.map(
        write, completion.observed, self.observe(hidden, logits, token)
      ),
      truncated=update(completion.truncated, ~is_end),
      num_steps=update(completion.num_steps, step),
    )
    is_last = time + 1 >= self.limits[sequence]
    return completion, token, ended | is_end | is_last


def completion_hidden(
  model: networks.LanguageModel,
  params: types.Params,
  prompt: Array,
  padding: Array,
  completion: Array,
) -> Array:
  """Final hidden states that predict each token of given completions.

  Reads each prompt once for all its completions, as `generate` does.

  Args:
    model: language model.
    params: parameters of the model.
    prompt: int32[N, P], padded on the left.
    padding: int32[N].
    completion: int32[B, C]. B is a multiple of N; completions are ordered as
      `rows.flatten` orders samples and prompts.

  Returns:
    float[B, C, W].
  """
  prompt_length, length = prompt.shape[1], completion.shape[1]
  num_samples = _count_samples(len(completion), len(prompt), "completions")
  if num_samples == 1:
    tokens = jnp.concatenate([prompt, completion[:, :-1]], axis=1)
    hidden, _ = model.hidden(params, tokens, padding)
    return hidden[:, prompt_length - 1 :]
  first, read_rest = _read_prompts(model, params, prompt, padding, completion)
  if length == 1:
    return first[:, None]
  return jnp.concatenate([first[:, None], read_rest()], axis=1)


def _read_prompts(
  model: networks.LanguageModel,
  params: types.Params,
  prompt: Array,
  padding: Array,
  completion: Array,
) -> tuple[Array, Callable[..., Array]]:
  """Reads each prompt once; arguments are those of `completion_hidden`.

  Returns:
    (hidden states that predict the first tokens, float[B, W]; a function of a
    packing of [B, C − 1], or of None, that reads those of the other tokens).
  """
  prompt_length, length = prompt.shape[1], completion.shape[1]
  num_samples = _count_samples(len(completion), len(prompt), "completions")
  cache = model.empty_cache(len(prompt), prompt_length + length)
  hidden, cache = model.hidden(params, prompt, padding, cache, 0)

  def read_rest(*packing):
    return model.hidden(
      params,
      completion[:, :-1],
      rows.repeat(padding, num_samples),
      rows.repeat(cache, num_samples, axis=1),
      prompt_length,
      *packing,
    )[0]

  return rows.repeat(hidden[:, -1], num_samples), read_rest


def packed_hidden(
  model: networks.LanguageModel,
  params: types.Params,
  prompt: Array,
  padding: Array,
  completion: Array,
  mask: Array,
  size: int,
) -> tuple[Array, Callable[[Array], Array]]:
  """`completion_hidden` of the tokens that were sampled, without other slots.

  Args:
    model: language model.
    params: parameters of the model.
    prompt: int32[N, P], padded on the left.
    padding: int32[N].
    completion: int32[B, C], as of `completion_hidden`.
    mask: bool[B, C], tokens that were sampled: the first, and those behind it
      up to the end of each completion.
    size: T, places for the tokens of the mask behind the first ones, see
      `networks.make_packing`.

  Returns:
    (float[B + T, W]: the completions' first tokens, then the others; a function
    that takes [B, C, ...] apart likewise, with zeros where no token is left).
  """
  first, read_rest = _read_prompts(model, params, prompt, padding, completion)
  packing = networks.make_packing(mask[:, 1:], size)

  def take(leaf):
    own = leaf[:, 1:].reshape(-1, *leaf.shape[2:])
    return rows.join(leaf[:, 0], networks.pack(own, packing))

  return rows.join(first, read_rest(packing)), take


def count_packed(
  mask: Array, num_minibatches: int, num_microbatches: int
) -> Array:
  """Counts the packed tokens of the longest microbatch that may come.

  Args:
    mask: bool[G, N, C], tokens of a device's completions that were sampled.
    num_minibatches: that divide the samples of each prompt, in any way.
    num_microbatches: that divide the prompts of each.

  Returns:
    int32[], a size for `packed_hidden` of any of them.
  """
  lengths = jnp.maximum(jnp.sum(mask, axis=-1) - 1, 0)
  longest = -jnp.sort(-lengths, axis=0)[: len(lengths) // num_minibatches]
  shards = partitioning.axis_size(partitioning.FSDP_AXIS)
  parts = jnp.sum(longest, axis=0).reshape(shards, num_microbatches, -1)
  return shards * jnp.max(jnp.sum(parts, axis=-1))


def _count_samples(number: int, num_prompts: int, what: str) -> int:
  if number % num_prompts:
    raise ValueError(f"{number} {what}: no multiple of {num_prompts} prompts")
  return number // num_prompts
