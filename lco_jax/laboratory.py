"""Exact laboratory: bandits in which every expectation is a finite sum.

Computes the mean, the variance and the path of any policy loss's updates by
summing over all A actions instead of sampling. Units: nats and reward.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import advantages, diagnostics, numerics, targets
from lco_jax.algorithms import policy_losses


class Draws(NamedTuple):
  """A batch of n actions in one state, as policy losses read it.

  Attributes:
    action: int32[n].
    advantage: float[n].
    old_logits: float[n, A], behaviour policy's, equal in all rows.
    old_log_prob: float[n].
    target_logits: float[n, A].
    beta: float[n], KL strength of the target.
    dense_advantage: float[n, A]; None where only the action's is known.
    legal: None: all actions exist.
  """

  action: Array
  advantage: Array
  old_logits: Array
  old_log_prob: Array
  target_logits: Array
  beta: Array
  dense_advantage: Array | None = None
  legal: None = None


class Moments(NamedTuple):
  """Moments of a policy loss's gradient over one sampled action.

  Attributes:
    mean: float[A], expected gradient of the loss in the logits.
    variance: float[], E ‖∇ − mean‖².
    cosine: float[], of the angle between the mean and the true gradient; 0
      where either vanishes.
    scale: float[], ‖mean‖ / ‖true gradient‖; 0 where the true gradient
      vanishes.
  """

  mean: Array
  variance: Array
  cosine: Array
  scale: Array


def enumerate_draws(
  old_logits: Array, rewards: Array, beta: float, dense: bool = False
) -> Draws:
  """Makes a batch [A] with one step per action.

  Args:
    old_logits: float[A], behaviour policy's.
    rewards: float[A], expected reward of each action; advantages subtract the
      policy's mean reward.
    beta: KL strength of the target, > 0.
    dense: whether the target uses the advantages of all actions, not only the
      sampled action's.
  """
  num_actions = old_logits.shape[-1]
  probabilities = jax.nn.softmax(old_logits)
  advantage = rewards - probabilities @ rewards
  action = jnp.arange(num_actions)
  known = None
  if dense:
    known = jnp.broadcast_to(advantage, (num_actions, num_actions))
  return _make_draws(old_logits, action, advantage, beta, known)


def _make_draws(
  old_logits: Array,
  action: Array,
  advantage: Array,
  beta: float,
  known: Array | None = None,
) -> Draws:
  """Makes n steps; the target uses `known` [n, A] or the action's advantage."""
  num_actions = old_logits.shape[-1]
  every = jnp.broadcast_to(old_logits, (len(action), num_actions))
  target = known
  if target is None:
    target = advantages.sampled(advantage, action, num_actions)
  return Draws(
    action=action,
    advantage=advantage,
    old_logits=every,
    old_log_prob=numerics.action_log_prob(every, action),
    target_logits=targets.optimal_logits(every, target, beta),
    beta=jnp.full_like(advantage, beta),
    dense_advantage=known,
  )


def expected_loss(
  policy_loss: policy_losses.PolicyLoss, logits: Array, draws: Draws
) -> Array:
  """Expectation of a policy loss under the behaviour policy.

  Args:
    policy_loss: from `algorithms.policy_losses`.
    logits: float[A], where to evaluate it.
    draws: from `enumerate_draws`.

  Returns:
    float[].
  """
  every = jnp.broadcast_to(logits, draws.old_logits.shape)
  loss, _ = policy_loss(every, draws)
  return jnp.exp(draws.old_log_prob) @ loss


def true_gradient(old_logits: Array, rewards: Array) -> Array:
  """Gradient of −E[reward] in the logits, −p ⊙ A: float[A]."""
  probabilities = jax.nn.softmax(old_logits)
  return -probabilities * (rewards - probabilities @ rewards)


def moments(
  policy_loss: policy_losses.PolicyLoss,
  old_logits: Array,
  rewards: Array,
  beta: float,
  dense: bool = False,
) -> Moments:
  """Mean and variance of the first, on-policy gradient.

  Args:
    policy_loss: from `algorithms.policy_losses`.
    old_logits: float[A].
    rewards: float[A].
    beta: KL strength of the target, > 0.
    dense: see `enumerate_draws`.
  """
  draws = enumerate_draws(old_logits, rewards, beta, dense)

  def gradient(draw):
    alone = jax.tree.map(lambda x: x[None], draw)
    return jax.grad(lambda z: policy_loss(z[None], alone)[0][0])(old_logits)

  each = jax.vmap(gradient)(draws)
  weight = jnp.exp(draws.old_log_prob)
  mean = weight @ each
  variance = weight @ jnp.sum((each - mean[None]) ** 2, axis=-1)
  truth = true_gradient(old_logits, rewards)
  _, cosine = diagnostics.directionality(mean, truth, jnp.zeros_like(truth))
  length = jnp.linalg.norm(truth)
  scale = jnp.linalg.norm(mean) / jnp.where(length > 0, length, 1.0)
  return Moments(mean, variance, cosine, jnp.where(length > 0, scale, 0.0))


def descend_on_draw(
  policy_loss: policy_losses.PolicyLoss,
  old_logits: Array,
  action: int,
  advantage: float,
  *,
  beta: float,
  learning_rate: float,
  num_steps: int,
) -> Array:
  """Gradient descent on the loss of a single sampled action.

  Args:
    policy_loss: from `algorithms.policy_losses`.
    old_logits: float[A], behaviour policy's.
    action: the sampled action.
    advantage: advantage of that action.
    beta: KL strength of the target, > 0.
    learning_rate: step size of plain gradient descent.
    num_steps: number of steps.

  Returns:
    float[A], the final logits.
  """
  draw = _make_draws(
    old_logits,
    jnp.array([action]),
    jnp.array([advantage], old_logits.dtype),
    beta,
  )

  def step(logits, _):
    gradient = jax.grad(lambda z: policy_loss(z[None], draw)[0][0])(logits)
    return logits - learning_rate * gradient, None

  logits, _ = jax.lax.scan(step, old_logits, length=num_steps)
  return logits


def expected_path(
  policy_loss: policy_losses.PolicyLoss,
  start: Array,
  rewards: Array,
  *,
  beta: float,
  learning_rate: float,
  num_updates: int,
  num_epochs: int,
  dense: bool = False,
) -> tuple[Array, Array]:
  """Gradient descent on the expected loss, with a new target every update.

  Args:
    policy_loss: from `algorithms.policy_losses`.
    start: float[A], initial logits.
    rewards: float[A].
    beta: KL strength of the target, > 0.
    learning_rate: step size of plain gradient descent.
    num_updates: number of new behaviour policies and targets.
    num_epochs: steps per update.
    dense: see `enumerate_draws`.

  Returns:
    (logits [updates · epochs + 1, A], gradient norms [updates · epochs]).
  """

  def step(carry, draws):
    gradient = jax.grad(lambda z: expected_loss(policy_loss, z, draws))(carry)
    following = carry - learning_rate * gradient
    return following, (following, jnp.linalg.norm(gradient))

  def update(logits, _):
    draws = enumerate_draws(logits, rewards, beta, dense)
    return jax.lax.scan(lambda z, _: step(z, draws), logits, length=num_epochs)

  _, (logits, norms) = jax.lax.scan(update, start, length=num_updates)
  steps = num_updates * num_epochs
  logits = logits.reshape(steps, start.shape[-1])
  return jnp.concatenate([start[None], logits]), norms.reshape(steps)
