"""What prompts earn beside each other, and when it counts."""

import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax.language import between
from lco_jax.training import placement


def test_what_prompts_earn_beside_each_other():
  """Samples that all fail are pulled down where others succeed."""
  reward = jnp.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
  found = placement.bind_device_axis(between.standardized)(reward)
  expected = np.array([[0.0, -0.5, 0.5]]) / np.sqrt(0.25 + 1e-3)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  equal = jnp.full((4, 3), 0.7)
  found = placement.bind_device_axis(between.standardized)(equal)
  np.testing.assert_allclose(found, 0.0, atol=1e-5)


def test_prompts_count_beside_each_other_for_a_while():
  some = between.Between(0.1, begin=2, end=4)
  found = [float(some.weight(jnp.int32(n))) for n in range(6)]
  np.testing.assert_allclose(found, [0, 0, 0.1, 0.1, 0, 0])
  assert float(between.Between(0.1).weight(jnp.int32(10**6))) > 0


@pytest.mark.parametrize(
  ("values", "name"),
  [
    ((-1.0,), "between_coefficient"),
    ((float("nan"),), "between_coefficient"),
    ((0.1, -1), "between_begin"),
    ((0.1, 3, 3), "between_end"),
  ],
)
def test_numbers_that_cannot_be(values, name):
  with pytest.raises(ValueError, match=name):
    between.Between(*values).check()
