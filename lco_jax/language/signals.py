"""Advantage signals of language: the advantage of each token.

A signal is a function (params, Samples) → Signal, of one device's share. It
knows the advantages of a few tokens in each place, the sampled one first, and
one number for all the others: 0 where rewards say nothing of them.

Axes: samples G, prompts N, tokens C, known tokens K.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import advantages, checks, diagnostics, networks, numerics, types
from lco_jax.language import data, reading

# Log-probability above which a policy is all but sure of a token.
_SURE = -0.02


class Signal(NamedTuple):
  """Advantages of tokens.

  Attributes:
    advantage: float[G, N, C], of the sampled tokens; 0 outside the mask.
    known: int32[G, N, C, K], tokens whose advantages are known, the sampled one
      first; a token that comes twice has the same advantage in both places.
    known_advantage: float[G, N, C, K].
    rest_advantage: float[G, N, C], of every other token.
    agreed: bool[G, N, C], where policy and verifier are both all but sure of
      the sampled token; None for signals without a verifier.
    value: float[G, N, C], return expected before the token; None if unknown.
    value_target: float[G, N, C], what the value is regressed onto; None if
      unknown.
  """

  advantage: Array
  known: Array
  known_advantage: Array
  rest_advantage: Array
  agreed: Array | None = None
  value: Array | None = None
  value_target: Array | None = None


Estimate = Callable[[Mapping[str, types.Params], data.Samples], Signal]


def _in_groups(estimate: Callable[[Array], Array]) -> Callable[[Array], Array]:
  """An estimate over the last axis, for rewards [G, N]."""
  return lambda reward: jnp.moveaxis(
    estimate(jnp.moveaxis(reward, 0, -1)), -1, 0
  )


def _batch_normalized(reward: Array) -> Array:
  """Rewards standardised over all samples of all devices' prompts."""
  mean, variance = diagnostics.moments(reward, numerics.DATA_AXIS)
  return advantages.normalized(reward, mean, variance)


def _batch_centred(reward: Array) -> Array:
  """Rewards minus the mean over all prompts of all devices."""
  mean, _ = diagnostics.moments(reward, numerics.DATA_AXIS)
  return reward - mean


# Reward float[G, N] → advantage float[G, N], the same for all of its tokens.
FROM_REWARDS: dict[str, Callable[[Array], Array]] = {
  "group_relative": _in_groups(advantages.group_relative),
  "group_relative_sample": _in_groups(
    functools.partial(advantages.group_relative, ddof=1)
  ),
  "group_centred": _in_groups(advantages.group_centred),
  "leave_one_out": _in_groups(advantages.leave_one_out),
  "batch_centred": _batch_centred,
  "batch_normalized": _batch_normalized,
  "reward": lambda reward: reward,  # No baseline: nothing is discouraged.
}
# Those that compare the samples of a prompt, and nothing else.
IN_GROUPS = (
  "group_relative",
  "group_relative_sample",
  "group_centred",
  "leave_one_out",
)
# Those that ask another policy.
FROM_VERIFIERS = ("verifier", "preference")
# All by name; beside those from rewards:
#   learned     GAE with the values of a network
#   oracle      exact, where a problem has one right answer
#   verifier    log-probabilities of a better policy
#   preference  log-ratios of a policy trained on preferences
NAMES = (*FROM_REWARDS, "learned", "oracle", *FROM_VERIFIERS)


def make_signal(
  name: str,
  model: networks.LanguageModel,
  *,
  value_model: networks.LanguageModel | None = None,
  verifier_model: networks.LanguageModel | None = None,
  discount: float = 1.0,
  gae_lambda: float = 1.0,
  num_known: int = 5,
  chunk_tokens: int = 0,
) -> Estimate:
  """A signal by its name.

  Args:
    name: one of NAMES.
    model: the policy's.
    value_model: for `learned`, of the part "value" of the parameters.
    verifier_model: for `verifier` and `preference`, over the policy's
      vocabulary; None for the policy's model.
    discount: for `learned`, γ in [0, 1].
    gae_lambda: for `learned`, λ in [0, 1].
    num_known: for `verifier` and `preference`, likeliest tokens whose
      advantages are asked for, beside the sampled one; ≥ 1.
    chunk_tokens: tokens whose logits are held at a time; 0 for all.

  Raises:
    ValueError: if the name is unknown, or the value model missing.
  """
  checks.check_choice("advantage", name, NAMES)
  if name in FROM_REWARDS:
    return lambda params, samples: sampled_signal(
      samples, FROM_REWARDS[name](samples.reward)[..., None]
    )
  if name == "learned":
    if value_model is None:
      raise ValueError("value_model must be given for learned advantages")

    def estimate(params, samples):
      hidden = reading.read_hidden(value_model, params["value"], samples)
      values = value_model.head(params["value"], hidden)[..., 0]
      return generalized_advantages(samples, values, discount, gae_lambda)

    return estimate
  if name == "oracle":
    return lambda params, samples: exact_signal(
      model, params["policy"], samples, chunk_tokens
    )
  return from_verifier(
    model,
    verifier_model or model,
    num_known,
    chunk_tokens,
    relative=name == "preference",
  )


