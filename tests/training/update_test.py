import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lco_jax import numerics
from lco_jax.training import placement, update


def _objective(params, batch, before):
  """Two parts: regress onto x and onto y; a metric with its own count."""
  del before
  left = (params["left"]["w"] - batch["x"]) ** 2
  right = (params["right"]["w"] - batch["y"]) ** 2
  parts = {
    "left": numerics.average(left, batch["kept"]),
    "right": numerics.average(right),
  }
  return parts, {"x": numerics.average(batch["x"])}


def _params():
  return {"left": {"w": jnp.float32(0.0)}, "right": {"w": jnp.float32(0.0)}}


def _batch(size=8, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "x": jnp.asarray(rng.normal(size=size), jnp.float32),
    "y": jnp.asarray(rng.normal(size=size), jnp.float32),
    "kept": jnp.asarray(rng.random(size) < 0.6),
  }


def _step(batch, optimizers, num_shards, split=None):
  """One update with the batch dealt to shards of a vmapped axis."""
  step = update.make_update(_objective, optimizers, split=split)
  shards = jax.tree.map(lambda leaf: leaf.reshape(num_shards, -1), batch)
  opt_state = {k: o.init(_params()[k]) for k, o in optimizers.items()}

  def run(shard):
    params, state, metrics = step(_params(), opt_state, shard)
    return params, state, numerics.across_devices(metrics)

  return jax.vmap(run, axis_name=numerics.DATA_AXIS)(shards)


@pytest.mark.parametrize("num_shards", [1, 2, 4, 8])
def test_step_is_that_of_the_whole_batch(num_shards):
  """Sums and counts, not means of means: shards keep different counts."""
  batch = _batch()
  optimizers = {"left": optax.sgd(0.5), "right": optax.sgd(0.5)}
  params, _, metrics = _step(batch, optimizers, num_shards)
  kept = np.asarray(batch["kept"])
  np.testing.assert_allclose(
    params["left"]["w"], np.asarray(batch["x"])[kept].mean(), rtol=1e-5
  )
  np.testing.assert_allclose(params["right"]["w"], batch["y"].mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["x"], batch["x"].mean(), rtol=1e-5)
  np.testing.assert_allclose(
    metrics["left_loss"], (np.asarray(batch["x"])[kept] ** 2).mean(), rtol=1e-5
  )


@pytest.mark.parametrize("num_shards", [1, 2])
def test_microbatches_add_up_to_the_batch(num_shards):
  """Each with a count of its own; before the gradient is clipped."""
  chain = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.5))
  optimizers = {"left": chain, "right": chain}
  batch = _batch(16)
  kept = np.asarray(batch["kept"]).reshape(4, 4).sum(axis=1)
  assert len(set(kept.tolist())) > 1

  def split(shard):
    return jax.tree.map(lambda leaf: leaf.reshape(4, -1), shard)

  whole = _step(batch, optimizers, num_shards)
  parts = _step(batch, optimizers, num_shards, split)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), parts, whole
  )


def test_parts_are_clipped_apart():
  """A large gradient of one part leaves the other's step alone."""
  batch = _batch() | {"y": jnp.full(8, 1e6, jnp.float32)}
  clip = optax.chain(optax.clip_by_global_norm(1e9), optax.sgd(0.5))
  params, _, metrics = _step(batch, {"left": clip, "right": clip}, 1)
  alone, _, _ = _step(_batch(), {"left": clip, "right": clip}, 1)
  np.testing.assert_array_equal(params["left"]["w"], alone["left"]["w"])
  assert (
    metrics["right_gradient_norm"][0] > 1e6 > metrics["left_gradient_norm"][0]
  )


def test_the_policy_stops_where_it_has_gone_too_far():
  """By the KL of all shards, and for good; schedules and value go on."""

  def objective(params, batch, before):
    del before
    errors = {name: (params[name]["w"] - batch) ** 2 for name in params}
    parts = {name: numerics.average(error) for name, error in errors.items()}
    return parts, {update.KL: numerics.average(batch)}

  rate = optax.linear_schedule(0.5, 0.1, 4)
  optimizer = optax.scale_by_schedule(lambda count: -rate(count))
  params = {name: {"w": jnp.float32(0.0)} for name in ("policy", "value")}
  state = {name: optimizer.init(params[name]) for name in params}
  step = update.make_update(objective, dict.fromkeys(params, optimizer))
  # Two shards, four minibatches of one: their KL is .2, .5, .6 and .1.
  shards = jnp.array([[0.1, 0.75, 0.9, 0.0], [0.3, 0.25, 0.3, 0.2]])

  def run(max_kl):
    return jax.vmap(
      lambda shard: update.run_epochs(
        step,
        params,
        state,
        shard[:, None],
        jnp.arange(4)[:, None, None],
        max_kl,
      ),
      axis_name=numerics.DATA_AXIS,
    )(shards)

  new_params, new_state, metrics = run(0.4)
  free_params, free_state, free_metrics = run(None)
  # One step at a rate of ½ to the mean of the first minibatch.
  np.testing.assert_allclose(new_params["policy"]["w"], 0.2, rtol=1e-6)
  np.testing.assert_array_equal(
    new_params["value"]["w"], free_params["value"]["w"]
  )
  jax.tree.map(np.testing.assert_array_equal, new_state, free_state)
  np.testing.assert_array_equal(metrics["early_stopped"].mean[0], [0, 1, 1, 1])
  norms = np.asarray(metrics["policy_update_norm"].mean[0])
  free = np.asarray(free_metrics["policy_update_norm"].mean[0])
  assert (free > 0).all() and norms[0] == free[0] and (norms[1:] == 0).all()


