"""Advantage signals of language: what each token was worth.

A signal is a function (params, Samples) → Signal, of one device's share. It may
speak of the sampled tokens alone, as rewards do, or of every token that could
have been chosen, as an oracle or a better policy does.

Axes: samples G, prompts N, tokens C, vocabulary V.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lco_jax import advantages, diagnostics, networks, numerics, types
from lco_jax.language import data, generation

Array = jax.Array


class Signal(NamedTuple):
  """What a signal says.

  Attributes:
    advantage: float[G, N, C], of the sampled tokens; 0 outside the mask.
    dense: float[G, N, C, V], of every token, as the optimal target takes it.
    known: bool[G, N, C, V], tokens that the signal speaks of.
    value: float[G, N, C], what was expected before the token; 0 if unknown.
    value_target: float[G, N, C], what the value is regressed onto.
  """

  advantage: Array
  dense: Array
  known: Array
  value: Array
  value_target: Array


Estimate = Callable[[Mapping[str, types.Params], data.Samples], Signal]


def of_sampled(
  samples: data.Samples,
  advantage: Array,
  value: Array | None = None,
  value_target: Array | None = None,
) -> Signal:
  """The signal that knows the sampled tokens' advantages [G, N, C] alone."""
  vocab_size = samples.logits.shape[-1]
  advantage = jnp.where(samples.mask, advantage, 0.0)
  blank = jnp.zeros_like(advantage)
  return Signal(
    advantage=advantage,
    dense=advantages.sampled(advantage, samples.action, vocab_size),
    known=jax.nn.one_hot(samples.action, vocab_size, dtype=bool),
    value=blank if value is None else value,
    value_target=blank if value_target is None else value_target,
  )


def _in_groups(estimate: Callable[[Array], Array]) -> Callable[[Array], Array]:
  """An estimate over the last axis, for rewards [G, N]."""
  return lambda reward: jnp.moveaxis(
    estimate(jnp.moveaxis(reward, 0, -1)), -1, 0
  )


def _batch_centred(reward: Array) -> Array:
  """Rewards minus the mean over all prompts of all devices."""
  mean, _ = diagnostics.moments(reward, numerics.DEVICE_AXIS)
  return reward - mean


# Reward float[G, N] → advantage float[G, N], the same for all of its tokens.
FROM_REWARDS: dict[str, Callable[[Array], Array]] = {
  "group_relative": _in_groups(advantages.group_relative),
  "group_centred": _in_groups(advantages.group_centred),
  "leave_one_out": _in_groups(advantages.leave_one_out),
  "batch_centred": _batch_centred,
  "reward": lambda reward: reward,  # No baseline: nothing is discouraged.
}

# Those that compare the samples of a prompt, and nothing else.
IN_GROUPS = ("group_relative", "group_centred", "leave_one_out")
# All by name; beside those of rewards:
#   learned     GAE with the values of a network
#   oracle      exact, where a problem has one right answer
#   verifier    log-probabilities of a better policy
#   preference  log-ratios of a policy trained on preferences
OF_VERIFIERS = ("verifier", "preference")
NAMES = (*FROM_REWARDS, "learned", "oracle", *OF_VERIFIERS)


def make(
  name: str,
  model: networks.LanguageModel,
  value: Callable[[types.Params, data.Samples], Array] | None = None,
  discount: float = 1.0,
  gae_lambda: float = 1.0,
  num_known: int = 5,
) -> Estimate:
  """A signal by its name.

  Args:
    name: one of NAMES.
    model: the policy's.
    value: for `learned`, as of that function.
    discount: for `learned`, γ in [0, 1].
    gae_lambda: for `learned`, λ in [0, 1].
    num_known: for `verifier` and `preference`, K ≥ 1.

  Raises:
    ValueError: if a name is unknown or a number is out of range.
  """
  for what, number in (("discount", discount), ("gae_lambda", gae_lambda)):
    if not 0 <= number <= 1:
      raise ValueError(f"{what} must be in [0, 1], got {number}")
  if num_known < 1:
    raise ValueError(f"num_known must be ≥ 1, got {num_known}")
  if name in FROM_REWARDS:
    return from_rewards(name)
  if name == "learned":
    return learned(value, discount, gae_lambda)
  if name == "oracle":
    return oracle(model)
  if name == "verifier":
    return verifier(model, num_known)
  if name == "preference":
    return preference(model, num_known)
  raise ValueError(f"advantage: unknown {name!r}; known: {', '.join(NAMES)}")


def from_rewards(name: str) -> Estimate:
  """A key of FROM_REWARDS as a signal."""

  def estimate(params, samples):
    advantage = FROM_REWARDS[name](samples.reward)
    spread = jnp.broadcast_to(advantage[..., None], samples.mask.shape)
    return of_sampled(samples, spread)

  return estimate


def learned(
  value: Callable[[types.Params, data.Samples], Array],
  discount: float,
  gae_lambda: float,
) -> Estimate:
  """Generalised advantage estimation over tokens; the reward comes at the end.

  Args:
    value: (value parameters, Samples) → values before each token [..., C].
    discount: γ in [0, 1], of a token.
    gae_lambda: λ in [0, 1].

  Returns:
    The signal; advantages have mean 0 and variance 1 over all devices' tokens.

  Source: Schulman et al. 2016, arXiv:1506.02438.
  """

  def estimate(params, samples):
    mask = samples.mask
    values = jnp.where(mask, value(params["value"], samples), 0.0)
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
          jnp.moveaxis(x, -1, 0)
          for x in (reward, values, following, last, last)
        ),
        discount,
        gae_lambda,
      ),
      0,
      -1,
    )
    mean, variance = diagnostics.moments(
      advantage, numerics.DEVICE_AXIS, where=mask
    )
    return of_sampled(
      samples,
      advantages.normalized(advantage, mean, variance),
      values,
      advantage + values,
    )

  return estimate