def sampled_signal(
  samples: data.Samples,
  advantage: Array,
  value: Array | None = None,
  value_target: Array | None = None,
) -> Signal:
  """The signal that knows the sampled tokens' advantages alone.

  Args:
    samples: [G, N].
    advantage: float[G, N, C].
    value: as of Signal.
    value_target: as of Signal.
  """
  advantage = jnp.where(samples.mask, advantage, 0.0)
  return Signal(
    advantage=advantage,
    known=samples.action[..., None],
    known_advantage=advantage[..., None],
    rest_advantage=jnp.zeros_like(advantage),
    value=value,
    value_target=value_target,
  )


def generalized_advantages(
  samples: data.Samples, values: Array, discount: float, gae_lambda: float
) -> Signal:
  """Generalised advantage estimation over tokens; the reward comes at the end.

  Args:
    samples: [G, N], this device's share.
    values: float[G, N, C], return expected before each token.
    discount: γ in [0, 1], of a token.
    gae_lambda: λ in [0, 1].

  Returns:
    The signal; advantages have mean 0 and variance 1 over all devices' tokens.

  Source: Schulman et al. 2016, arXiv:1506.02438.
  """
  mask = samples.mask
  values = jnp.where(mask, values, 0.0)
  following = jnp.concatenate(
    [values[..., 1:], jnp.zeros_like(values[..., :1])], axis=-1
  )
  # A completion is cut off for good: it is not worth more than it got.
  last = mask & ~jnp.concatenate(
    [mask[..., 1:], jnp.zeros_like(mask[..., :1])], axis=-1
  )
  reward = jnp.where(last, samples.reward[..., None], 0.0)
  advantage = jnp.moveaxis(
    advantages.generalized_advantage_estimation(
      *(
        jnp.moveaxis(x, -1, 0) for x in (reward, values, following, last, last)
      ),
      discount,
      gae_lambda,
    ),
    0,
    -1,
  )
  mean, variance = diagnostics.moments(
    advantage, numerics.DATA_AXIS, where=mask
  )
  return sampled_signal(
    samples,
    advantages.normalized(advantage, mean, variance),
    values,
    advantage + values,
  )


def measure_variance(
  model: networks.LanguageModel,
  params: types.Params,
  samples: data.Samples,
  signal: Signal,
  temperature: float = 1.0,
  chunk_tokens: int = 0,
) -> Array:
  """Variance of a signal's advantages under the policy that sampled.

  Args:
    model: the policy's.
    params: the policy's.
    samples: [G, N], this device's share.
    signal: of them, with the advantages of all tokens.
    temperature: of the logits that losses read.
    chunk_tokens: tokens whose logits are held at a time; 0 for all.

  Returns:
    float[], the mean over the tokens of all devices of Σ_a p(a) Ā(a)².
  """

  def variance(rows):
    hidden, known, known_advantage, rest = rows
    logits = model.head(params, hidden)
    advantage = jnp.broadcast_to(rest[..., None], logits.shape)
    for k in range(known.shape[-1]):
      places = jax.nn.one_hot(known[..., k], logits.shape[-1], dtype=bool)
      advantage = jnp.where(places, known_advantage[..., k, None], advantage)
    probs = jax.nn.softmax(logits / temperature)
    mean = jnp.sum(probs * advantage, axis=-1, keepdims=True)
    return jnp.sum(probs * jnp.square(advantage - mean), axis=-1)

  each = reading.map_tokens(
    variance,
    (
      samples.hidden,
      signal.known,
      signal.known_advantage,
      signal.rest_advantage,
    ),
    chunk_tokens,
  )
  return numerics.across_devices(
    {"variance": numerics.average(each, samples.mask)}
  )["variance"]


def exact_signal(
  model: networks.LanguageModel,
  params: types.Params,
  samples: data.Samples,
  chunk_tokens: int = 0,
) -> Signal:
  """The true next-token advantages, where a problem has one right answer.

  A prefix of the answer is worth the probability that the policy goes on with
  the rest of it, any other prefix nothing:

      V(s_t) = Π_{j ≥ t} π(a*_j | a*_{<j})
      Q(s_t, a) = V(s_{t+1}) if a = a*_t, else 0

  So A = Q − V is −V for all tokens but the answer's.

  Args:
    model: the policy's, untempered.
    params: the policy's.
    samples: [G, N], with answers.
    chunk_tokens: tokens whose logits are held at a time; 0 for all.

  Returns:
    The signal for the reward of an exact match, without noise.
  """
  # The answer is the prompt's: the same for all of its samples.
  answers = dataclasses.replace(
    samples,
    prompt=samples.prompt[:1],
    padding=samples.padding[:1],
    action=samples.answer[:1],
  )
  answer = samples.answer
  log_prob = jnp.where(
    answer[:1] != 0,
    reading.read_log_prob(model, params, answers, chunk_tokens),
    0.0,
  )
  rest = jnp.cumsum(log_prob[..., ::-1], axis=-1)[..., ::-1]  # From t on.
  worth, after = jnp.exp(rest), jnp.exp(rest - log_prob)
  same = samples.action == answer
  before = jnp.concatenate(
    [jnp.ones_like(same[..., :1]), same[..., :-1]], axis=-1
  )
  right = jnp.cumprod(before, axis=-1).astype(bool) & (answer != 0)
  value = jnp.where(right, worth, 0.0)
  of_answer = jnp.where(right, after, 0.0) - value
  sampled = jnp.where(same, of_answer, -value)
  return Signal(
    advantage=jnp.where(samples.mask, sampled, 0.0),
    known=jnp.stack([samples.action, answer], axis=-1),
    known_advantage=jnp.stack([sampled, of_answer], axis=-1),
    rest_advantage=-value,
    value=value,
  )


