"""Actions of several dimensions: independent choices with one advantage.

The policy is a product, π(a) = Π_d π_d(a_d): log-probabilities, entropies and
KL divergences add up over dimensions. LCO's target is made in each dimension,
z*_d = z_old,d + A/β at the sampled choice, which is the joint target where the
advantage is a sum over dimensions.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

from lco_jax import algorithms, numerics, types
from lco_jax.algorithms import policy_losses
from lco_jax.control import data


def spread(values: Array, like: Array) -> Array:
  """Repeats each step's number for all dimensions of its action.

  Args:
    values: [...].
    like: [...] or [..., D], actions.

  Returns:
    Of the shape of `like`.
  """
  if like.ndim > values.ndim:
    values = values[..., None]
  return jnp.broadcast_to(values, like.shape)


def total(values: Array, like: Array) -> Array:
  """Sums over the dimensions of actions, if they have several.

  Args:
    values: [...] or [..., D].
    like: [...], a number of each step.
  """
  return jnp.sum(values, axis=-1) if values.ndim > like.ndim else values


def make_policy_loss(
  algorithm: algorithms.Algorithm,
  policy_loss: policy_losses.PolicyLoss,
  legal: np.ndarray | None,
) -> policy_losses.PolicyLoss:
  """Extends a policy loss to actions of several dimensions.

  Losses of the joint probability ratio read the whole action's log-probability
  and stay as they are. All others are summed over dimensions, each of which is
  learned like an action of its own with the step's advantage. For the policy
  gradient, weighted likelihoods and the Fisher loss the sum equals the loss of
  the joint action.

  Args:
    algorithm: a row of `algorithms.CONTROL`.
    policy_loss: the algorithm's.
    legal: bool[D, A], choices that exist; None where all do.

  Returns:
    (logits [..., D, A], batch) → (loss [...], metrics {name: [...]}).
  """
  if algorithm.joint:
    return policy_loss

  def summed(logits: Array, batch: data.Batch) -> tuple[Array, types.Metrics]:
    action = batch.action
    each = dataclasses.replace(
      batch,
      advantage=spread(batch.advantage, action),
      beta=spread(batch.beta, action),
      old_log_prob=numerics.action_log_prob(batch.old_logits, action),
      legal=None if legal is None else jnp.broadcast_to(legal, logits.shape),
    )
    loss, metrics = policy_loss(logits, each)
    return jnp.sum(loss, axis=-1), {
      name: jnp.mean(values, axis=-1) for name, values in metrics.items()
    }

  return summed
