import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import diagnostics, losses, targets
from tests import oracles

# Not compiled: XLA turns the product of a mask and a NaN into 0, which would
# hide that the mask was applied too late.
EAGER = {
  "mse": losses.lco_mse_loss,
  "lch": losses.lco_lch_loss,
  "kld": losses.lco_kld_loss,
}
# Compiled: operation by operation would take ten programs each.
LOSSES = {name: jax.jit(loss) for name, loss in EAGER.items()}
JUNK = (np.nan, np.inf, -np.inf, 1e30, -1e30)
each_loss = pytest.mark.parametrize("name", LOSSES)


def _states(shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape) * 2, rng.normal(size=shape) * 2


@each_loss
def test_value_and_gradient_against_an_oracle(name, float64):
  z, target = _states((6, 5))
  oracle = functools.partial(getattr(oracles, name), target=target)
  loss = LOSSES[name]
  np.testing.assert_allclose(
    loss(jnp.asarray(z), jnp.asarray(target)), oracle(z), rtol=1e-10
  )
  gradient = jax.grad(lambda x: jnp.sum(loss(x, jnp.asarray(target))))
  np.testing.assert_allclose(
    gradient(jnp.asarray(z)), oracles.gradient(oracle, z), atol=1e-8
  )


@each_loss
def test_gradient_formula(name, float64):
  z, target = _states((6, 5))
  expected = {
    "mse": z - target,
    "lch": np.tanh(z - target),
    "kld": oracles.softmax(z) - oracles.softmax(target),
  }[name]
  gradient = jax.grad(lambda x: jnp.sum(LOSSES[name](x, jnp.asarray(target))))(
    jnp.asarray(z)
  )
  np.testing.assert_allclose(gradient, expected, atol=1e-12)


@each_loss
@pytest.mark.parametrize("num_actions", [2, 3, 10, 50])
def test_hessian_is_positive_semidefinite(name, num_actions):
  """Convexity in the logits: 250 random states for each action count."""
  z, target = _states((250, num_actions), seed=num_actions)
  z, target = (jnp.asarray(x, jnp.float32) for x in (z, target))
  hessians = jax.jit(jax.vmap(jax.hessian(LOSSES[name])))(z, target)
  assert np.linalg.eigvalsh(np.asarray(hessians, np.float64)).min() >= -1e-6


def test_hessian_of_centred_mse_is_the_projection(float64):
  z, target = (jnp.asarray(x) for x in _states(4))
  loss = lambda x: losses.lco_mse_loss(
    losses.centred_logits(x), losses.centred_logits(target)
  )
  hessian = diagnostics.logit_hessian(loss, z)
  np.testing.assert_allclose(hessian, np.eye(4) - 1 / 4, atol=1e-12)


@each_loss
def test_convex_along_segments(name, float64):
  """L(½x + ½y) ≤ ½L(x) + ½L(y) for far apart states."""
  rng = np.random.default_rng(0)
  x, y, target = jnp.asarray(rng.normal(size=(3, 500, 6)) * 10)
  loss = LOSSES[name]
  middle = loss((x + y) / 2, target)
  assert (middle <= (loss(x, target) + loss(y, target)) / 2 + 1e-9).all()


@each_loss
def test_directionality(name, float64):
  """Convexity: ⟨∇L, z − z*⟩ ≥ L(z) − L(z*) ≥ 0."""
  z, target = (jnp.asarray(x) for x in _states((200, 5)))
  loss = LOSSES[name]
  gradient = jax.grad(lambda x: jnp.sum(loss(x, target)))(z)
  inner = jnp.sum(gradient * (z - target), axis=-1)
  gap = loss(z, target) - loss(target, target)
  assert (gap >= 0).all() and (inner >= gap - 1e-9).all()


@each_loss
def test_zero_only_at_the_target(name, float64):
  z, target = (jnp.asarray(x) for x in _states((20, 4)))
  loss = LOSSES[name]
  np.testing.assert_allclose(loss(target, target), 0.0, atol=1e-12)
  assert (loss(z, target) > 1e-6).all()
  gradient = jax.grad(lambda x: jnp.sum(loss(x, target)))(target)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-12)


def test_mse_and_lch_agree_for_small_residuals(float64):
  target = jnp.asarray(_states((5, 4))[0])
  z = target + 1e-4 * jnp.asarray(_states((5, 4), seed=1)[0])
  np.testing.assert_allclose(
    losses.lco_lch_loss(z, target), losses.lco_mse_loss(z, target), rtol=1e-6
  )


def test_kld_and_centred_mse_ignore_the_gauge(float64):
  z, target = (jnp.asarray(x) for x in _states((5, 4)))
  np.testing.assert_allclose(
    losses.lco_kld_loss(z + 7.0, target - 3.0), losses.lco_kld_loss(z, target)
  )
  centred = losses.centred_logits
  np.testing.assert_allclose(
    losses.lco_mse_loss(centred(z + 7.0), centred(target - 3.0)),
    losses.lco_mse_loss(centred(z), centred(target)),
  )
  # Plain logits do depend on it.
  shifted = losses.lco_mse_loss(z + 7.0, target)
  assert not np.allclose(shifted, losses.lco_mse_loss(z, target))


def test_square_on_log_probabilities_is_not_convex(float64):
  """Why LCO-MSE takes logits: eigenvalue −5.01 at q = (.998, .001, .001)."""
  log_q = jnp.log(jnp.array([0.998, 0.001, 0.001]))
  loss = lambda z: losses.lco_mse_loss(jax.nn.log_softmax(z), log_q)
  hessian = 2 * diagnostics.logit_hessian(loss, jnp.zeros(3))  # Without the ½.
  np.testing.assert_allclose(
    np.linalg.eigvalsh(hessian).min(), -5.01, atol=5e-3
  )


