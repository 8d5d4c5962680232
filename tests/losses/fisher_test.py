"""LCO in the Fisher metric: golden numbers, oracles, and what it promises."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import losses, targets
from tests import oracles

_FILE = pathlib.Path(__file__).parent.parent / "data/lco_fisher_vectors.json"
_CASES = json.loads(_FILE.read_text())["cases"]
JUNK = (np.nan, -np.inf)

LOSSES = {
  "fisher": losses.lco_fisher_loss,
  "proximal_kl": losses.lco_proximal_kl_loss,
  "residual": losses.lco_residual_mse_loss,
  "residual_lch": losses.lco_residual_lch_loss,
}
# Compiled: operation by operation would take twenty programs each.
SAMPLED = {name: jax.jit(loss) for name, loss in LOSSES.items()}
EAGER_DENSE = {
  "fisher": losses.lco_fisher_dense_loss,
  "proximal_kl": losses.lco_proximal_kl_dense_loss,
  "residual": losses.lco_fisher_dense_loss,
  "residual_lch": losses.lco_residual_lch_dense_loss,
}
DENSE = {name: jax.jit(loss) for name, loss in EAGER_DENSE.items()}
# Those whose mean does not depend on a baseline, and is quadratic in A/β.
UNBIASED = ("fisher", "proximal_kl", "residual")
each_sampled = pytest.mark.parametrize("name", SAMPLED)
each_dense = pytest.mark.parametrize("name", DENSE)
each_unbiased = pytest.mark.parametrize("name", UNBIASED)


def _weighted(logits, old_logits, actions, advantages, beta, where=None):
  """The weighted loss with the exact normaliser of each state."""
  del beta
  return losses.lco_weighted_loss(
    logits, old_logits, actions, advantages, where
  )


# The weighted loss takes weights where the others take advantages.
EAGER = LOSSES | {"weighted": _weighted}
ALL = SAMPLED | {"weighted": jax.jit(_weighted)}
each_loss = pytest.mark.parametrize("name", ALL)


def _oracle(name, z, old, action, advantage, beta):
  """Plain NumPy, written from the formulas."""
  p, rows = oracles.softmax(old), np.arange(len(z))
  change = z - old
  change = change - (p * change).sum(-1, keepdims=True)
  own = change[rows, action]
  forward = oracles.kl(p, oracles.softmax(z))
  return {
    "fisher": 0.5 * (p * change**2).sum(-1) - advantage / beta * own,
    "proximal_kl": forward - advantage / beta * own,
    "residual": 0.5 * (own - advantage / beta) ** 2,
    "residual_lch": np.log(np.cosh(own - advantage / beta)),
    "weighted": forward
    - (advantage - 1) * np.log(oracles.softmax(z)[rows, action]),
  }[name]


def _states(count, num_actions, seed=0):
  """(z, z_old, dense advantages) [count, A], β [count]; float64."""
  rng = np.random.default_rng(seed)
  z, old, dense = rng.normal(size=(3, count, num_actions)) * 1.5
  return *(jnp.asarray(x) for x in (z, old, dense)), jnp.asarray(
    rng.uniform(0.2, 3.0, count)
  )


@functools.partial(jax.jit, static_argnums=0)
def _mean_loss(loss, z, old, dense, beta):
  """Σ_a p(a) loss(a): float[count], by enumeration of the actions."""
  num_actions = z.shape[-1]
  p = jax.nn.softmax(old)

  def one(action, advantage):
    actions = jnp.full(len(z), action, jnp.int32)
    return loss(z, old, actions, advantage, beta)

  each = jax.vmap(one, (0, 1), 1)(jnp.arange(num_actions), dense)
  return jnp.sum(p * each, axis=-1)


# 1,000 states with 2 to 64 actions.
SIZES = {2: 400, 5: 400, 64: 200}
each_size = pytest.mark.parametrize("num_actions", SIZES)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("case", _CASES, ids=lambda c: str(c["beta"]))
def test_golden_numbers(case, precision):
  tolerance = (
    {"rtol": 1e-4, "atol": 1e-5}
    if precision == "float32"
    else {"rtol": 1e-10, "atol": 1e-10}
  )
  with jax.enable_x64(precision == "float64"):
    z, old, sampled, dense = (
      jnp.asarray(case[key], precision)
      for key in ("logits", "old_logits", "advantage", "dense_advantages")
    )
    action = jnp.asarray(case["action"])
    calls = {
      "fisher": (losses.lco_fisher_loss, action, sampled),
      "fisher_dense": (losses.lco_fisher_dense_loss, dense),
      "proximal_kl": (losses.lco_proximal_kl_loss, action, sampled),
      "sampled_residual": (losses.lco_residual_mse_loss, action, sampled),
      "sampled_residual_lch": (losses.lco_residual_lch_loss, action, sampled),
    }
    for key, (loss, *data) in calls.items():
      run = lambda z, loss=loss, data=data: loss(z, old, *data, case["beta"])
      slope = jax.grad(lambda z, run=run: jnp.sum(run(z)))
      value = jax.jit(run)(z)
      assert value.dtype == precision
      np.testing.assert_allclose(value, case[key], **tolerance)
      np.testing.assert_allclose(
        jax.jit(slope)(z), case[f"{key}_grad"], **tolerance
      )


@each_loss
def test_value_and_gradient_against_an_oracle(name, float64):
  z, old, dense, _ = _states(6, 5)
  action = np.arange(6) % 5
  advantage = np.asarray(dense)[:, 0]
  oracle = lambda x: _oracle(name, x, np.asarray(old), action, advantage, 0.7)
  loss = lambda x: ALL[name](
    x, old, jnp.asarray(action), jnp.asarray(advantage), 0.7
  )
  np.testing.assert_allclose(loss(z), oracle(np.asarray(z)), rtol=1e-10)
  np.testing.assert_allclose(
    jax.grad(lambda x: jnp.sum(loss(x)))(z),
    oracles.gradient(oracle, z),
    atol=1e-8,
  )


@each_size
@each_sampled
def test_mean_over_actions_equals_the_dense_loss(name, num_actions, float64):
  """Up to a constant: differences and gradients agree."""
  z, old, dense, beta = _states(SIZES[num_actions], num_actions)
  p = jax.nn.softmax(old)
  centred = dense - jnp.sum(p * dense, axis=-1, keepdims=True)
  mean = lambda x: _mean_loss(SAMPLED[name], x, old, centred, beta)
  whole = lambda x: DENSE[name](x, old, dense, beta)
  np.testing.assert_allclose(
    mean(z) - mean(old), whole(z) - whole(old), atol=1e-10
  )
  np.testing.assert_allclose(
    jax.grad(lambda x: jnp.sum(mean(x)))(z),
    jax.grad(lambda x: jnp.sum(whole(x)))(z),
    atol=1e-10,
  )


@each_size
def test_weighted_mean_equals_the_paper_s_kl(num_actions, float64):
  """With each state's own normaliser it is KL(π* ‖ π) up to a constant."""
  z, old, dense, beta = _states(SIZES[num_actions], num_actions)
  p = jax.nn.softmax(old)
  weights = jnp.exp(dense / beta[:, None])
  weights = weights / jnp.sum(p * weights, axis=-1, keepdims=True)
  target = targets.optimal_logits(old, dense, beta[:, None])
  mean = lambda x: _mean_loss(_weighted, x, old, weights, beta)
  np.testing.assert_allclose(
    mean(z) - mean(old),
    losses.lco_kld_loss(z, target) - losses.lco_kld_loss(old, target),
    atol=1e-10,
  )