def exact(
  model: networks.LanguageModel,
) -> Callable[[types.Params, data.Samples], tuple[Array, Array]]:
  """The true next-token advantages, where a problem has one right answer.

  A prefix of the answer is worth the probability that the policy goes on with
  the rest of it, any other prefix nothing:

      V(s_t) = Π_{j ≥ t} π(a*_j | a*_{<j})
      Q(s_t, a) = V(s_{t+1}) if a = a*_t, else 0

  Args:
    model: the policy, untempered.

  Returns:
    (policy parameters, Samples) → (A = Q − V float[G, N, C, V], V
    float[G, N, C]), for the reward of an exact match, without noise.
  """

  def advantage(params, samples):
    # The answer is the prompt's: the same for all of its samples.
    answer = samples.answer[0]
    logits = generation.completion_logits(
      model, params, samples.prompt[0], samples.padding[0], answer
    )
    log_prob = jnp.where(
      answer != 0, numerics.action_log_prob(logits, answer), 0.0
    )
    rest = jnp.cumsum(log_prob[..., ::-1], axis=-1)[..., ::-1]  # From t on.
    worth = jnp.exp(rest)
    after = jnp.exp(rest - log_prob)
    same = samples.action == answer
    before = jnp.concatenate(
      [jnp.ones_like(same[..., :1]), same[..., :-1]], axis=-1
    )
    right = jnp.cumprod(before, axis=-1).astype(bool) & (answer != 0)
    value = jnp.where(right, worth, 0.0)
    best = jax.nn.one_hot(answer, logits.shape[-1])
    quality = jnp.where(right, after, 0.0)[..., None] * best
    return quality - value[..., None], value

  return advantage


def oracle(model: networks.LanguageModel) -> Estimate:
  """`exact` as a signal of every token."""
  advantage_of = exact(model)

  def estimate(params, samples):
    dense, value = advantage_of(params["policy"], samples)
    chosen = numerics.select_action(dense, samples.action)
    chosen = jnp.where(samples.mask, chosen, 0.0)
    return Signal(chosen, dense, jnp.ones_like(dense, bool), value, value)

  return estimate


def from_log_probs(
  scores: Callable[[Mapping[str, types.Params], data.Samples], Array],
  num_known: int,
) -> Estimate:
  """Log-probabilities of another policy as advantages of the likeliest tokens.

  The policy's `num_known` likeliest tokens and the sampled one are known. Their
  scores are standardised among themselves, and completed to mean zero under the
  policy by the rest.

  Args:
    scores: (params, Samples) → float[G, N, C, V], in nats.
    num_known: K ≥ 1.

  Source: arXiv:2603.00963, dense advantages.
  """

  def estimate(params, samples):
    vocab_size = samples.logits.shape[-1]
    _, likeliest = jax.lax.top_k(samples.logits, min(num_known, vocab_size))
    known = jax.nn.one_hot(likeliest, vocab_size, dtype=bool).any(axis=-2)
    known |= jax.nn.one_hot(samples.action, vocab_size, dtype=bool)
    dense = advantages.completed(
      samples.logits,
      advantages.standardized(scores(params, samples), known),
      known,
    )
    chosen = numerics.select_action(dense, samples.action)
    chosen = jnp.where(samples.mask, chosen, 0.0)
    blank = jnp.zeros_like(chosen)
    return Signal(chosen, dense, known, blank, blank)

  return estimate


def verifier(model: networks.LanguageModel, num_known: int) -> Estimate:
  """log π_v of a better policy, the part "verifier" of the parameters."""
  outputs = generation.completion_outputs(model)
  return from_log_probs(
    lambda params, samples: jax.nn.log_softmax(
      outputs(params["verifier"], samples)
    ),
    num_known,
  )


def preference(model: networks.LanguageModel, num_known: int) -> Estimate:
  """log π_dpo − log π_ref, the implicit reward of a policy by preferences.

  Args:
    model: of the parts "verifier", trained by preferences, and
      "verifier_reference", the reference of that training.
    num_known: K ≥ 1.

  Source: Rafailov et al. 2024, arXiv:2404.12358.
  """
  outputs = generation.completion_outputs(model)

  def scores(params, samples):
    better, reference = (
      jax.nn.log_softmax(outputs(params[part], samples))
      for part in ("verifier", "verifier_reference")
    )
    return better - reference

  return from_log_probs(scores, num_known)


def error(signal: Signal, truth: Array, samples: data.Samples):
  """How far a signal's advantages of sampled tokens are from the true ones.

  Args:
    signal: of this device's share.
    truth: float[G, N, C, V], from `exact`.
    samples: what was sampled.

  Returns:
    {"advantage_rms_error": root of the mean squared difference,
    "advantage_correlation": Pearson's, 0 where either is constant}, over the
    sampled tokens of all devices.
  """
  mask = samples.mask
  true = numerics.select_action(truth, samples.action)

  def moments(x):
    x = jnp.where(mask, x, 0.0)
    return diagnostics.moments(x, numerics.DEVICE_AXIS, where=mask)

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
