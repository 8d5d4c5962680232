"""Host environments: the same Trajectory, the same update."""

import dataclasses

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import algorithms, environments, networks
from lco_jax.control import host_rollout, training
from lco_jax.runs import checkpointing, fault_replay, runner, starts
from lco_jax.training import (
  finiteness,
  host_loop,
  optimizers,
  phases,
  placement,
  transfers,
)

pytestmark = pytest.mark.third_party

_SEEDS = (3, 9)


def _make(
  name="gymnasium:CliffWalking-v1",
  num_devices=1,
  num_steps=8,
  environment=None,
  **settings,
):
  environment = environment or environments.make(name)
  net = networks.make_actor_critic(
    environment.observation_shape, environment.num_actions, (16,), "tanh"
  )
  chain = optimizers.make_optimizer(
    "adam", optimizers.make_schedule("constant", 1e-3, 1), 0.5
  )
  row = algorithms.ALGORITHMS["lco_mse"]
  options = training.Options(
    num_envs=4,
    num_steps=num_steps,
    num_epochs=1,
    num_minibatches=1,
    discount=0.9,
    **settings,
  )
  setup = training.Setup(environment, net, row, row.policy_loss(), options)
  task = training.make_training(setup, {"policy": chain, "value": chain})
  mesh = placement.make_mesh(2, 4, jax.devices()[:num_devices])
  start = starts.begin(task, _SEEDS, mesh)
  collector = host_rollout.HostCollector(
    environment,
    training.make_policy(setup),
    task,
    mesh,
    _SEEDS,
    0,
    setup.return_discount,
  )
  return task, start, collector


def test_a_trajectory_is_what_the_environments_did():
  """Against single environments, stepped with the recorded actions."""
  task, start, collector = _make("gymnasium:Acrobot-v1", num_steps=600)
  trajectory = transfers.to_host(collector.collect(start.state))
  assert trajectory.observation.shape == (2, 600, 4, 6)
  assert trajectory.done.any(axis=1).all()  # The limit is 500 steps.
  single = gymnasium.make("Acrobot-v1").unwrapped
  ends = np.argmax(trajectory.done[1, :, 2])
  for time in range(ends + 1):
    row = jax.tree.map(lambda leaf, t=time: leaf[1, t, 2], trajectory)
    o = row.observation
    single.reset()
    single.state = np.array(
      [np.arctan2(o[1], o[0]), np.arctan2(o[3], o[2]), o[4], o[5]]
    )
    successor, reward, terminated, _, _ = single.step(row.action)
    np.testing.assert_allclose(row.next_observation, successor, atol=1e-4)
    assert row.reward == reward and row.terminated == terminated
    assert row.episode_length == time + 1
    if time < ends:  # Then the next observation is a fresh start's.
      np.testing.assert_array_equal(
        trajectory.observation[1, time + 1, 2], row.next_observation
      )
  assert np.abs(trajectory.observation[1, ends + 1, 2, 4:]).max() < 0.11
  assert trajectory.episode_length[1, ends + 1, 2] == 1
  assert task.collect is None
  collector.close()


class _Countdown(gymnasium.Env):
  """Counts 3, 2, 1, 0 in one array, which it also returns."""

  observation_space = gymnasium.spaces.Box(0.0, 3.0, (1,), np.float32)
  action_space = gymnasium.spaces.Discrete(2)

  def __init__(self):
    self._left = np.zeros(1, np.float32)

  def reset(self, *, seed=None, options=None):
    self._left[:] = 3.0
    return self._left, {}

  def step(self, action):
    self._left -= 1.0
    return self._left, 1.0, bool(self._left[0] == 0.0), False, {}


def test_an_environment_may_reuse_its_array_of_observations():
  """A reset does not overwrite the last observation of an episode."""
  environment = environments.gymnasium_env.wrap(_Countdown, "countdown")
  task, start, collector = _make(environment=environment, num_steps=6)
  trajectory = transfers.to_host(collector.collect(start.state))
  for name, expected in (
    ("observation", [3, 2, 1, 3, 2, 1]),
    ("next_observation", [2, 1, 0, 2, 1, 0]),
    ("terminated", [False, False, True] * 2),
  ):
    found = np.squeeze(getattr(trajectory, name)).reshape(2, 6, 4)
    assert (found == np.array(expected)[None, :, None]).all(), name