@each_size
@each_unbiased
def test_no_baseline_changes_the_expected_gradient(name, num_actions, float64):
  z, old, dense, beta = _states(SIZES[num_actions], num_actions)
  slope = jax.grad(
    lambda x, a: jnp.sum(_mean_loss(SAMPLED[name], x, old, a, beta))
  )
  np.testing.assert_allclose(slope(z, dense), slope(z, dense + 5.0), atol=1e-10)


def test_a_baseline_changes_the_paper_s_and_the_log_cosh_gradient(float64):
  """All actions worth the same: the truth is 0, and these move."""
  old = jnp.log(jnp.asarray([[0.6, 0.3, 0.1]]))
  one, beta = jnp.ones((1, 3)), jnp.ones(1)

  def paper(z, old, actions, advantages, beta):
    return losses.lco_mse_loss(
      losses.centred_logits(z),
      losses.centred_logits(
        old + advantages[:, None] * jax.nn.one_hot(actions, 3)
      ),
    )

  for loss, moves in (
    (paper, [0.2667, -0.0333, -0.2333]),
    (losses.lco_residual_lch_loss, [0.0, 0.0, 0.0]),
    (losses.lco_fisher_loss, [0.0, 0.0, 0.0]),
  ):
    slope = jax.grad(
      lambda z, loss=loss: jnp.sum(_mean_loss(loss, z, old, one, beta))
    )
    np.testing.assert_allclose(-slope(old)[0], moves, atol=1e-4)
  # Away from the start the tanh of a shifted residual is another one.
  slope = jax.grad(
    lambda z, a: jnp.sum(
      _mean_loss(losses.lco_residual_lch_loss, z, old, a, beta)
    )
  )
  z = old + jnp.asarray([[0.5, -0.2, 0.1]])
  assert np.abs(slope(z, one) - slope(z, 0 * one)).max() > 1e-3


