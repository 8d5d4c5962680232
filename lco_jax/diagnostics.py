"""Measurements of losses and policies, never used as training signals."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array

from lco_jax import numerics, types
from lco_jax.losses import regularizers


def logit_hessian(loss: Callable[[Array], Array], logits: Array) -> Array:
  """Hessian of a per-state loss with respect to the logits.

  Args:
    loss: float[A] → float[], a loss of one state's logits.
    logits: float[..., A], where to evaluate it.

  Returns:
    float[..., A, A]. Compute its eigenvalues on the host
    (`numpy.linalg.eigvalsh`): batched eigensolvers may block small machines.
  """
  flat = logits.reshape(-1, logits.shape[-1])
  hessians = jax.vmap(jax.hessian(loss))(flat)
  return hessians.reshape(*logits.shape, logits.shape[-1])


def lanczos_eigenvalues(
  matvec: Callable[[Array], Array],
  size: int,
  num_iterations: int,
  key: Array,
) -> tuple[Array, Array]:
  """Extreme eigenvalues of a symmetric matrix, from matrix-vector products.

  Lanczos iteration with full reorthogonalisation: exact after as many
  iterations as there are distinct eigenvalues; until then the estimates lie
  inside the spectrum. Without dense eigensolvers, it vmaps on any machine.

  Args:
    matvec: float[A] → float[A], product with the matrix.
    size: A.
    num_iterations: upper limit on the iterations; at most A are made.
    key: PRNG key of the starting vector.

  Returns:
    (smallest, largest), float[] each.

  Source: Golub and Van Loan, Matrix Computations, 10.1.
  """
  num_iterations = min(num_iterations, size)
  start = jax.random.normal(key, (size,))
  start = start / jnp.linalg.norm(start)

  def step(carry, index):
    basis, vector, alive = carry
    basis = basis.at[index].set(vector)
    product = matvec(vector)
    diagonal = vector @ product
    rest = product
    for _ in range(2):  # Once is not enough in floating point.
      rest = rest - basis.T @ (basis @ rest)
    length = jnp.linalg.norm(rest)
    scale = jnp.finfo(rest.dtype).eps * 10 * jnp.linalg.norm(product)
    going = alive & (length > scale)
    following = jnp.where(going, rest / jnp.where(going, length, 1.0), 0.0)
    return (basis, following, going), (
      diagonal,
      jnp.where(going, length, 0.0),
      alive,
    )

  basis = jnp.zeros((num_iterations, size), start.dtype)
  _, (diagonal, off_diagonal, alive) = jax.lax.scan(
    step, (basis, start, jnp.array(True)), jnp.arange(num_iterations)
  )
  # Past an invariant subspace, repeat a value from inside the spectrum.
  diagonal = jnp.where(alive, diagonal, diagonal[0])
  if num_iterations == 1:
    return diagonal[0], diagonal[0]

  def eigenvalue(index):
    return jax.scipy.linalg.eigh_tridiagonal(
      diagonal,
      off_diagonal[:-1],
      eigvals_only=True,
      select="i",
      select_range=(index, index),
    )[0]

  return eigenvalue(0), eigenvalue(num_iterations - 1)


def smallest_curvature(
  loss: Callable[[Array], Array],
  logits: Array,
  num_iterations: int = 32,
) -> Array:
  """Smallest eigenvalue of a per-state loss's Hessian in the logits.

  A negative value proves that the loss is not convex there. Hessian-vector
  products make it affordable for vocabularies. The result is an upper bound,
  exact for up to `num_iterations` actions and close in practice beyond that.

  Args:
    loss: float[A] → float[], a loss of one state's logits.
    logits: float[A], where to evaluate it.
    num_iterations: Lanczos iterations.

  Returns:
    float[].
  """
  gradient = jax.grad(loss)
  smallest, _ = lanczos_eigenvalues(
    lambda vector: jax.jvp(gradient, (logits,), (vector,))[1],
    logits.shape[-1],
    num_iterations,
    jax.random.key(0),
  )
  return smallest


def convexity_violation(
  loss: Callable[[Array], Array], start: Array, end: Array, num_points: int = 9
) -> Array:
  """Largest height of a loss above the chord between two points.

      max over t of f((1−t) x + t y) − (1−t) f(x) − t f(y)

  Args:
    loss: float[A] → float[].
    start: float[A], x.
    end: float[A], y.
    num_points: number of values of t, evenly spaced inside (0, 1).

  Returns:
    float[]; never above 0 for a convex function.
  """
  share = jnp.linspace(0.0, 1.0, num_points + 2, dtype=start.dtype)[1:-1]
  on_the_way = jax.vmap(lambda t: loss((1 - t) * start + t * end))(share)
  chord = (1 - share) * loss(start) + share * loss(end)
  return jnp.max(on_the_way - chord)


def directionality(
  gradient: types.Params, position: types.Params, minimiser: types.Params
) -> tuple[Array, Array]:
  """Alignment of a gradient with the direction away from the minimiser.

      ⟨∇L(x), x − x*⟩, and the cosine of the angle between the two

  For a convex loss the product is at least L(x) − L(x*) ≥ 0.

  Args:
    gradient: pytree, ∇L at the position; in logits or in parameters.
    position: pytree of the same shapes, x. Centre logits first, because their
      offset is arbitrary.
    minimiser: pytree of the same shapes, x*.

  Returns:
    (inner product, cosine), float[] each; the cosine is 0 if a vector vanishes.
  """
  path = optax.tree.sub(position, minimiser)
  product = optax.tree.vdot(gradient, path)
  lengths = optax.tree.norm(gradient) * optax.tree.norm(path)
  apart = lengths > 0
  return product, jnp.where(
    apart, product / jnp.where(apart, lengths, 1.0), 0.0
  )


def on_plateau(
  log_prob: Array,
  old_log_prob: Array,
  advantage: Array,
  clip_low: float,
  clip_high: float,
) -> Array:
  """Whether PPO's clipping removes the gradient of a step.

  Args:
    log_prob: float[...], log π(a).
    old_log_prob: float[...], log π_old(a).
    advantage: float[...].
    clip_low: ε_low; the range starts at 1 − ε_low.
    clip_high: ε_high; the range ends at 1 + ε_high.

  Returns:
    bool[...], A > 0 and r > 1 + ε_high, or A < 0 and r < 1 − ε_low.
  """
  ratio = jnp.exp(log_prob - old_log_prob)
  return ((advantage > 0) & (ratio > 1.0 + clip_high)) | (
    (advantage < 0) & (ratio < 1.0 - clip_low)
  )


def ratio_quantiles(
  log_ratio: Array, where: Array | None = None, axis_name: str | None = None
) -> dict[str, Array]:
  """Quantiles of probability ratios.

  Args:
    log_ratio: float[...], log π(a) − log π_old(a).
    where: bool[...], entries that count; None means all.
    axis_name: name of the mapped device axis; None for one device.

  Returns:
    {"ratio_q05", "ratio_q50", "ratio_q95"}: float[] each; 1 if none counts.
  """
  ratio = jnp.exp(log_ratio)
  counts = jnp.bool_(True)
  if where is not None:
    ratio = jnp.where(where, ratio, jnp.nan)
    counts = jnp.any(where)
  if axis_name is not None:
    ratio, counts = numerics.all_gather((ratio, counts), axis_name)
  found = {
    f"ratio_q{percent:02}": jnp.nanquantile(ratio, percent / 100)
    for percent in (5, 50, 95)
  }
  return {k: jnp.where(jnp.any(counts), v, 1.0) for k, v in found.items()}


def effective_sample_size(
  log_ratio: Array, where: Array | None = None, axis_name: str | None = None
) -> Array:
  """Effective sample size of importance weights as a share, (Σ w)² / (n Σ w²).

  Args:
    log_ratio: float[...], log π(a) − log π_old(a).
    where: bool[...], entries that count; None means all.
    axis_name: name of the mapped device axis; None for one device.

  Returns:
    float[], in (0, 1]; 1 if all weights are equal, or none counts.
  """
  counted = (
    log_ratio if where is None else jnp.where(where, log_ratio, -jnp.inf)
  )
  largest = jax.lax.stop_gradient(jnp.max(counted))
  if axis_name is not None:
    largest = numerics.pmax(largest, axis_name)
  # Divide by the largest weight to avoid overflow; the share does not change.
  any_counts = jnp.isfinite(largest)
  weight = jnp.exp(log_ratio - jnp.where(any_counts, largest, 0.0))
  means = numerics.average(weight, where), numerics.average(weight**2, where)
  if axis_name is not None:
    means = numerics.psum(means, axis_name)
  square = jnp.where(any_counts, means[1].mean, 1.0)
  return jnp.where(any_counts, means[0].mean ** 2 / square, 1.0)


def gradient_signal_to_noise(gradients: types.Params) -> Array:
  """Ratio of ‖mean gradient‖² to the mean squared distance from the mean.

  Args:
    gradients: pytree [M, ...], gradients of M minibatches.

  Returns:
    float[]; 0 if all gradients are equal, because the noise is then 0.
  """
  mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), gradients)
  apart = jax.tree.map(lambda g, m: g - m[None], gradients, mean)
  num_minibatches = jax.tree.leaves(gradients)[0].shape[0]
  noise = optax.tree.norm(apart, squared=True) / num_minibatches
  signal = optax.tree.norm(mean, squared=True)
  return jnp.where(noise > 0, signal / jnp.where(noise > 0, noise, 1.0), 0.0)


def target_residual(
  target_logits: Array, logits: Array, where: Array | None = None
) -> Array:
  """Distance of a policy from its optimal target, KL(π* ‖ π).

  Args:
    target_logits: float[..., A], log π* up to an offset.
    logits: float[..., A], policy logits.
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...], nats.
  """
  return regularizers.kl_divergence(target_logits, logits, where)


def clipped(
  log_prob: Array, old_log_prob: Array, clip_low: float, clip_high: float
) -> Array:
  """Whether the probability ratio lies outside PPO's clip range.

  Args:
    log_prob: float[...], log π(a).
    old_log_prob: float[...], log π_old(a).
    clip_low: ε_low; the range starts at 1 − ε_low.
    clip_high: ε_high; the range ends at 1 + ε_high.

  Returns:
    bool[...].
  """
  log_prob, old_log_prob = numerics.float_arrays(log_prob, old_log_prob)
  chex.assert_equal_shape([log_prob, old_log_prob])
  ratio = jnp.exp(log_prob - old_log_prob)
  return (ratio < 1.0 - clip_low) | (ratio > 1.0 + clip_high)


def explained_variance(
  values: Array,
  returns: Array,
  axis_name: str | None = None,
  where: Array | None = None,
) -> Array:
  """Share of the returns' variance that values explain, 1 − Var(G−V) / Var G.

  Args:
    values: float[...], predictions.
    returns: float[...], observed returns.
    axis_name: name of the mapped device axis; None for one device.
    where: bool[...], entries that count; None means all.

  Returns:
    float[]: 1 for perfect values, 0 for constant values or constant returns.
  """
  chex.assert_equal_shape([values, returns])
  _, error_variance = moments(returns - values, axis_name, where)
  mean, variance = moments(returns, axis_name, where)
  # Treat variance at the level of rounding error as 0.
  varies = variance > 1e-10 * (error_variance + jnp.square(mean))
  safe = jnp.where(varies, variance, 1.0)
  return jnp.where(varies, 1.0 - error_variance / safe, 0.0)


def moments(
  values: Array, axis_name: str | None = None, where: Array | None = None
) -> tuple[Array, Array]:
  """Mean and population variance over all axes and devices.

  Args:
    values: float[...].
    axis_name: name of the mapped device axis; None for one device.
    where: bool[...], entries that count; None means all.

  Returns:
    (mean, variance), float[] each.
  """

  def mean_of(x):
    total = numerics.average(x, where)
    if axis_name is not None:
      total = numerics.psum(total, axis_name)
    return total.mean

  mean = mean_of(values)
  return mean, mean_of(jnp.square(values - mean))
