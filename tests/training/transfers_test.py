"""Arrays that move between hosts and devices: the same, and their owner's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lco_jax.runs import starts
from lco_jax.training import placement, program, transfers

# optax mixes ranks.
pytestmark = pytest.mark.third_party


@pytest.mark.parametrize("num_seeds", [2, 16])
@pytest.mark.parametrize(
  "spec",
  [
    placement.EVERYWHERE,
    placement.SEEDS,
    placement.STREAMS,
    placement.ROLLOUTS,
  ],
  ids=str,
)
def test_arrays_come_back_from_devices(num_seeds, spec):
  mesh = placement.make_mesh(num_seeds, 24, jax.devices())
  rng = np.random.default_rng(0)
  whole = rng.normal(size=(num_seeds, 24, 24)).astype(np.float32)
  tree = {"a": whole, "b": (whole > 0, None)}
  placed = transfers.to_devices(tree, mesh, spec)
  put = transfers.put_local(tree, mesh, spec)  # One process: all is local.
  for found in (placed, put):
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    shards = [
      math.prod(dict(mesh.shape).get(name, 1) for name in names or ())
      for names in (
        (own,) if isinstance(own, str) else own for own in (*spec, *[None] * 3)
      )
    ]
    own = found["a"].addressable_shards[0].data.shape
    assert own == tuple(
      size // count for size, count in zip(whole.shape, shards, strict=False)
    )
    for read in (transfers.to_host, transfers.read_local):
      jax.tree.map(np.testing.assert_array_equal, read(found), tree)


@pytest.mark.parametrize("place", ["host", "device"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_what_a_run_begins_with_is_not_consumed(seeds, place):
  """Though the program that makes the state consumes its copy."""
  # Where JAX would take a host's array without a copy, if it did so at all.
  words = np.zeros(2**12 + 64, np.float32)
  begin = (-words.ctypes.data % 256) // 4
  array = words[begin : begin + 2**12].reshape(1, -1)
  array[:] = np.arange(2**12)
  given = np.broadcast_to(array, (seeds, 2**12)) if seeds > 1 else array
  if place == "device":
    given = jnp.asarray(given)
  kept = np.array(given)
  task = _make_training()
  mesh = placement.make_mesh(seeds, 1, jax.devices()[:1])
  start = starts.begin(task, list(range(seeds)), mesh, {"policy": {"w": given}})
  change = jax.jit(
    lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree), donate_argnums=0
  )
  changed = change(start.state.params)["policy"]["w"]
  np.testing.assert_array_equal(changed, 2 * kept)
  np.testing.assert_array_equal(given, kept)


def _make_training():
  """A training that begins with what it is given, and does nothing."""
  return program.Training(
    init_params=lambda key, given: given,
    init_actor=jax.random.key_data,
    collect=None,
    prepare=None,
    update=None,
    assess=None,
    optimizers={"policy": optax.sgd(0.1)},
    headline="none",
    num_streams=1,
    num_steps=1,
    num_epochs=1,
    num_minibatches=1,
  )
