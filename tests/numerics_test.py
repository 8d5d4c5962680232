import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import numerics


def test_average_is_sum_over_count_of_the_kept():
  values = jnp.array([1.0, jnp.nan, 4.0])
  average = numerics.average(values, jnp.array([True, False, True]))
  assert average.total == 5.0 and average.count == 2.0
  assert average.mean == 2.5


def test_partial_averages_add_up_and_means_do_not():
  parts = [jnp.array([1.0]), jnp.array([2.0, 3.0, 4.0])]
  total = jax.tree.map(lambda *x: sum(x), *map(numerics.average, parts))
  assert total.mean == 2.5  # The mean of the means would be 2.


def test_average_of_nothing_is_zero():
  average = numerics.average(jnp.ones(3), jnp.zeros(3, bool))
  assert average.mean == 0.0


def test_float_arrays_widens_to_float32_and_rejects_mixtures():
  (widened,) = numerics.float_arrays(jnp.ones(2, jnp.bfloat16))
  assert widened.dtype == jnp.float32
  with pytest.raises(AssertionError):
    numerics.float_arrays(jnp.ones(2, jnp.int32))
  with (
    jax.enable_x64(True),
    pytest.raises(AssertionError, match="share one dtype"),
  ):
    numerics.float_arrays(jnp.ones(2, jnp.float32), jnp.ones(2, jnp.float64))


@pytest.mark.parametrize("x", [0.0, 1e-4, -0.3, 0.999, 1.001, -7.0, 30.0])
def test_log_cosh_and_its_derivatives(x, float64):
  x = jnp.float64(x)
  # The mean of cosh's two exponentials, with the larger one factored out.
  expected = np.logaddexp(x, -x) - np.log(2.0)
  np.testing.assert_allclose(
    numerics.log_cosh(x), expected, rtol=1e-10, atol=1e-15
  )
  np.testing.assert_allclose(
    jax.grad(numerics.log_cosh)(x), np.tanh(x), atol=1e-15
  )
  second = jax.grad(jax.grad(numerics.log_cosh))(x)
  np.testing.assert_allclose(second, 1 / np.cosh(x) ** 2, atol=1e-15)


def test_log_cosh_keeps_small_digits_and_does_not_overflow():
  values = numerics.log_cosh(jnp.array([1e-3, 1e30]))
  np.testing.assert_allclose(values, [5e-7, 1e30], rtol=1e-5)


def test_log_softmax_ignores_masked_entries():
  where = jnp.array([True, True, False])
  expected = jax.nn.log_softmax(jnp.array([1.0, 2.0]))
  for junk in (jnp.nan, jnp.inf, -jnp.inf, 1e30, -1e30):
    logits = jnp.array([1.0, 2.0, junk])
    log_probs = numerics.log_softmax(logits, where)
    np.testing.assert_allclose(log_probs[:2], expected, rtol=1e-6)
    assert log_probs[2] == -jnp.inf
    gradient = jax.grad(lambda z: numerics.log_softmax(z, where)[0])(logits)
    np.testing.assert_allclose(
      gradient, [1 - np.exp(expected[0]), -np.exp(expected[1]), 0.0], rtol=1e-6
    )


def test_log_softmax_of_nothing_legal():
  where = jnp.zeros(3, bool)
  logits = jnp.array([1.0, jnp.nan, jnp.inf])
  np.testing.assert_array_equal(numerics.log_softmax(logits, where), -np.inf)
  with jax.debug_nans(True):  # Not even in between is anything NaN.
    gradient = jax.grad(
      lambda z: jnp.sum(jnp.exp(numerics.log_softmax(z, where)))
    )(jnp.zeros(3))
  np.testing.assert_array_equal(gradient, 0.0)
  gradient = jax.grad(
    lambda z: jnp.sum(jnp.exp(numerics.log_softmax(z, where)))
  )(logits)
  np.testing.assert_array_equal(gradient, 0.0)


def test_select_action():
  values = jnp.arange(6.0).reshape(2, 3)
  np.testing.assert_array_equal(
    numerics.select_action(values, jnp.array([2, 0])), [2.0, 3.0]
  )
  assert jnp.isnan(numerics.select_action(values, jnp.array([-1, 3]))).all()
  with pytest.raises(AssertionError):
    numerics.select_action(values, jnp.array([0.0, 1.0]))
  with pytest.raises(AssertionError):
    numerics.select_action(values, jnp.array([0]))


def test_select_action_of_infinite_logits():
  log_probs = jnp.array([-jnp.inf, 0.0])
  assert numerics.select_action(log_probs, jnp.array(1)) == 0.0
  assert numerics.select_action(log_probs, jnp.array(0)) == -jnp.inf