@pytest.mark.parametrize("num_devices", [2, 4])
def test_devices_do_not_matter(num_devices):
  """Two devices divide the seeds, four the environments."""
  runs = []
  for count in (1, num_devices):
    task, start, collector = _make(num_devices=count)
    rollouts, collect = [], collector.collect
    collector.collect = lambda state, collect=collect, rollouts=rollouts: (
      rollouts.append(collect(state)) or rollouts[-1]
    )
    programs = host_loop.make_programs(collector, task, start.mesh, [3])
    state, metrics, faulty = programs[3](start.state)
    assert faulty is None and len(rollouts) == 3
    metrics = {k: metrics[k] for k in metrics.keys() - set(phases.METRICS)}
    runs.append(transfers.to_host((state.params, rollouts)) + (metrics,))
    collector.close()
  one, other = runs
  for a, b in zip(one[1], other[1], strict=True):
    np.testing.assert_array_equal(a.action, b.action)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_actions_follow_the_policy():
  """A policy that is nearly certain is followed, and sampled from otherwise."""
  task, start, collector = _make(num_steps=200)
  actions = np.ravel(collector.collect(start.state).action)
  shares = np.bincount(actions, minlength=4) / actions.size
  np.testing.assert_allclose(shares, 0.25, atol=0.05)
  head = start.state.params["policy"]["params"]["Dense_1"]
  head["bias"] = head["bias"] + jnp.array([0.0, 50.0, 0.0, 0.0])
  assert (collector.collect(start.state).action == 1).all()
  collector.close()


def test_a_fault_on_the_host_can_be_replayed(tmp_path):
  """The reward of the third update is NaN; its rollout is what is saved."""
  task, start, collector = _make()
  collect, calls = collector.collect, []

  def broken(state):
    rollout = collect(state)
    calls.append(rollout)
    if len(calls) == 3:
      rollout = dataclasses.replace(
        rollout, reward=rollout.reward.at[1, 4, 2].set(np.nan)
      )
    return rollout

  collector.collect = broken
  faults = checkpointing.Checkpoints(tmp_path / "fault", "f", 1)
  with pytest.raises(finiteness.NonFiniteError) as error:
    runner.run(
      task,
      start,
      8,
      [],
      collector=collector,
      faults=faults,
      updates_per_chunk=4,
      show_progress=False,
    )
  assert str(error.value) == "update 3, seed 9: rollout: reward not finite"
  assert len(calls) == 3
  blank = host_rollout.blank_trajectory(
    environments.make("gymnasium:CliffWalking-v1"), 8, 4
  )
  for field in dataclasses.fields(blank):
    expected, found = (getattr(x, field.name) for x in (calls[0], blank))
    if expected is None:  # Rewards are not normalised.
      assert found is None
      continue
    assert found.shape == expected.shape[1:] and found.dtype == expected.dtype
  one = placement.make_mesh(1, 4, jax.devices()[:1])
  seed, state, rollout, what = runner.load_fault(faults, task, one, blank)
  assert seed == 9 and state.update == 2
  record = fault_replay.replay(task, state, rollout)
  assert str(fault_replay.find(record, task.counts)) == what
  collector.close()


def test_discounted_returns_are_kept_where_rewards_are_normalised():
  _, start, collector = _make(num_steps=30, normalize_rewards=True)
  first = transfers.to_host(collector.collect(start.state))
  second = transfers.to_host(collector.collect(start.state))
  collector.close()
  reward, done, found = (
    np.concatenate([getattr(x, name) for x in (first, second)], axis=1)
    for name in ("reward", "done", "discounted_return")
  )
  running = np.zeros(reward[:, 0].shape)
  for time in range(reward.shape[1]):
    running = 0.9 * running + reward[:, time]
    np.testing.assert_allclose(found[:, time], running, rtol=1e-5)
    running = np.where(done[:, time], 0.0, running)
