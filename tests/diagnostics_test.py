import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from lco_jax import diagnostics, losses, numerics


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
    lambda x: diagnostics.moments(x, "data"), axis_name="data"
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


def _symmetric(eigenvalues, seed=0):
  rng = np.random.default_rng(seed)
  size = len(eigenvalues)
  basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
  return jnp.asarray((basis * eigenvalues) @ basis.T)


@pytest.mark.usefixtures("float64")
def test_lanczos_against_dense_eigenvalues():
  """Of the Hessian of PPO's loss in the logits of 2,000 actions."""
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=2000) * 2)
  old = logits + 0.05 * jnp.asarray(rng.normal(size=2000))
  action = jnp.argmax(logits)
  log_p = numerics.action_log_prob(old, action)

  def loss(z):
    log_prob = numerics.action_log_prob(z, action)
    return losses.ppo_clip_loss(log_prob, log_p, jnp.array(1.0), 0.5, 0.5)

  dense = scipy.linalg.eigvalsh(
    jax.jit(lambda z: diagnostics.logit_hessian(loss, z))(logits),
    subset_by_index=[0, 0],
  )
  assert dense < -1e-3
  found = jax.jit(lambda z: diagnostics.smallest_curvature(loss, z, 64))(logits)
  np.testing.assert_allclose(found, dense[0], atol=1e-4)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
  "eigenvalues",
  [[3.0], [2.0] * 5, [0.0, 0.0, 0.0], [-1.0, 2.0, 2.0, 2.0], [-3.0, -2, 0, 7]],
)
def test_lanczos_of_few_distinct_eigenvalues(eigenvalues):
  """It stops early, and what is left adds no eigenvalue outside the others."""
  matrix = _symmetric(np.array(eigenvalues, float))
  smallest, largest = diagnostics.lanczos_eigenvalues(
    lambda v: matrix @ v, len(eigenvalues), 8, jax.random.key(1)
  )
  np.testing.assert_allclose(smallest, min(eigenvalues), atol=1e-9)
  np.testing.assert_allclose(largest, max(eigenvalues), atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_closed_form_curvatures():
  """equations.md's eigenvalues: PPO's on-policy, KLD's and MSE's Hessians."""
  for probabilities, action, advantage, expected in (
    ([0.2, 0.8], 0, 1.0, -0.96),
    ([0.8, 0.2], 0, -1.0, -0.24),
    ([0.2, 0.5, 0.3], 0, -1.0, -0.370),
  ):
    logits = jnp.log(jnp.array(probabilities))
    old = numerics.action_log_prob(logits, jnp.array(action))

    def loss(z, action=action, advantage=advantage, old=old):
      log_prob = numerics.action_log_prob(z, jnp.array(action))
      return losses.ppo_clip_loss(log_prob, old, jnp.array(advantage), 0.2, 0.2)

    mse = lambda z: losses.lco_mse_loss(z, jnp.zeros_like(z))
    found, hessian, other = jax.jit(
      lambda z, loss=loss, mse=mse: (
        diagnostics.smallest_curvature(loss, z),
        diagnostics.logit_hessian(loss, z),
        diagnostics.smallest_curvature(mse, z),
      )
    )(logits)
    np.testing.assert_allclose(found, expected, atol=6e-4)
    np.testing.assert_allclose(
      found, np.linalg.eigvalsh(hessian)[0], atol=1e-10
    )
    assert other == pytest.approx(1.0)


def test_a_chord_lies_above_a_convex_loss_alone():
  rng = np.random.default_rng(0)
  ends = jnp.asarray(rng.normal(size=(2, 50, 4)) * 3, jnp.float32)
  target = jnp.asarray(rng.normal(size=4), jnp.float32)
  for loss in (losses.lco_mse_loss, losses.lco_lch_loss, losses.lco_kld_loss):
    violation = jax.jit(
      jax.vmap(
        lambda x, y, loss=loss: diagnostics.convexity_violation(
          lambda z: loss(z, target), x, y
        )
      )
    )(*ends)
    assert (violation < 1e-5).all()
  # Reverse KL is not convex.
  reverse = lambda z: losses.kl_divergence(z, target)
  violation = jax.jit(
    jax.vmap(lambda x, y: diagnostics.convexity_violation(reverse, x, y))
  )(*ends)
  assert violation.max() > 0.1
  square = lambda z: -jnp.sum(z**2)
  # By hand: −x² is furthest, by 1, above the chord of −1 and 1 at 0.
  found = diagnostics.convexity_violation(
    square, jnp.array([-1.0]), jnp.array([1.0])
  )
  np.testing.assert_allclose(found, 1.0, rtol=1e-6)


def test_directionality():
  """Straight at the minimiser, across, and away from it; of any pytree."""
  position = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([0.0])}
  minimiser = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([0.0])}
  for gradient, product, cosine in (
    ([4.0, 0.0], 8.0, 1.0),
    ([0.0, 2.0], 0.0, 0.0),
    ([-1.0, 1.0], -2.0, -(0.5**0.5)),
    ([0.0, 0.0], 0.0, 0.0),
  ):
    gradient = {"a": jnp.array(gradient), "b": jnp.array([0.0])}
    found = diagnostics.directionality(gradient, position, minimiser)
    np.testing.assert_allclose(found, (product, cosine), rtol=1e-6)