def from_verifier(
  model: networks.LanguageModel,
  verifier_model: networks.LanguageModel,
  num_known: int,
  chunk_tokens: int = 0,
  relative: bool = False,
) -> Estimate:
  """Log-probabilities of another policy as advantages of likely tokens.

  Args:
    model: the policy's.
    verifier_model: of the part "verifier" of the parameters.
    num_known: likeliest tokens of the policy that are asked about.
    chunk_tokens: tokens whose logits are held at a time; 0 for all.
    relative: whether to subtract those of the part "verifier_reference": then
      this is the implicit reward of a policy trained by preferences.

  Source: arXiv:2603.00963, dense advantages; Rafailov et al. 2024,
    arXiv:2404.12358 (relative).
  """

  def estimate(params, samples):
    likely = reading.find_likely_tokens(
      model, params["policy"], samples, num_known, chunk_tokens
    )

    def score(part):
      return reading.read_known_log_probs(
        verifier_model, params[part], samples, likely.tokens, chunk_tokens
      )

    scores = score("verifier")
    sure = scores[..., 0] > _SURE
    if relative:
      scores -= score("verifier_reference")
    return complete_scores(samples, likely, scores, sure)

  return estimate


def complete_scores(
  samples: data.Samples,
  likely: reading.LikelyTokens,
  scores: Array,
  sure: Array,
) -> Signal:
  """Standardises scores of likely tokens, and completes them to mean zero.

  Args:
    samples: [G, N].
    likely: tokens [G, N, C, K] and the policy's log-probabilities of them.
    scores: float[G, N, C, K], in nats.
    sure: bool[G, N, C], where the verifier is all but sure of the sampled one.

  Source: arXiv:2603.00963, dense advantages.
  """
  known = likely.tokens
  distinct = jnp.concatenate(
    [jnp.ones_like(known[..., :1], bool), known[..., 1:] != known[..., :1]],
    axis=-1,
  )
  # Over the known tokens alone, with one more that stands for all others: only
  # their probabilities complete them.
  probs = jnp.where(distinct, jnp.exp(likely.log_prob), 0.0)
  rest = jnp.maximum(1.0 - jnp.sum(probs, axis=-1, keepdims=True), 1e-30)
  logits = jnp.log(
    jnp.concatenate([jnp.where(distinct, probs, 1e-30), rest], axis=-1)
  )
  with_rest = jnp.concatenate(
    [distinct, jnp.zeros_like(distinct[..., :1])], axis=-1
  )
  standard = advantages.standardized(
    jnp.pad(scores, [(0, 0)] * (scores.ndim - 1) + [(0, 1)]), with_rest
  )
  completed = advantages.completed(logits, standard, with_rest)
  own, others = completed[..., :-1], completed[..., -1]
  # The sampled token has the same advantage in its second place.
  own = jnp.where(distinct, own, own[..., :1])
  return Signal(
    advantage=jnp.where(samples.mask, own[..., 0], 0.0),
    known=known,
    known_advantage=own,
    rest_advantage=others,
    agreed=sure & (samples.log_prob > _SURE) & samples.mask,
  )


def compare_signals(
  signal: Signal, truth: Signal, samples: data.Samples
) -> types.Metrics:
  """Compares a signal's advantages of sampled tokens with the true ones.

  Args:
    signal: of this device's share.
    truth: from `exact_signal`.
    samples: [G, N].

  Returns:
    {"advantage_rms_error": root of the mean squared difference,
    "advantage_correlation": Pearson's, 0 where either is constant}, over the
    sampled tokens of all devices.
  """
  mask, true = samples.mask, truth.advantage

  def moments(x):
    x = jnp.where(mask, x, 0.0)
    return diagnostics.moments(x, numerics.DATA_AXIS, where=mask)

  mean_true, var_true = moments(true)
  mean, variance = moments(signal.advantage)
  covariance, _ = moments((signal.advantage - mean) * (true - mean_true))
  squared, _ = moments(jnp.square(signal.advantage - true))
  scale = jnp.sqrt(var_true * variance)
  varies = scale > 1e-12
  return {
    "advantage_rms_error": jnp.sqrt(squared),
    "advantage_correlation": jnp.where(
      varies, covariance / jnp.where(varies, scale, 1.0), 0.0
    ),
  }
