"""Advantage estimators, and completions of advantages over all actions.

Estimators turn rewards into an advantage per step or per sample:

    δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
    A_t = δ_t + γ λ (1 − done_t) A_{t+1}

A terminated episode has no future value. A truncated episode (time limit) is
bootstrapped from the value of the true next observation; only the recursion
stops there. `done` is terminated or truncated.

Completions extend the advantages of known actions to every action, as LCO's
targets need. All functions raise AssertionError at trace time if shapes or
dtypes do not match.
"""

import chex
import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import arguments, numerics

# Floor on the probability mass of the unknown actions, as in the authors' code:
# without it, their advantage could grow without bound.
_MIN_UNKNOWN_MASS = 0.1


@arguments.explain_errors
def generalized_advantage_estimation(
  rewards: Array,
  values: Array,
  next_values: Array,
  terminated: Array,
  done: Array,
  discount: float,
  lambda_: float,
) -> Array:
  """Generalised advantage estimation, time first.

  Args:
    rewards: float[T, ...].
    values: float[T, ...], V(s_t).
    next_values: float[T, ...], V of the true next observation, before any
      automatic reset.
    terminated: bool[T, ...], the environment reached a terminal state.
    done: bool[T, ...], the episode ended: terminated or truncated.
    discount: γ in [0, 1].
    lambda_: λ in [0, 1]; 0 is the one-step TD error, 1 Monte-Carlo.

  Returns:
    float[T, ...], advantages in units of return.

  Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
  """
  rewards, values, next_values = numerics.float_arrays(
    rewards, values, next_values
  )
  terminated, done = jnp.asarray(terminated), jnp.asarray(done)
  chex.assert_equal_shape([rewards, values, next_values, terminated, done])
  chex.assert_type([terminated, done], bool)
  future = jnp.where(terminated, 0.0, next_values)
  deltas = rewards + discount * future - values
  decays = jnp.where(done, 0.0, discount * lambda_).astype(deltas.dtype)

  def step(advantage, delta_and_decay):
    delta, decay = delta_and_decay
    advantage = delta + decay * advantage
    return advantage, advantage

  _, advantages = jax.lax.scan(
    step, jnp.zeros_like(deltas[0]), (deltas, decays), reverse=True, unroll=8
  )
  return advantages


@arguments.explain_errors
def discounted_returns(
  rewards: Array,
  next_values: Array,
  terminated: Array,
  done: Array,
  discount: float,
) -> Array:
  """Discounted return, bootstrapped at truncations and at the rollout's end.

  Args:
    rewards: float[T, ...].
    next_values: float[T, ...], V of the true next observation; used at
      truncated steps and at the last one.
    terminated: bool[T, ...], the environment reached a terminal state.
    done: bool[T, ...], the episode ended: terminated or truncated.
    discount: γ in [0, 1].

  Returns:
    float[T, ...], G_t = r_t + γ G_{t+1} within an episode.

  Source: Sutton & Barto 2018, eq. 3.8.
  """
  # A Monte-Carlo return is the λ = 1 advantage with baseline 0, keeping the
  # bootstrap value wherever the recursion stops.
  cut = jnp.asarray(done).at[-1].set(True)
  bootstrap = jnp.where(cut, next_values, 0.0)
  zeros = jnp.zeros_like(rewards)
  return generalized_advantage_estimation(
    rewards, zeros, bootstrap, terminated, cut, discount, 1.0
  )


@arguments.explain_errors
def normalized(advantages: Array, mean: Array, variance: Array) -> Array:
  """Standardises advantages by the given mean and variance of the batch.

  The moments are arguments because devices may divide the batch.

  Args:
    advantages: float[...].
    mean: float[], mean of the whole batch.
    variance: float[], variance of the whole batch.

  Returns:
    float[...]; exactly 0 where the spread is no more than the rounding of the
    mean, as for equal advantages.
  """
  rounding = 4.0 * jnp.finfo(variance.dtype).eps * jnp.abs(mean)
  scaled = (advantages - mean) * jax.lax.rsqrt(variance + 1e-8)
  # Not the other way round: what is not a number has to stay visible.
  return jnp.where(variance <= jnp.square(rounding), 0.0, scaled)


@arguments.explain_errors
def group_relative(
  rewards: Array, epsilon: float = 1e-6, ddof: int = 0
) -> Array:
  """Standardises rewards within each group: (R − mean) / (std + ε).

  Args:
    rewards: float[..., n], rewards of the n samples of one prompt.
    epsilon: added to the standard deviation.
    ddof: 0 for the population's standard deviation, 1 for the sample's, which
      divides by n − 1.

  Returns:
    float[..., n]; exactly 0 in a group whose rewards are all equal.

  Source: Shao et al. 2024, arXiv:2402.03300 (GRPO).
  """
  (rewards,) = numerics.float_arrays(rewards)
  centred = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
  scale = jnp.std(rewards, axis=-1, keepdims=True, ddof=ddof) + epsilon
  # The rounded mean of equal rewards need not equal them.
  spread = jnp.ptp(rewards, axis=-1, keepdims=True) > 0
  return jnp.where(spread, centred / scale, 0.0)