@each_loss
def test_target_gets_no_gradient(name):
  z, target = (jnp.asarray(x, jnp.float32) for x in _states((3, 4)))
  gradient = jax.grad(lambda t: jnp.sum(LOSSES[name](z, t)))(target)
  np.testing.assert_array_equal(gradient, 0.0)


@each_loss
@pytest.mark.parametrize("junk", JUNK)
def test_nothing_under_a_mask_influences_anything(name, junk):
  z, target = (jnp.asarray(x, jnp.float32) for x in _states((3, 4)))
  where = jnp.array([[True, True, False, True]] * 3)
  run = jax.value_and_grad(
    lambda x, t: jnp.sum(EAGER[name](x, t, where)), argnums=(0, 1)
  )
  clean, (clean_z, clean_t) = run(z, target)
  for dirty_z, dirty_t in (
    (z.at[:, 2].set(junk), target),
    (z, target.at[:, 2].set(junk)),
    (z.at[:, 2].set(junk), target.at[:, 2].set(junk)),
  ):
    value, (grad_z, grad_t) = run(dirty_z, dirty_t)
    assert value == clean
    np.testing.assert_array_equal(grad_z, clean_z)
    np.testing.assert_array_equal(grad_t, clean_t)
  np.testing.assert_array_equal(clean_z[:, 2], 0.0)


@each_loss
def test_masked_equals_the_smaller_problem(name):
  z, target = (jnp.asarray(x, jnp.float32) for x in _states((3, 4)))
  keep = np.array([0, 1, 3])
  where = jnp.array([[True, True, False, True]] * 3)
  np.testing.assert_allclose(
    LOSSES[name](z, target, where),
    LOSSES[name](z[:, keep], target[:, keep]),
    rtol=1e-5,
  )


@each_loss
@pytest.mark.parametrize("junk", [0.0, *JUNK])
def test_a_fully_masked_row_is_zero_with_zero_gradient(name, junk):
  z = jnp.full((2, 3), junk, jnp.float32)
  where = jnp.zeros((2, 3), bool)
  value, gradient = jax.value_and_grad(
    lambda x: jnp.sum(EAGER[name](x, x, where))
  )(z)
  assert value == 0.0
  np.testing.assert_array_equal(gradient, 0.0)


def test_kld_takes_targets_that_exclude_legal_actions():
  target = jnp.array([0.0, -jnp.inf, 0.0])
  value, gradient = jax.value_and_grad(losses.lco_kld_loss)(
    jnp.zeros(3), target
  )
  np.testing.assert_allclose(value, np.log(1.5), rtol=1e-6)
  np.testing.assert_allclose(
    gradient, [1 / 3 - 1 / 2, 1 / 3, 1 / 3 - 1 / 2], rtol=1e-5
  )


@each_loss
def test_half_precision_is_computed_in_float32(name):
  """Also against a float32 target, which is what `targets` returns."""
  z, target = (jnp.asarray(x, jnp.bfloat16) for x in _states((3, 4)))
  loss = LOSSES[name](z, target)
  assert loss.dtype == jnp.float32
  wide = LOSSES[name](z.astype(jnp.float32), target.astype(jnp.float32))
  np.testing.assert_array_equal(loss, wide)
  mixed = LOSSES[name](z, target.astype(jnp.float32))
  np.testing.assert_array_equal(mixed, wide)


@each_loss
def test_wrong_shapes_and_dtypes_raise_at_trace_time(name):
  z = jnp.zeros((2, 3))
  loss = LOSSES[name]
  for bad in (
    jnp.zeros((3, 2)),
    jnp.zeros(3),
    jnp.zeros((2, 3), jnp.int32),
  ):
    with pytest.raises(AssertionError):
      loss(z, bad)
  for bad_mask in (jnp.ones((2, 3)), jnp.ones(3, bool)):
    with pytest.raises(AssertionError):
      loss(z, z, bad_mask)


@each_loss
def test_extreme_residuals_stay_finite(name):
  value, gradient = jax.jit(jax.value_and_grad(LOSSES[name]))(
    jnp.array([1e4, -1e4]), jnp.array([-1e4, 1e4])
  )
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_mse_minimiser_is_the_natural_policy_gradient_step(float64):
  """One exact Newton step from z_old lands on z_old + A/β."""
  z, advantage = (jnp.asarray(x) for x in _states(5))
  target = targets.optimal_logits(z, advantage, 0.5)
  loss = lambda x: losses.lco_mse_loss(x, target)
  newton = z - np.linalg.solve(jax.hessian(loss)(z), jax.grad(loss)(z))
  np.testing.assert_allclose(newton, z + advantage / 0.5, atol=1e-12)


def test_importance_weight():
  logits = jnp.log(jnp.array([[0.5, 0.5], [0.01, 0.99]]))
  action = jnp.array([0, 0])
  np.testing.assert_allclose(
    losses.importance_weight(logits, action, 10.0), [2.0, 10.0], rtol=1e-5
  )
  np.testing.assert_array_equal(
    losses.importance_weight(logits, action, 1.0), 1.0
  )


def test_centred_logits_of_legal_actions():
  where = jnp.array([True, True, False])
  centred = losses.centred_logits(jnp.array([1.0, 3.0, jnp.nan]), where)
  np.testing.assert_array_equal(centred, [-1.0, 1.0, 0.0])
