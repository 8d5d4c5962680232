import jax
import jax.numpy as jnp
import numpy as np

from lco_jax import diagnostics


def test_logit_hessian_of_a_quadratic():
  matrix = jnp.array([[2.0, 0.5], [0.5, 1.0]])
  loss = lambda z: 0.5 * jnp.einsum("i,ij,j->", z, matrix, z)
  hessian = diagnostics.logit_hessian(loss, jnp.ones((3, 4, 2)))
  np.testing.assert_allclose(
    hessian, np.broadcast_to(matrix, (3, 4, 2, 2)), rtol=1e-6
  )


def test_target_residual_is_zero_at_the_target():
  logits = jnp.array([[0.0, 1.0], [2.0, -1.0]])
  np.testing.assert_allclose(
    diagnostics.target_residual(logits + 5.0, logits), 0.0, atol=1e-6
  )
  assert (diagnostics.target_residual(logits[::-1], logits) > 0.1).all()


def test_clipped():
  log_ratio = jnp.log(jnp.array([0.79, 0.81, 1.29, 1.31]))
  clipped = diagnostics.clipped(log_ratio, jnp.zeros(4), 0.2, 0.3)
  np.testing.assert_array_equal(clipped, [True, False, False, True])


def test_explained_variance():
  returns = jnp.array([1.0, 2.0, 4.0])
  assert diagnostics.explained_variance(returns, returns) == 1.0
  assert diagnostics.explained_variance(jnp.zeros(3), returns) == 0.0
  assert diagnostics.explained_variance(-returns, returns) < 0.0
  assert diagnostics.explained_variance(returns, jnp.ones(3)) == 0.0


def test_moments_over_devices_are_those_of_the_whole():
  values = jnp.arange(12.0).reshape(4, 3)
  mean, variance = jax.vmap(
    lambda x: diagnostics.moments(x, "devices"), axis_name="devices"
  )(values)
  np.testing.assert_allclose(mean, 5.5)
  np.testing.assert_allclose(variance, np.var(values), rtol=1e-6)


def test_rounding_is_no_variance_to_explain():
  """Returns that are equal but for their last bit: 0, not minus infinity."""
  returns = jnp.float32(1.0) + jnp.float32(6e-8) * (jnp.arange(64) % 2).astype(
    jnp.float32
  )
  values = jnp.linspace(0.0, 0.5, 64)
  assert diagnostics.explained_variance(values, returns) == 0