def test_convex_losses_lead_to_their_minimiser():
  """⟨∇L, z − z*⟩ ≥ L(z) − L(z*), and PPO's plateau leads nowhere."""
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(64, 5)) * 2, jnp.float32)
  target = losses.centred_logits(jnp.asarray(rng.normal(size=5), jnp.float32))
  for loss in (losses.lco_mse_loss, losses.lco_lch_loss, losses.lco_kld_loss):

    def check(z, loss=loss):
      z = losses.centred_logits(z)
      value, gradient = jax.value_and_grad(lambda z: loss(z, target))(z)
      product, _ = diagnostics.directionality(gradient, z, target)
      return product - (value - loss(target, target))

    assert (np.asarray(jax.jit(jax.vmap(check))(logits)) > -1e-4).all()


def test_on_plateau_is_where_ppo_has_no_gradient():
  rng = np.random.default_rng(0)
  log_prob, old, advantage = (
    jnp.asarray(rng.normal(size=200) * 0.5, jnp.float32) for _ in range(3)
  )
  gradient = jax.vmap(
    jax.grad(lambda new, o, a: losses.ppo_clip_loss(new, o, a, 0.1, 0.3))
  )(log_prob, old, advantage)
  found = diagnostics.on_plateau(log_prob, old, advantage, 0.1, 0.3)
  np.testing.assert_array_equal(found, gradient == 0)
  assert 0 < found.mean() < 1


def test_effective_sample_size():
  """One weight of four is all: a quarter; equal ones: all. Devices add up."""
  found = diagnostics.effective_sample_size(jnp.array([0.0, -60, -60, -60]))
  np.testing.assert_allclose(found, 0.25, rtol=1e-6)
  assert diagnostics.effective_sample_size(jnp.full(4, 300.0)) == 1.0
  log_ratio = jnp.arange(6.0).reshape(2, 3) / 3
  where = jnp.array([[True, True, False], [True, True, True]])
  weight = np.exp(np.asarray(log_ratio)[np.asarray(where)])
  shared = jax.jit(
    jax.vmap(
      lambda ratio, w: diagnostics.effective_sample_size(ratio, w, "data"),
      axis_name="data",
    )
  )(log_ratio, where)
  np.testing.assert_allclose(
    shared, weight.sum() ** 2 / (5 * (weight**2).sum()), rtol=1e-6
  )


def test_gradient_signal_to_noise():
  """By hand: mean (2, 0), deviations (±1, ±1) in turn: 4 / 2."""
  gradients = {"a": jnp.array([[3.0], [1.0]]), "b": jnp.array([[1.0], [-1.0]])}
  found = diagnostics.gradient_signal_to_noise(gradients)
  np.testing.assert_allclose(found, 2.0, rtol=1e-6)