@each_size
def test_minimiser_is_the_optimal_policy(num_actions, float64):
  """The mean gradient of the quadratic losses is 0 at z*, in any gauge."""
  _, old, dense, beta = _states(SIZES[num_actions], num_actions)
  best = targets.optimal_logits(old, dense, beta[:, None]) + 3.0
  for name in ("fisher", "residual"):
    slope = jax.grad(
      lambda x, name=name: jnp.sum(
        _mean_loss(SAMPLED[name], x, old, dense, beta)
      )
    )(best)
    np.testing.assert_allclose(slope, 0.0, atol=1e-10)


def test_minimiser_of_the_proximal_kl(float64):
  """p (1 + Ā/β), where that is positive."""
  _, old, dense, _ = _states(50, 4)
  p = jax.nn.softmax(old)
  centred = dense - jnp.sum(p * dense, axis=-1, keepdims=True)
  beta = 2.0 * jnp.max(jnp.abs(centred), axis=-1)
  best = jnp.log(p * (1.0 + centred / beta[:, None]))
  slope = jax.grad(
    lambda x: jnp.sum(
      _mean_loss(losses.lco_proximal_kl_loss, x, old, dense, beta)
    )
  )(best)
  np.testing.assert_allclose(slope, 0.0, atol=1e-10)


@each_size
@each_loss
def test_convex_for_either_sign_of_the_advantage(name, num_actions, float64):
  z, old, dense, beta = _states(SIZES[num_actions], num_actions)
  advantage = dense[:, 0]
  assert (advantage > 0).any() and (advantage < 0).any()
  if name == "weighted":
    advantage = jnp.exp(advantage)
  action = jnp.arange(len(z)) % num_actions
  hessian = jax.jit(jax.vmap(jax.hessian(ALL[name])))(
    z, old, action, advantage, beta
  )
  assert np.linalg.eigvalsh(hessian).min() >= -1e-6


def test_apa_is_the_residual_without_the_kl_and_not_convex(float64):
  """Δ̄_a = log (π(a)/p(a)) + KL(p ‖ π)."""
  z, old, dense, _ = _states(20, 6)
  action = jnp.arange(20) % 6
  log_ratio = jax.nn.log_softmax(z) - jax.nn.log_softmax(old)
  own = jnp.take_along_axis(log_ratio, action[:, None], -1)[:, 0]
  forward = losses.kl_divergence(old, z)
  np.testing.assert_allclose(
    losses.lco_residual_mse_loss(z, old, action, dense[:, 0], 0.5),
    0.5 * (own + forward - dense[:, 0] / 0.5) ** 2,
    rtol=1e-10,
  )


