"""Seeds and streams on devices: who holds what, and what comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import numerics
from lco_jax.training import placement


def test_seeds_are_divided_if_they_can_be():
  where = placement.place(16, 3, jax.devices())
  assert where.divides_seeds and where.num_shards == 1
  dealt = where.put(where.deal(np.arange(16)))
  np.testing.assert_array_equal(dealt[1], [2, 3])
  doubled = where.compile(lambda seeds: seeds * 2, dealt)(dealt)
  np.testing.assert_array_equal(where.collect_seeds(doubled), 2 * np.arange(16))


def test_streams_are_divided_otherwise():
  """All devices hold all seeds; the axis spans them."""
  where = placement.place(2, 16, jax.devices())
  assert not where.divides_seeds and where.num_shards == 8
  dealt = where.put(where.deal(np.array([5, 7])))
  total = where.compile(
    lambda seeds: jax.lax.psum(seeds, numerics.DEVICE_AXIS), dealt
  )
  np.testing.assert_array_equal(where.collect_seeds(total(dealt)), [40, 56])


def test_the_axis_is_bound_where_seeds_are_divided():
  where = placement.place(8, 16, jax.devices())
  dealt = where.put(where.deal(np.arange(8)))
  size = where.compile(
    lambda seeds: seeds * 0 + jax.lax.psum(1, numerics.DEVICE_AXIS), dealt
  )
  np.testing.assert_array_equal(size(dealt), np.ones((8, 1)))


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_each_seed_has_its_own(num_seeds):
  """Also keys, as a state has them, and results that are none of them."""
  seeds = jnp.arange(3, 3 + num_seeds)

  def draw(tree, seed):
    drawn = jax.random.randint(tree["key"], (4,), 0, 100)
    return {"drawn": seed * drawn, "one": 1}

  tree = {"key": jax.vmap(jax.random.key)(seeds)}
  found = placement.each_seed(draw)(tree, seeds)
  for i, seed in enumerate(seeds):
    expected = draw({"key": jax.random.key(seed)}, seed)["drawn"]
    np.testing.assert_array_equal(found["drawn"][i], expected)
  np.testing.assert_array_equal(found["one"], np.ones(num_seeds))


@pytest.mark.parametrize("num_seeds", [2, 16])
def test_all_devices_are_told_what_each_seed_came_to(num_seeds):
  where = placement.place(num_seeds, 24, jax.devices())
  dealt = where.put(where.deal(np.arange(num_seeds)))
  told = where.compile(
    lambda seeds: where.all_seeds(jnp.stack([seeds, -seeds]), axis=1), dealt
  )(dealt)
  expected = np.stack([np.arange(num_seeds), -np.arange(num_seeds)])
  np.testing.assert_array_equal(told, np.broadcast_to(expected, told.shape))
  np.testing.assert_array_equal(where.common(told), expected)


@pytest.mark.parametrize("num_seeds", [2, 16])
def test_what_is_dealt_can_be_collected(num_seeds):
  where = placement.place(num_seeds, 24, jax.devices())
  own = np.random.default_rng(0).normal(size=(num_seeds, 24, 3))
  own = own.astype(np.float32)
  common = own[:, 0]
  dealt = where.deal_streams(own)
  np.testing.assert_array_equal(where.collect_streams(where.put(dealt)), own)
  np.testing.assert_array_equal(where.local(where.put_local(dealt)), dealt)
  np.testing.assert_array_equal(
    where.collect_seeds(where.put(where.deal(common))), common
  )


def test_one_of_the_two_must_divide():
  with pytest.raises(ValueError, match="num_prompts 12 does not divide over 8"):
    placement.place(1, 12, jax.devices())
