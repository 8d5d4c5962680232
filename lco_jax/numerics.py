"""Arithmetic shared by all losses: precision, masks, means, log cosh."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

# Name of the mapped axis that divides the data over devices.
DATA_AXIS = "data"


class Average(NamedTuple):
  """A mean stored as sum and count, divided once at the end.

  Sums and counts of minibatches, accumulation steps and devices add up to the
  exact overall average; a mean of means would not.

  Attributes:
    total: float[...], sum of the counted entries.
    count: float[...], number of counted entries.
  """

  total: Array
  count: Array

  @property
  def mean(self) -> Array:
    """float[...], total / count; 0 where nothing was counted."""
    return self.total / jnp.where(self.count > 0, self.count, 1.0)


def average(values: Array, where: Array | None = None) -> Average:
  """Sums and counts unmasked `values` over all axes.

  Args:
    values: float[...].
    where: bool[...] of the same shape, the entries that count; None means all.

  Returns:
    Average of scalars.
  """
  if where is None:
    return Average(jnp.sum(values), jnp.asarray(values.size, values.dtype))
  chex.assert_equal_shape([values, where])
  chex.assert_type(where, bool)
  counted = jnp.where(where, values, 0.0)
  return Average(jnp.sum(counted), jnp.sum(where, dtype=values.dtype))


# Over an axis of one device the functions below compute nothing: where other
# mesh axes divide the work, XLA cannot partition such a sum.


def psum(tree: Any, axis: str) -> Any:
  """`jax.lax.psum`."""
  return tree if jax.lax.axis_size(axis) == 1 else jax.lax.psum(tree, axis)


def pmax(tree: Any, axis: str) -> Any:
  """`jax.lax.pmax`."""
  return tree if jax.lax.axis_size(axis) == 1 else jax.lax.pmax(tree, axis)


def pmin(tree: Any, axis: str) -> Any:
  """`jax.lax.pmin`."""
  return tree if jax.lax.axis_size(axis) == 1 else jax.lax.pmin(tree, axis)


def axis_index(axis: str) -> Array | int:
  """`jax.lax.axis_index`."""
  return 0 if jax.lax.axis_size(axis) == 1 else jax.lax.axis_index(axis)


def all_gather(tree: Any, axis: str) -> Any:
  """`jax.lax.all_gather`, along a new first axis."""
  if jax.lax.axis_size(axis) == 1:
    return jax.tree.map(lambda leaf: leaf[None], tree)
  return jax.lax.all_gather(tree, axis)


def across_devices(averages: dict[str, Average]) -> dict[str, Array]:
  """Adds sums and counts over devices and divides them once."""
  totals = psum(averages, DATA_AXIS)
  return {name: average.mean for name, average in totals.items()}


def float_arrays(*arrays: Array) -> list[Array]:
  """Widens floating arrays to float32 and checks for a common dtype.

  Losses use float32 for every network dtype except float64, which they keep.

  Raises:
    AssertionError: if an array is not floating point, or float64 is mixed with
      a narrower dtype.
  """
  arrays = [jnp.asarray(array) for array in arrays]
  chex.assert_type(arrays, float)
  arrays = [
    array.astype(jnp.float32) if array.dtype.itemsize < 4 else array
    for array in arrays
  ]
  dtypes = sorted({str(array.dtype) for array in arrays})
  if len(dtypes) > 1:
    raise AssertionError(f"arrays must share one dtype, got {dtypes}")
  return arrays


def zero_outside(where: Array | None, *arrays: Array) -> list[Array]:
  """Replaces masked entries by 0 before any arithmetic.

  Masking the result is not enough: the gradient of a masked NaN is NaN · 0.

  Args:
    where: bool[...], entries to keep; None keeps all.
    *arrays: float[...] of the same shape as `where`.

  Returns:
    One array for each of `arrays`.

  Raises:
    AssertionError: if a shape differs or `where` is not boolean.
  """
  if where is None:
    return list(arrays)
  where = jnp.asarray(where)
  chex.assert_type(where, bool)
  chex.assert_equal_shape([where, *arrays])
  return [jnp.where(where, array, 0.0) for array in arrays]


def per_step(where: Array | None, *arrays: Array) -> list[Array]:
  """Prepares per-step inputs of a loss: common dtype, shape and mask.

  Args:
    where: bool[...], steps that count; None means all.
    *arrays: float[...] of one shape.

  Returns:
    The arrays, float32 or wider, 0 where masked out.

  Raises:
    AssertionError: if shapes or dtypes differ.
  """
  arrays = float_arrays(*arrays)
  chex.assert_equal_shape(arrays)
  return zero_outside(where, *arrays)


def log_softmax(logits: Array, where: Array | None = None) -> Array:
  """log π over the legal actions, −inf elsewhere.

  Args:
    logits: float[..., A], in nats. Masked entries may have any value.
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[..., A]. A row without any legal action is all −inf. The gradient is
    finite in every case and zero at masked entries.
  """
  if where is None:
    return jax.nn.log_softmax(logits)
  where = jnp.asarray(where)
  chex.assert_type(where, bool)
  chex.assert_equal_shape([logits, where])
  peak = jnp.max(logits, axis=-1, keepdims=True, where=where, initial=-jnp.inf)
  peak = jax.lax.stop_gradient(jnp.where(jnp.isfinite(peak), peak, 0.0))
  shifted = jnp.where(where, logits - peak, 0.0)
  partition = jnp.sum(
    jnp.where(where, jnp.exp(shifted), 0.0), -1, keepdims=True
  )
  # Avoid log 0 in a row without legal actions.
  log_partition = jnp.log(jnp.where(partition > 0, partition, 1.0))
  return jnp.where(where, shifted - log_partition, -jnp.inf)


def select_action(values: Array, actions: Array) -> Array:
  """values[..., a] for one action per row.

  Uses a masked sum, because the gradient of a gather is a slow scatter.

  Args:
    values: float[..., A].
    actions: int[...], in [0, A).

  Returns:
    float[...]; NaN where an action is out of range.

  Raises:
    AssertionError: if `actions` is not integer or its shape is not [...].
  """
  values, actions = jnp.asarray(values), jnp.asarray(actions)
  chex.assert_type(actions, int)
  chex.assert_shape(actions, values.shape[:-1])
  num_actions = values.shape[-1]
  taken = jax.nn.one_hot(actions, num_actions, dtype=bool)
  selected = jnp.sum(jnp.where(taken, values, 0.0), axis=-1)
  in_range = (actions >= 0) & (actions < num_actions)
  return jnp.where(in_range, selected, jnp.nan)


def action_log_prob(logits: Array, actions: Array) -> Array:
  """log π(a) of one action per row.

  Args:
    logits: float[..., A], in nats, any additive offset.
    actions: int[...], in [0, A).

  Returns:
    float[...], nats; NaN where an action is out of range.

  Raises:
    AssertionError: if `actions` is not integer or its shape is not [...].
  """
  (logits,) = float_arrays(logits)
  return select_action(jax.nn.log_softmax(logits), actions)


@jax.custom_jvp
def log_cosh(x: Array) -> Array:
  """log cosh x without overflow; its derivative is exactly tanh x.

  log cosh x = log(1 + 2 sinh²(x/2)) keeps the digits of a small x, and
  |x| + log(1 + e^(−2|x|)) − log 2 does not overflow for a large one.

  Args:
    x: float[...].

  Returns:
    float[...], ≥ 0. The second derivative is sech² x, at 0 too.
  """
  size = jnp.abs(x)
  near = jnp.log1p(2.0 * jnp.sinh(jnp.minimum(size, 1.0) / 2.0) ** 2)
  far = size + jnp.log1p(jnp.exp(-2.0 * size)) - jnp.log(2.0).astype(x.dtype)
  return jnp.where(size < 1.0, near, far)


@log_cosh.defjvp
def _log_cosh_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  return log_cosh(x), jnp.tanh(x) * dx
