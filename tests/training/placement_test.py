"""Seeds and streams on devices: who holds what, and what comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import numerics
from lco_jax.training import placement, transfers


def _compiled(function, mesh, array, out_specs=placement.SEEDS):
  return placement.compile(function, mesh, (placement.SEEDS,), out_specs, array)


def test_seeds_are_divided_if_they_can_be():
  mesh = placement.make_mesh(16, 3, jax.devices())
  assert dict(mesh.shape) == {"seeds": 8, numerics.DATA_AXIS: 1}
  seeds = transfers.to_devices(np.arange(16), mesh, placement.SEEDS)
  np.testing.assert_array_equal(seeds.addressable_shards[1].data, [2, 3])
  doubled = _compiled(lambda own: own * 2, mesh, seeds)(seeds)
  np.testing.assert_array_equal(transfers.to_host(doubled), 2 * np.arange(16))


def test_streams_are_divided_otherwise():
  """All devices hold all seeds; the axis spans them."""
  mesh = placement.make_mesh(2, 16, jax.devices())
  assert dict(mesh.shape) == {"seeds": 1, numerics.DATA_AXIS: 8}
  seeds = transfers.to_devices(np.array([5, 7]), mesh, placement.SEEDS)
  total = _compiled(
    lambda own: jax.lax.psum(own, numerics.DATA_AXIS), mesh, seeds
  )
  np.testing.assert_array_equal(transfers.to_host(total(seeds)), [40, 56])


def test_the_axis_is_bound_where_seeds_are_divided():
  mesh = placement.make_mesh(8, 16, jax.devices())
  seeds = transfers.to_devices(np.arange(8), mesh, placement.SEEDS)
  size = _compiled(
    lambda own: own * 0 + jax.lax.axis_size(numerics.DATA_AXIS), mesh, seeds
  )
  np.testing.assert_array_equal(size(seeds), np.ones(8))


def test_the_axis_can_be_bound_without_a_mesh():
  size = placement.bind_device_axis(
    lambda x: (x + jax.lax.psum(1, numerics.DATA_AXIS), x[0])
  )
  grown, first = size(jnp.arange(3))
  np.testing.assert_array_equal(grown, [1, 2, 3])
  assert first.shape == () and first == 0


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
  mesh = placement.make_mesh(num_seeds, 24, jax.devices())
  seeds = transfers.to_devices(np.arange(num_seeds), mesh, placement.SEEDS)
  told = _compiled(
    lambda own: placement.gather_seeds(jnp.stack([own, -own]), axis=1),
    mesh,
    seeds,
    placement.EVERYWHERE,
  )(seeds)
  expected = np.stack([np.arange(num_seeds), -np.arange(num_seeds)])
  assert told.is_fully_replicated and len(told.addressable_shards) == 8
  for shard in told.addressable_shards:
    np.testing.assert_array_equal(shard.data, expected)
  np.testing.assert_array_equal(transfers.to_host(told), expected)


def test_one_of_the_two_must_divide():
  with pytest.raises(ValueError, match="num_prompts 12 does not divide over 8"):
    placement.make_mesh(1, 12, jax.devices())
