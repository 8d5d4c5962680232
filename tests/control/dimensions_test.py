"""Actions of several dimensions, against the action of their product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import algorithms, losses, networks, numerics, targets
from lco_jax.control import data, dimensions

_SIZES = (3, 2)  # Two dimensions; the second has one choice less.
_LEGAL = np.array([[True, True, True], [True, True, False]])
_STEPS = 50


def _join(parts):
  """Logits [..., D, A] of independent choices → [..., 6] of their product."""
  first, second = parts[..., 0, :], parts[..., 1, :2]
  return (first[..., :, None] + second[..., None, :]).reshape(
    *first.shape[:-1], -1
  )


def _parts(seed, illegal):
  """Random [steps, D, A] with a number where there is no choice."""
  values = np.random.default_rng(seed).normal(size=(_STEPS, 2, 3))
  return jnp.asarray(np.where(_LEGAL, values, illegal))


def _batches(illegal=-1e9):
  """The same steps: per dimension, and of the product; and new logits."""
  rng = np.random.default_rng(0)
  old, new = _parts(1, illegal), _parts(2, illegal)
  action = jnp.asarray(rng.integers(_SIZES, size=(_STEPS, 2)))
  advantage = jnp.asarray(rng.normal(size=_STEPS))
  beta = jnp.asarray(rng.uniform(0.5, 2.0, _STEPS))
  product = action[:, 0] * 2 + action[:, 1]

  def make(old, action, target, legal=None):
    log_prob = numerics.action_log_prob(old, action)
    return data.Batch(
      observation=advantage,
      action=action,
      advantage=advantage,
      old_logits=old,
      old_log_prob=dimensions.total(log_prob, advantage),
      target_logits=target,
      beta=beta,
      old_value=advantage,
      value_target=advantage,
      legal=legal,
    )

  spread = dimensions.spread(advantage / beta, action)
  target = old + jnp.where(
    jax.nn.one_hot(action, 3, dtype=bool), spread[..., None], 0.0
  )
  joint_target = _join(old) + jnp.where(
    jax.nn.one_hot(product, 6, dtype=bool), (advantage / beta)[:, None], 0.0
  )
  return (
    make(old, action, target),
    make(_join(old), product, joint_target),
    new,
  )


# Whose sum over dimensions is the loss of the product.
_EXACT = (
  *("lco_fisher", "lco_proximal_kl", "lco_weighted", "reinforce", "awr"),
  *("vmpo", "ppo", "cispo", "mdpo", "apa"),
)


@pytest.mark.parametrize("name", _EXACT)
def test_the_loss_is_that_of_the_product(name, float64):
  parts, product, new = _batches()
  row = algorithms.CONTROL[name]
  loss = row.policy_loss()
  own = dimensions.make_policy_loss(row, loss, _LEGAL)
  np.testing.assert_allclose(
    jax.jit(own)(new, parts)[0],
    jax.jit(loss)(_join(new), product)[0],
    rtol=1e-9,
    atol=1e-10,
  )
  # And so is its gradient, which is 0 where there is no choice.
  slope, expected = (
    jax.jit(jax.grad(lambda z: jnp.sum(own(z, parts)[0])))(new),
    jax.jit(jax.grad(lambda z: jnp.sum(loss(_join(z), product)[0])))(new),
  )
  np.testing.assert_allclose(slope, expected, atol=1e-9)
  np.testing.assert_array_equal(slope[:, 1, 2], 0.0)


@pytest.mark.parametrize("name", algorithms.CONTROL)
def test_a_choice_that_does_not_exist_changes_nothing(name, float64):
  """As if each dimension was learned alone, with the choices it has."""
  parts, _, new = _batches()
  row = algorithms.CONTROL[name]
  loss = row.policy_loss()
  own, _ = dimensions.make_policy_loss(row, loss, _LEGAL)(new, parts)
  assert own.shape == (_STEPS,)
  if row.joint:
    return  # It reads nothing but probabilities of choices that were made.
  total = 0.0
  for dimension, size in enumerate(_SIZES):
    cut = lambda x, d=dimension, n=size: x[:, d, :n]
    old = cut(parts.old_logits)
    action = parts.action[:, dimension]
    total += loss(
      cut(new),
      data.Batch(
        observation=parts.observation,
        action=action,
        advantage=parts.advantage,
        old_logits=old,
        old_log_prob=numerics.action_log_prob(old, action),
        target_logits=cut(parts.target_logits),
        beta=parts.beta,
        old_value=parts.old_value,
        value_target=parts.value_target,
      ),
    )[0]
  np.testing.assert_allclose(own, total, rtol=1e-9)


def test_targets_are_joint_where_the_advantage_is_a_sum(float64):
  old, advantage = _parts(1, 0.0), _parts(3, 0.0)
  beta = 0.7
  each = targets.optimal_logits(old, advantage, beta)
  joint = targets.optimal_logits(_join(old), _join(advantage), beta)
  np.testing.assert_allclose(_join(each), joint, rtol=1e-12)
  np.testing.assert_allclose(
    jnp.sum(
      losses.kl_divergence(old, each, jnp.broadcast_to(_LEGAL, old.shape)), -1
    ),
    losses.kl_divergence(_join(old), joint),
    rtol=1e-10,
  )


def test_networks_never_choose_what_does_not_exist():
  net = networks.make_actor_critic((4,), (2, 3), (8,), "tanh", _LEGAL)
  params = net.init(jax.random.key(0))
  logits = net.policy(params["policy"], jnp.ones((5, 4)))
  assert logits.shape == (5, 2, 3)
  probabilities = jax.nn.softmax(logits)
  np.testing.assert_array_equal(probabilities[:, 1, 2], 0.0)
  assert (probabilities[:, 1, :2] > 0.1).all()
  assert jnp.isfinite(losses.entropy(logits)).all()
  slope = jax.grad(
    lambda p: jnp.sum(losses.entropy(net.policy(p, jnp.ones(4))))
  )
  assert all(
    np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope(params["policy"]))
  )