@each_size
@each_unbiased
def test_first_gradient_is_the_policy_gradient_over_beta(
  name, num_actions, float64
):
  _, old, dense, beta = _states(SIZES[num_actions], num_actions)
  action, advantage = jnp.arange(len(old)) % num_actions, dense[:, 0]
  slope = jax.grad(
    lambda x: jnp.sum(SAMPLED[name](x, old, action, advantage, beta))
  )(old)
  reinforce = jax.grad(
    lambda x: jnp.sum(
      losses.reinforce_loss(
        jnp.take_along_axis(jax.nn.log_softmax(x), action[:, None], -1)[:, 0],
        advantage,
      )
    )
  )(old)
  np.testing.assert_allclose(slope, reinforce / beta[:, None], atol=1e-10)


def test_log_cosh_bounds_the_pull_of_one_sample(float64):
  old, action = jnp.zeros((1, 3)), jnp.asarray([0])
  slope = jax.grad(
    lambda z: jnp.sum(
      losses.lco_residual_lch_loss(z, old, action, jnp.asarray([1e6]), 1.0)
    )
  )(old)
  np.testing.assert_allclose(slope, [[-2 / 3, 1 / 3, 1 / 3]], atol=1e-12)


@each_loss
@pytest.mark.parametrize("junk", JUNK)
def test_nothing_under_a_mask_influences_anything(name, junk):
  rng = np.random.default_rng(0)
  z, old = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
  action, advantage = jnp.array([0, 1, 3]), jnp.array([1.0, -1.0, 2.0])
  where = jnp.array([[True, True, False, True]] * 2 + [[False] * 4])
  # Not compiled: XLA turns the product of a mask and a NaN into 0, which would
  # hide that the mask was applied too late.
  run = jax.value_and_grad(
    lambda z, old, a: jnp.sum(EAGER[name](z, old, action, a, 0.5, where)),
    argnums=(0, 1, 2),
  )
  clean, slopes = run(z, old, advantage)
  dirty, dirty_slopes = run(
    z.at[:, 2].set(junk).at[2].set(junk),
    old.at[:, 2].set(junk).at[2].set(junk),
    advantage.at[2].set(junk),
  )
  assert dirty == clean
  for slope, expected in zip(dirty_slopes, slopes, strict=True):
    np.testing.assert_array_equal(slope, expected)
  np.testing.assert_array_equal(slopes[0][:, 2], 0.0)
  np.testing.assert_array_equal(slopes[0][2], 0.0)
  # The behaviour policy and the advantages are held constant.
  np.testing.assert_array_equal(slopes[1], 0.0)
  np.testing.assert_array_equal(slopes[2], 0.0)
  rows = ALL[name](z, old, action, advantage, 0.5, where)
  assert rows[2] == 0.0


@each_dense
@pytest.mark.parametrize("junk", JUNK)
def test_nothing_under_a_mask_influences_a_dense_loss(name, junk):
  rng = np.random.default_rng(0)
  z, old, dense = jnp.asarray(rng.normal(size=(3, 3, 4)), jnp.float32)
  where = jnp.array([[True, True, False, True]] * 2 + [[False] * 4])
  run = jax.value_and_grad(  # Not compiled, as above.
    lambda *x: jnp.sum(EAGER_DENSE[name](*x, 0.5, where)), argnums=(0, 1, 2)
  )
  clean, slopes = run(z, old, dense)
  dirty = [x.at[:, 2].set(junk).at[2].set(junk) for x in (z, old, dense)]
  value, dirty_slopes = run(*dirty)
  assert value == clean
  for slope, expected in zip(dirty_slopes, slopes, strict=True):
    np.testing.assert_array_equal(slope, expected)
  np.testing.assert_array_equal(slopes[0][:, 2], 0.0)
  np.testing.assert_array_equal(slopes[1], 0.0)
  np.testing.assert_array_equal(slopes[2], 0.0)


@each_loss
def test_masked_equals_the_smaller_problem(name, float64):
  z, old, _, _ = _states(3, 4)
  keep = np.array([0, 1, 3])
  where = jnp.array([[True, True, False, True]] * 3)
  advantage = jnp.array([1.0, 0.5, 2.0])
  np.testing.assert_allclose(
    ALL[name](z, old, jnp.array([0, 1, 3]), advantage, 0.5, where),
    ALL[name](z[:, keep], old[:, keep], jnp.array([0, 1, 2]), advantage, 0.5),
    rtol=1e-10,
  )