@arguments.explain_errors
def group_centred(rewards: Array) -> Array:
  """Subtracts each group's mean reward, without dividing by its deviation.

  Args:
    rewards: float[..., n], rewards of the n samples of one prompt.

  Returns:
    float[..., n]; exactly 0 in a group whose rewards are all equal.

  Source: Liu et al. 2025, arXiv:2503.20783 (Dr. GRPO).
  """
  (rewards,) = numerics.float_arrays(rewards)
  centred = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
  spread = jnp.ptp(rewards, axis=-1, keepdims=True) > 0
  return jnp.where(spread, centred, 0.0)


@arguments.explain_errors
def leave_one_out(rewards: Array) -> Array:
  """Subtracts from each reward the mean of the others in its group (RLOO).

  Args:
    rewards: float[..., n], rewards of the n ≥ 2 samples of one prompt.

  Returns:
    float[..., n], in units of reward.

  Raises:
    AssertionError: if a group has fewer than two samples.

  Source: Ahmadian et al. 2024, arXiv:2402.14740.
  """
  (rewards,) = numerics.float_arrays(rewards)
  chex.assert_axis_dimension_gt(rewards, axis=-1, val=1)
  n = rewards.shape[-1]
  return (rewards - jnp.mean(rewards, axis=-1, keepdims=True)) * (n / (n - 1))


@arguments.explain_errors
def sampled(advantage: Array, actions: Array, num_actions: int) -> Array:
  """Places the advantage at the sampled action and 0 at the others.

  Args:
    advantage: float[...].
    actions: int[...], in [0, num_actions).
    num_actions: A.

  Returns:
    float[..., A].
  """
  (advantage,) = numerics.float_arrays(advantage)
  actions = jnp.asarray(actions)
  chex.assert_type(actions, int)
  chex.assert_equal_shape([advantage, actions])
  taken = jax.nn.one_hot(actions, num_actions, dtype=bool)
  return jnp.where(taken, advantage[..., None], 0.0)


@arguments.explain_errors
def standardized(scores: Array, known: Array, min_std: float = 1e-3) -> Array:
  """Standardises the known actions' scores: mean 0, unbiased variance 1.

  Args:
    scores: float[..., A], such as log-probabilities under a better policy.
    known: bool[..., A], actions with a known score.
    min_std: lower bound on the standard deviation, in units of the scores.

  Returns:
    float[..., A]; 0 at unknown actions, and where only one action is known.

  Source: arXiv:2603.00963, dense advantages.
  """
  (scores,) = numerics.float_arrays(scores)
  (scores,) = numerics.zero_outside(known, scores)
  count = jnp.sum(known, axis=-1, keepdims=True, dtype=scores.dtype)
  mean = jnp.sum(scores, axis=-1, keepdims=True) / jnp.maximum(count, 1)
  centred = jnp.where(known, scores - mean, 0.0)
  squares = jnp.sum(jnp.square(centred), axis=-1, keepdims=True)
  variance = squares / jnp.maximum(count - 1, 1)
  return centred / jnp.sqrt(jnp.maximum(variance, min_std**2))


@arguments.explain_errors
def completed(old_logits: Array, advantages: Array, known: Array) -> Array:
  """Completes the advantages of known actions to mean zero under π_old.

    A'_k  = A_k (1 − p_k)                         at the known actions
    A'    = −Σ_k p_k A'_k / max(1 − Σ_k p_k, 0.1)  at all the others

  Args:
    old_logits: float[..., A], behaviour policy's logits.
    advantages: float[..., A]; unknown entries are ignored.
    known: bool[..., A].

  Returns:
    float[..., A], with Σ_a p(a) A'(a) = 0 unless the floor of 0.1 binds.

  Source: arXiv:2603.00963, dense advantages.
  """
  old_logits, advantages = numerics.float_arrays(old_logits, advantages)
  chex.assert_equal_shape([old_logits, advantages, known])
  (advantages,) = numerics.zero_outside(known, advantages)
  probs = jnp.where(known, jax.nn.softmax(old_logits), 0.0)
  kept = advantages * (1.0 - probs)
  unknown_mass = 1.0 - jnp.sum(probs, axis=-1, keepdims=True)
  rest = -jnp.sum(probs * kept, axis=-1, keepdims=True) / jnp.maximum(
    unknown_mass, _MIN_UNKNOWN_MASS
  )
  return jnp.where(known, kept, rest)


@arguments.explain_errors
def zero_mean_completion(
  old_logits: Array, advantages: Array, indices: Array
) -> Array:
  """Same as `completed`, with the K known actions given by index.

  Args:
    old_logits: float[..., A], behaviour policy's logits.
    advantages: float[..., K], advantages of the known actions.
    indices: int[..., K], the known actions, distinct within a row.

  Returns:
    float[..., A].

  Source: arXiv:2603.00963, dense advantages.
  """
  old_logits, advantages = numerics.float_arrays(old_logits, advantages)
  indices = jnp.asarray(indices)
  chex.assert_type(indices, int)
  chex.assert_equal_shape([advantages, indices])
  chex.assert_equal_shape_prefix([old_logits, indices], old_logits.ndim - 1)
  places = jax.nn.one_hot(indices, old_logits.shape[-1], dtype=bool)
  dense = jnp.sum(jnp.where(places, advantages[..., None], 0.0), axis=-2)
  return completed(old_logits, dense, places.any(axis=-2))
