import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import losses
from tests import oracles


def _clipped_oracle(value, old, target, clip):
  near = old + np.clip(value - old, -clip, clip)
  return 0.5 * np.maximum((value - target) ** 2, (near - target) ** 2)


def test_squared_value_loss(float64):
  value, target = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20)))
  loss, pull = jax.vjp(lambda v: losses.squared_value_loss(v, target), value)
  np.testing.assert_allclose(loss, 0.5 * (value - target) ** 2)
  np.testing.assert_allclose(pull(jnp.ones(20))[0], value - target)


def test_clipped_value_loss_against_an_oracle(float64):
  value, old, target = np.random.default_rng(0).normal(size=(3, 200))
  oracle = lambda v: _clipped_oracle(v, old, target, 0.3)
  loss = lambda v: losses.clipped_value_loss(
    v, jnp.asarray(old), jnp.asarray(target), 0.3
  )
  np.testing.assert_allclose(loss(jnp.asarray(value)), oracle(value))
  np.testing.assert_allclose(
    jax.grad(lambda v: jnp.sum(loss(v)))(jnp.asarray(value)),
    oracles.gradient(oracle, value),
    atol=1e-7,
  )


def test_clipped_value_loss_is_never_below_the_plain_one():
  value, old, target = jnp.asarray(
    np.random.default_rng(0).normal(size=(3, 200)), jnp.float32
  )
  clipped = losses.clipped_value_loss(value, old, target, 0.1)
  assert (clipped >= losses.squared_value_loss(value, target)).all()


def test_targets_and_old_values_get_no_gradient():
  """Inside the clip, and where the clipped error, which holds V_old, counts."""
  gradients = jax.grad(
    lambda *a: jnp.sum(losses.clipped_value_loss(*a, 0.1)), argnums=(1, 2)
  )(jnp.array([1.0, 2.0]), jnp.array([0.95, 1.0]), jnp.array([3.0, 3.0]))
  np.testing.assert_array_equal(gradients, 0.0)


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
def test_nothing_under_a_mask_influences_anything(junk):
  where = jnp.array([True, False])
  clean = jnp.array([1.0, 0.0])
  dirty = clean.at[1].set(junk)
  other = jnp.array([0.5, 0.0])
  for loss in (
    lambda v: losses.squared_value_loss(v, other, where),
    lambda v: losses.clipped_value_loss(v, other, other, 0.1, where),
  ):
    run = jax.value_and_grad(lambda v, loss=loss: jnp.sum(loss(v)))
    (value, gradient), expected = run(dirty), run(clean)
    assert value == expected[0]
    np.testing.assert_array_equal(gradient, expected[1])


def test_wrong_shapes_raise():
  with pytest.raises(AssertionError):
    losses.squared_value_loss(jnp.zeros(3), jnp.zeros((3, 1)))
  with pytest.raises(AssertionError):
    losses.clipped_value_loss(jnp.zeros(3), jnp.zeros(2), jnp.zeros(3), 0.1)