@each_dense
def test_dense_masked_equals_the_smaller_problem(name, float64):
  z, old, dense, beta = _states(3, 4)
  keep = np.array([0, 1, 3])
  where = jnp.array([[True, True, False, True]] * 3)
  np.testing.assert_allclose(
    DENSE[name](z, old, dense, beta, where),
    DENSE[name](z[:, keep], old[:, keep], dense[:, keep], beta),
    rtol=1e-10,
  )


@each_loss
def test_half_precision_is_computed_in_float32(name):
  z, old, _, _ = (jnp.asarray(x, jnp.bfloat16) for x in _states(3, 4))
  action, advantage = jnp.array([0, 1, 2]), jnp.array([1.0, 0.5, 2.0])
  value = ALL[name](z, old, action, advantage, 0.5)
  assert value.dtype == jnp.float32
  wide = ALL[name](
    z.astype(jnp.float32), old.astype(jnp.float32), action, advantage, 0.5
  )
  np.testing.assert_array_equal(value, wide)


@each_sampled
def test_wrong_input_raises_at_trace_time(name):
  z, action, advantage = jnp.zeros((2, 3)), jnp.array([0, 1]), jnp.ones(2)
  loss = LOSSES[name]
  for bad in (
    (jnp.zeros((3, 2)), action, advantage, 1.0),
    (z, action.astype(jnp.float32), advantage, 1.0),
    (z, action, jnp.ones((2, 3)), 1.0),
    (z, action, jnp.ones(2, jnp.int32), 1.0),
    (z, action, advantage, 1.0, jnp.ones((2, 3))),
  ):
    with pytest.raises(AssertionError):
      jax.jit(loss, static_argnums=4)(z, *bad)
  for beta in (0.0, -1.0, np.nan, np.array([1.0, 0.0])):
    with pytest.raises(ValueError, match="beta must be positive"):
      loss(z, z, action, advantage, beta)


def test_an_action_out_of_range_is_not_a_number():
  z = jnp.zeros((1, 3))
  for loss in SAMPLED.values():
    assert jnp.isnan(loss(z, z, jnp.array([3]), jnp.ones(1), 1.0)).all()


def test_weights_against_an_oracle(float64):
  rng = np.random.default_rng(0)
  advantage = rng.normal(size=(4, 5)) * 3
  where = rng.random((4, 5)) < 0.7
  expected = np.where(where, np.exp(advantage / 0.8), 0.0)
  expected /= expected.sum() / where.sum()
  junk = jnp.asarray(np.where(where, advantage, np.nan))
  weights = losses.lco_weights(junk, 0.8, jnp.asarray(where))
  np.testing.assert_allclose(weights, expected, rtol=1e-12)
  np.testing.assert_allclose(
    losses.lco_weights(jnp.asarray(advantage), 0.8),
    np.exp(advantage / 0.8) / np.exp(advantage / 0.8).mean(),
    rtol=1e-12,
  )
  nothing = losses.lco_weights(junk, 0.8, jnp.zeros((4, 5), bool))
  np.testing.assert_array_equal(nothing, 0.0)


def test_weights_do_not_overflow_and_have_no_gradient():
  weights = losses.lco_weights(jnp.array([1e4, 0.0]), 0.1)
  np.testing.assert_array_equal(weights, [2.0, 0.0])
  slope = jax.grad(lambda a: jnp.sum(losses.lco_weights(a, 1.0) ** 2))
  np.testing.assert_array_equal(slope(jnp.array([1.0, 2.0])), 0.0)


def test_weights_of_a_batch_on_several_devices():
  advantage = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)))
  advantage = advantage.astype(jnp.float32)
  beta = jnp.linspace(0.5, 2.0, 24).reshape(8, 3)
  apart = jax.pmap(
    lambda a, b: losses.lco_weights(a, b, axis_name="data"),
    axis_name="data",
  )(advantage, beta)
  np.testing.assert_allclose(
    apart, losses.lco_weights(advantage, beta), rtol=1e-6
  )
