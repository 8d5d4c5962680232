import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import algorithms, losses, numerics, targets
from lco_jax.control import data
from lco_jax.training import loss_geometry


def _batch(steps=6, streams=4, num_actions=3, seed=0):
  rng = np.random.default_rng(seed)
  array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  shape = (steps, streams)
  old_logits = array(*shape, num_actions)
  action = jnp.asarray(rng.integers(num_actions, size=shape))
  advantage = array(*shape)
  dense = jnp.where(
    jax.nn.one_hot(action, num_actions, dtype=bool), advantage[..., None], 0.0
  )
  return data.Batch(
    observation=array(*shape, 2),
    action=action,
    advantage=advantage,
    old_logits=old_logits,
    old_log_prob=numerics.action_log_prob(old_logits, action),
    target_logits=targets.optimal_logits(old_logits, dense, 1.0),
    beta=jnp.ones_like(advantage),
    old_value=array(*shape),
    value_target=array(*shape),
  ), old_logits + 0.5 * array(*shape, num_actions)


def _look(policy_loss, batch, logits, where=None, num_devices=1):
  """`of_loss` with the streams divided over devices."""

  def dealt(x):
    return np.stack(np.split(x, num_devices, axis=1))

  arguments = jax.tree.map(dealt, (logits, batch, where))
  found = jax.jit(
    jax.vmap(
      lambda z, b, w: loss_geometry.measure_loss(policy_loss, z, b, w),
      axis_name="data",
    )
  )(*arguments)
  return {name: np.asarray(values) for name, values in found.items()}


@pytest.mark.parametrize("algorithm", ["lco_lch", "lco_kld", "ppo"])
def test_against_a_loop_over_states(algorithm):
  """Dense Hessians and gradients of each state; devices do not matter."""
  policy_loss = algorithms.make_policy_loss(algorithm)
  batch, logits = _batch()
  expected = {"curvature": [], "cosine": [], "against": [], "stalled": []}

  def loss(z, own):
    return policy_loss(z, own)[0]

  each, hessians = jax.jit(
    lambda *states: [
      jax.vmap(jax.vmap(derivative(loss)))(*states)
      for derivative in (jax.grad, jax.hessian)
    ]
  )(logits, batch)
  changes = np.asarray(logits - batch.target_logits, np.float64)
  each, hessians = np.asarray(each, np.float64), np.asarray(hessians)
  for index in np.ndindex(6, 4):
    gradient, to_go = each[index], changes[index]
    to_go -= to_go.mean()
    norms = np.linalg.norm(gradient) * np.linalg.norm(to_go)
    expected["curvature"].append(np.linalg.eigvalsh(hessians[index])[0])
    expected["cosine"].append(gradient @ to_go / norms if norms else 0.0)
    expected["against"].append(gradient @ to_go < 0)
    expected["stalled"].append(norms == 0)
  ratio = np.exp(
    numerics.action_log_prob(logits, batch.action) - batch.old_log_prob
  )
  requested = batch.old_logits, batch.target_logits
  for num_devices in (1, 2):
    found = _look(policy_loss, batch, logits, num_devices=num_devices)
    for name, value in (
      ("curvature_min", np.min(expected["curvature"])),
      ("curvature_mean", np.mean(expected["curvature"])),
      ("direction_cosine", np.mean(expected["cosine"])),
      ("direction_against", np.mean(expected["against"])),
      ("stalled", np.mean(expected["stalled"])),
      ("effective_samples", ratio.sum() ** 2 / (24 * (ratio**2).sum())),
      ("kl_requested", losses.kl_divergence(*requested).mean()),
      ("ratio_q05", np.quantile(ratio, 0.05)),
      ("ratio_q95", np.quantile(ratio, 0.95)),
    ):
      np.testing.assert_allclose(found[name], value, atol=2e-6, err_msg=name)
  if algorithm == "ppo":
    assert found["curvature_min"][0] < -1e-3 and found["stalled"][0] > 0
    assert found["convexity_violation"][0] > 1e-3
  else:
    assert found["curvature_min"][0] > -1e-6 and found["stalled"][0] == 0
    assert found["direction_against"][0] == 0
    assert found["convexity_violation"][0] < 1e-6


