"""Running moments of observations and returns, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import algorithms, environments, networks
from lco_jax.control import evaluation, normalization, training
from lco_jax.runs import checkpointing, runner, starts
from lco_jax.training import optimizers, placement, program, transfers

pytestmark = pytest.mark.third_party

_OPTIONS = {"normalize_observations": True, "normalize_rewards": True}


def _make(name="Pendulum-v1", **options):
  environment = environments.make(name, 5 if name == "Pendulum-v1" else None)
  net = networks.make_actor_critic(
    environment.observation_shape, environment.num_actions, (8,), "tanh"
  )
  row = algorithms.ALGORITHMS["lco_fisher"]
  settings = {
    "num_envs": 8,
    "num_steps": 64,
    "num_epochs": 1,
    "num_minibatches": 2,
    "discount": 0.9,
  }
  setup = training.Setup(
    environment,
    net,
    row,
    row.policy_loss(),
    training.Options(**(settings | options)),
  )
  chain = optimizers.make_optimizer(
    "adam", optimizers.make_schedule("constant", 1e-2, 1), 0.5
  )
  return setup, training.make_training(setup, {"policy": chain, "value": chain})


def _run(task, num_updates, devices=1):
  """States before each update and after the last, one seed's, on the host."""
  mesh = placement.make_mesh(1, task.num_streams, jax.devices()[:devices])
  state = program.initial_state(task, [0], mesh)
  step = program.compile_chunks(task, mesh, state, [1])[1]
  states = [transfers.to_host(state)]
  for _ in range(num_updates):
    state, _ = step(state)
    states.append(transfers.to_host(state))
  return [jax.tree.map(lambda x: x[0], state) for state in states]


def _rollouts(task, states):
  collect = jax.jit(
    placement.bind_device_axis(
      lambda state: program.collect_step(task, state)[1]
    )
  )
  return [collect(jax.tree.map(jnp.asarray, state)) for state in states]


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_moments_are_those_of_all_values(shape):
  rng = np.random.default_rng(0)
  parts = [
    rng.normal(5.0, 2.0, (size, 4, *shape)).astype(np.float32)
    for size in (3, 7, 1)
  ]
  moments = normalization.start(shape)
  add = placement.bind_device_axis(normalization.add)
  for part in parts:
    moments = add(moments, jnp.asarray(part))
  every = np.concatenate(parts).reshape(-1, *shape).astype(np.float64)
  assert moments["count"] == len(every)
  np.testing.assert_allclose(moments["mean"], every.mean(0), rtol=1e-6)
  np.testing.assert_allclose(moments["variance"], every.var(0), rtol=1e-5)


def test_nothing_is_normalised_before_anything_was_seen():
  params = normalization.begin({}, (2,), True, True)
  values = jnp.array([[0.5, -3.0]])
  np.testing.assert_allclose(
    normalization.normalize_observation(params, values), values, rtol=1e-6
  )
  np.testing.assert_allclose(
    normalization.normalize_reward(params, values), values, rtol=1e-6
  )
  assert normalization.normalize_observation({}, values) is values


def test_a_run_keeps_the_moments_of_what_it_saw():
  """They equal NumPy's of all observations and discounted returns so far."""
  setup, task = _make(**_OPTIONS)
  states = _run(task, 4)  # Episodes have 200 steps, rollouts 64.
  rollouts = _rollouts(task, states[:-1])
  seen = np.concatenate([np.reshape(r.observation, (-1, 3)) for r in rollouts])
  found = states[-1].params[normalization.OBSERVATIONS]
  np.testing.assert_allclose(found["mean"], seen.mean(0), atol=1e-5)
  np.testing.assert_allclose(found["variance"], seen.var(0), rtol=1e-4)
  # Discounted returns, step by step, across rollouts.
  reward, done = (
    np.concatenate([getattr(r, name) for r in rollouts])
    for name in ("reward", "done")
  )
  assert done.any()
  running, returns = np.zeros(8), []
  for time in range(len(reward)):
    running = 0.9 * running + reward[time]
    returns.append(running)
    running = np.where(done[time], 0.0, running)
  found = states[-1].params[normalization.RETURNS]
  np.testing.assert_allclose(found["mean"], np.mean(returns), rtol=1e-4)
  np.testing.assert_allclose(found["variance"], np.var(returns), rtol=1e-4)
  # The policy acts on normalised observations.
  last = states[2].params
  seen = np.concatenate(
    [np.reshape(r.observation, (-1, 3)) for r in rollouts[:2]]
  )
  scaled = (rollouts[2].observation - seen.mean(0)) / seen.std(0)
  np.testing.assert_allclose(
    rollouts[2].old_logits,
    setup.actor_critic.policy(last["policy"], jnp.asarray(scaled, jnp.float32)),
    atol=1e-4,
  )


def test_evaluation_without_the_moments_is_another_policy():
  setup, task = _make("CartPole-v1", normalize_observations=True)
  params = _run(task, 4)[-1].params
  policy = training.make_policy(setup)
  observation = jnp.asarray([[0.02, 0.3, -0.01, 0.2]])
  with_moments = policy(params, observation)
  without = policy({"policy": params["policy"]}, observation)
  assert np.abs(with_moments - without).max() > 1e-3
  one = lambda tree: jax.tree.map(lambda x: jnp.asarray(x)[None], tree)
  returns = [
    evaluation.in_graph(
      setup.environment, policy, one(own), jax.random.key(0), 20, False
    )
    for own in (
      {k: params[k] for k in ("policy", normalization.OBSERVATIONS)},
      {"policy": params["policy"]},
    )
  ]
  assert not np.array_equal(*returns)


def test_devices_do_not_matter():
  _, task = _make(**_OPTIONS)
  one, eight = _run(task, 3)[-1], _run(task, 3, devices=8)[-1]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4),
    one.params,
    eight.params,
  )


def test_a_resumed_run_is_bit_for_bit_the_same(tmp_path):
  """On as many devices; on others up to rounding."""
  _, task = _make(**_OPTIONS)
  saved = checkpointing.Checkpoints(tmp_path / "checkpoints", "f", 3)

  def run(num_updates, devices=2, saver=None, resume=False):
    mesh = placement.make_mesh(1, task.num_streams, jax.devices()[:devices])
    start = (
      starts.resume(task, (0,), mesh, saved)
      if resume
      else starts.begin(task, (0,), mesh)
    )
    return runner.run(
      task,
      start,
      num_updates,
      [],
      saver=runner.Saver(saver),
      updates_per_chunk=2,
      show_progress=False,
    ).params

  whole = run(6)
  assert {normalization.OBSERVATIONS, normalization.RETURNS} <= whole.keys()
  run(4, saver=saved)
  jax.tree.map(np.testing.assert_array_equal, whole, run(6, resume=True))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4),
    whole,
    run(6, devices=4, resume=True),
  )


def test_large_values_are_clipped_and_infinite_ones_stay():
  moments = {name: jnp.float32(1) for name in ("count", "mean", "variance")}
  params = {
    normalization.OBSERVATIONS: moments,
    normalization.RETURNS: moments,
  }
  values = jnp.array([1e6, -1e6, jnp.inf, -jnp.inf, jnp.nan])
  expected = [10.0, -10.0, np.inf, -np.inf, np.nan]
  for normalize in (
    normalization.normalize_observation,
    normalization.normalize_reward,
  ):
    np.testing.assert_array_equal(normalize(params, values), expected)