def test_norms_are_reported():
  optimizers = {"left": optax.sgd(0.5), "right": optax.sgd(0.25)}
  params, _, metrics = _step(_batch(), optimizers, 2)
  np.testing.assert_allclose(
    metrics["left_update_norm"], np.abs(params["left"]["w"]), rtol=1e-5
  )
  np.testing.assert_allclose(
    metrics["right_gradient_norm"],
    4 * np.abs(params["right"]["w"]),
    rtol=1e-5,
  )


@pytest.mark.parametrize("size", [1, 2, 5, 128, 1000])
def test_random_permutations_are_permutations(size):
  rows = update.random_permutations(jax.random.key(0), 20, size)
  np.testing.assert_array_equal(
    np.sort(rows, axis=-1), np.broadcast_to(np.arange(size), (20, size))
  )


def test_random_permutations_are_uniform():
  """All 6 orders of 3 things, and no row like the next."""
  rows = np.asarray(update.random_permutations(jax.random.key(1), 6000, 3))
  counts = np.unique(rows @ [9, 3, 1], return_counts=True)[1]
  assert len(counts) == 6
  # Chi-square with 5 degrees of freedom: 20.5 is its 99.9th percentile.
  assert ((counts - 1000) ** 2 / 1000).sum() < 20.5


def test_every_epoch_takes_every_step_once():
  keys = jax.random.split(jax.random.key(0), 3)
  indices = update.minibatch_indices(keys, 8, num_epochs=2, num_minibatches=4)
  assert indices.shape == (8, 2, 3)
  epochs = np.asarray(indices).reshape(2, 8, 3)
  np.testing.assert_array_equal(
    np.sort(epochs, axis=1),
    np.broadcast_to(np.arange(8)[:, None], (2, 8, 3)),
  )
  assert not np.array_equal(epochs[0], epochs[1])


def test_run_epochs_uses_every_minibatch():
  """SGD with rate ½ on a square jumps to each minibatch's mean in turn."""
  optimizers = {"left": optax.sgd(0.5), "right": optax.sgd(0.5)}
  step = update.make_update(_objective, optimizers)
  batch = jax.tree.map(lambda leaf: leaf.reshape(4, 2), _batch())
  batch["kept"] = jnp.ones((4, 2), bool)
  indices = jnp.array([[[0, 1], [1, 0]], [[2, 3], [3, 2]]])
  opt_state = {k: o.init(_params()[k]) for k, o in optimizers.items()}
  params, _, metrics = jax.vmap(
    lambda b: update.run_epochs(step, _params(), opt_state, b, indices),
    axis_name=numerics.DATA_AXIS,
  )(jax.tree.map(lambda leaf: leaf[None], batch))
  np.testing.assert_allclose(
    params["left"]["w"][0], batch["x"][2:].mean(), rtol=1e-5
  )
  np.testing.assert_allclose(
    metrics["x"].mean[0],
    [batch["x"][:2].mean(), batch["x"][2:].mean()],
    rtol=1e-5,
  )


def test_objectives_are_given_the_parameters_before_the_epochs():
  """In every minibatch; a single step takes its own for them."""

  def objective(params, batch, before):
    moved = params["policy"] - before["policy"]
    loss = numerics.average(params["policy"] * batch)
    return {"policy": loss}, {"moved": numerics.average(moved)}

  step = update.make_update(objective, {"policy": optax.sgd(1.0)})
  params, state = (
    {"policy": jnp.float32(3.0)},
    {"policy": optax.sgd(1.0).init(0)},
  )
  batch, indices = jnp.ones((3, 1)), jnp.arange(3)[:, None, None]

  @placement.bind_device_axis
  def run(params, state, batch):
    _, _, metrics = update.run_epochs(step, params, state, batch, indices)
    _, _, single = step(params, state, batch)
    return metrics["moved"].mean, single["moved"].mean

  moved, single = run(params, state, batch)
  np.testing.assert_array_equal(moved, [0.0, -1.0, -2.0])
  assert single == 0
