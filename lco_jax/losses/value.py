"""Value losses, per step."""

import chex
import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import arguments, numerics


@arguments.explain_errors
def squared_value_loss(
  values: Array, targets: Array, where: Array | None = None
) -> Array:
  """Half the squared error, ½ (V − G)².

  Args:
    values: float[...], predictions, in units of return.
    targets: float[...], returns; held constant.
    where: bool[...], steps that count; None means all.

  Returns:
    float[...]; 0 where masked out.
  """
  values, targets = numerics.float_arrays(values, targets)
  chex.assert_equal_shape([values, targets])
  values, targets = numerics.zero_outside(where, values, targets)
  return 0.5 * jnp.square(values - jax.lax.stop_gradient(targets))


@arguments.explain_errors
def clipped_value_loss(
  values: Array,
  old_values: Array,
  targets: Array,
  clip: float,
  where: Array | None = None,
) -> Array:
  """Maximum of the plain and the clipped squared error.

    ½ max[(V − G)², (V_old + clip(V − V_old, −ε, ε) − G)²]

  Args:
    values: float[...], predictions, in units of return.
    old_values: float[...], predictions at collection; held constant.
    targets: float[...], returns; held constant.
    clip: ε > 0, in units of return.
    where: bool[...], steps that count; None means all.

  Returns:
    float[...]; 0 where masked out.

  Source: Engstrom et al. 2020, arXiv:2005.12729, eq. 3.
  """
  values, old_values, targets = numerics.float_arrays(
    values, old_values, targets
  )
  chex.assert_equal_shape([values, old_values, targets])
  values, old_values, targets = numerics.zero_outside(
    where, values, old_values, targets
  )
  old_values = jax.lax.stop_gradient(old_values)
  near_old = old_values + jnp.clip(values - old_values, -clip, clip)
  return jnp.maximum(
    squared_value_loss(values, targets), squared_value_loss(near_old, targets)
  )
