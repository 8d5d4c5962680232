"""What prompts earn beside each other, as a part of advantages in groups.

Those are 0 where all samples of a prompt earn the same. A little of this beside
them pulls certain failures down, so that something else is tried there. It is
for a while: when something else is found, groups learn it best alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lco_jax import diagnostics, numerics

Array = jax.Array

# Rewards that are all but equal are not magnified.
_LEAST_VARIANCE = 1e-3


class Between(NamedTuple):
  """How much prompts count beside each other, and when.

  Attributes:
    coefficient: weight of `standardized`, ≥ 0.
    begin: completed updates from which it counts, ≥ 0.
    end: completed updates from which it does no more; None for never.
  """

  coefficient: float = 0.0
  begin: int = 0
  end: int | None = None

  def weight(self, completed: Array) -> Array:
    """The coefficient, or 0, after so many updates int32[]: float32[]."""
    counts = completed >= self.begin
    if self.end is not None:
      counts &= completed < self.end
    return jnp.where(counts, self.coefficient, 0.0)

  def check(self) -> None:
    """Checks the numbers.

    Raises:
      ValueError: if one is out of range.
    """
    if not 0 <= self.coefficient < float("inf"):
      raise ValueError(
        f"between_coefficient must be ≥ 0 and finite, got {self.coefficient}"
      )
    if self.begin < 0:
      raise ValueError(f"between_begin must be ≥ 0, got {self.begin}")
    if self.end is not None and self.end <= self.begin:
      raise ValueError(
        f"between_end must be above between_begin {self.begin}, got {self.end}"
      )


ALONE = Between()


def standardized(reward: Array) -> Array:
  """What a prompt's samples earn on average, standardised over the batch.

  Args:
    reward: float[G, N], this device's share.

  Returns:
    float[1, N]: prompts' means, less the mean of all devices' rewards, over
    their standard deviation.

  Source: derived; BUILD_NOTES.md has what it does.
  """
  mean, variance = diagnostics.moments(reward, numerics.DEVICE_AXIS)
  own = jnp.mean(reward, axis=0, keepdims=True)
  return (own - mean) * jax.lax.rsqrt(variance + _LEAST_VARIANCE)