def test_what_does_not_count_changes_nothing():
  batch, logits = _batch()
  where = jnp.asarray(np.random.default_rng(1).random((6, 4)) < 0.6)
  policy_loss = algorithms.make_policy_loss("ppo")
  hidden = dataclasses.replace(
    batch,
    advantage=jnp.where(where, batch.advantage, 99.0),
    old_log_prob=jnp.where(where, batch.old_log_prob, -1.0),
  )
  first = _look(policy_loss, batch, logits, where)
  second = _look(policy_loss, hidden, logits, where)
  for name, values in first.items():
    np.testing.assert_array_equal(values, second[name])
  nothing = _look(policy_loss, batch, logits, jnp.zeros_like(where))
  assert all(np.isfinite(values).all() for values in nothing.values())


def test_more_states_than_are_looked_at():
  """Those that are looked at stand for all: every stream, every time."""
  batch, logits = _batch(steps=64, streams=16)
  policy_loss = algorithms.make_policy_loss("ppo")
  found = _look(policy_loss, batch, logits)

  def loss(z, own):
    return policy_loss(z, own)[0]

  every = jax.jit(jax.vmap(jax.vmap(jax.hessian(loss))))(logits, batch)
  smallest = np.linalg.eigvalsh(every)[..., 0]
  assert abs(found["curvature_mean"] - smallest.mean()) < 4 * (
    smallest.std() / np.sqrt(128)
  )


@pytest.mark.parametrize(
  ("steps", "parts", "by_steps"), [(16, 8, True), (6, 8, False), (1, 4, False)]
)
def test_noise_of_gradients_against_a_loop(steps, parts, by_steps):
  """Equal parts of all rows; on two devices the same, if steps divide."""
  batch, _ = _batch(steps)
  params = {"policy": jnp.array([[0.3, -0.2, 0.1], [0.0, 0.5, -0.4]])}
  objective = lambda own, b, before=None: (
    {
      "policy": numerics.average(
        losses.lco_kld_loss(b.observation @ own["policy"], b.target_logits)
      )
    },
    {},
  )
  rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
  size = len(rows.action) // parts

  @jax.jit
  def gradient(part):
    loss = lambda p: objective({"policy": p}, part)[0]["policy"].mean
    return jax.grad(loss)(params["policy"])

  each = np.array(
    [
      gradient(jax.tree.map(lambda x, m=m: x[m * size : (m + 1) * size], rows))
      for m in range(parts)
    ]
  )
  before = {"policy": params["policy"] - 0.3 * jnp.cos(params["policy"])}
  loss = lambda p: objective({"policy": p}, rows)[0]["policy"].mean
  gone = np.asarray(params["policy"] - before["policy"]).ravel()
  downhill = -np.asarray(jax.jit(jax.grad(loss))(before["policy"])).ravel()
  cosine = downhill @ gone / np.linalg.norm(downhill) / np.linalg.norm(gone)
  noise = ((each - each.mean(0)) ** 2).sum((1, 2)).mean()
  expected = (each.mean(0) ** 2).sum() / noise
  for num_devices in (1, 2) if by_steps else (1,):
    dealt = jax.tree.map(
      lambda x, n=num_devices: np.stack(np.split(x, n, axis=1)), batch
    )
    found = jax.jit(
      jax.vmap(
        lambda b: loss_geometry.measure_gradients(objective, before, params, b),
        axis_name="data",
      )
    )(dealt)
    np.testing.assert_allclose(
      found["gradient_signal_to_noise"], expected, rtol=1e-4
    )
    np.testing.assert_allclose(found["direction_parameters"], cosine, rtol=1e-4)
