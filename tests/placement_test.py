"""Seeds and streams on devices: who holds what, and what comes back."""

import jax
import numpy as np
import pytest

from lco_jax import placement


def test_seeds_are_divided_if_they_can_be():
  where = placement.place(16, 3, jax.devices())
  assert where.divides_seeds and where.num_shards == 1
  dealt = where.deal(np.arange(16))
  np.testing.assert_array_equal(dealt[1], [2, 3])
  doubled = where.map(lambda seeds: seeds * 2)(dealt)
  np.testing.assert_array_equal(
    where.collect_seeds(doubled, axis=0), 2 * np.arange(16)
  )


def test_streams_are_divided_otherwise():
  """All devices hold all seeds; the axis spans them."""
  where = placement.place(2, 16, jax.devices())
  assert not where.divides_seeds and where.num_shards == 8
  total = where.map(lambda seeds: jax.lax.psum(seeds, placement.DEVICE_AXIS))
  np.testing.assert_array_equal(
    where.collect_seeds(total(where.deal(np.array([5, 7]))), axis=0), [40, 56]
  )


def test_the_axis_is_bound_where_seeds_are_divided():
  where = placement.place(8, 16, jax.devices())
  size = where.map(
    lambda seeds: seeds * 0 + jax.lax.psum(1, placement.DEVICE_AXIS)
  )
  dealt = where.deal(np.arange(8))
  np.testing.assert_array_equal(np.asarray(size(dealt)), np.ones((8, 1)))


@pytest.mark.parametrize("num_seeds", [2, 16])
def test_what_is_dealt_can_be_collected(num_seeds):
  where = placement.place(num_seeds, 24, jax.devices())
  own = np.random.default_rng(0).normal(size=(num_seeds, 24, 3))
  common = own[:, 0]
  np.testing.assert_array_equal(
    where.collect_streams(where.deal_streams(own)), own
  )
  np.testing.assert_array_equal(
    where.collect_seeds(where.deal(common), axis=0), common
  )


def test_one_of_the_two_must_divide():
  with pytest.raises(ValueError, match="num_envs 12 does not divide over 8"):
    placement.place(1, 12, jax.devices())
