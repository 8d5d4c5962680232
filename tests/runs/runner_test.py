import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import algorithms, environments, networks
from lco_jax.control import training
from lco_jax.runs import (
  checkpointing,
  fault_replay,
  metric_writers,
  runner,
  starts,
)
from lco_jax.training import (
  finiteness,
  optimizers,
  placement,
  program,
  transfers,
)

pytestmark = pytest.mark.third_party


class _Recorder:
  def __init__(self):
    self.updates, self.metrics, self.closed = [], [], False

  def write(self, updates, steps, metrics):
    assert list(steps) == [16 * u for u in updates]
    self.updates.extend(updates)
    self.metrics.append(metrics)

  def close(self):
    self.closed = True


def _task(environment, algorithm="lco_mse", learning_rate=1e-3, own_rate=False):
  net = networks.make_actor_critic(
    environment.observation_shape, environment.num_actions, (8,), "tanh"
  )
  chain = optimizers.make_optimizer(
    "adam", optimizers.make_schedule("constant", learning_rate, 1), 0.5
  )
  row = algorithms.ALGORITHMS[algorithm]
  options = training.Options(
    num_envs=2, num_steps=8, num_epochs=1, num_minibatches=1, discount=0.9
  )
  return training.make_training(
    training.Setup(environment, net, row, row.policy_loss(), options),
    {
      "policy": optimizers.make_own_rate(chain) if own_rate else chain,
      "value": chain,
    },
  )


_SEEDS = (4, 5)


def _place(num_devices=1):
  return placement.make_mesh(2, 2, jax.devices()[:num_devices])


def _run(task, recorder, num_updates, start=None, **options):
  return runner.run(
    task,
    start or starts.begin(task, _SEEDS, _place()),
    num_updates,
    [recorder],
    **{"updates_per_chunk": 3, "show_progress": False} | options,
  )


def _checkpoints(path):
  return checkpointing.Checkpoints(path, "fingerprint", keep=2)


def _assert_same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype and x.tobytes() == y.tobytes()


def test_every_update_is_written_once():
  recorder = _Recorder()
  task = _task(environments.make("probe:action"))
  result = _run(task, recorder, 7)
  assert recorder.updates == list(range(1, 8)) and recorder.closed
  assert [len(m["episodes"]) for m in recorder.metrics] == [3, 3, 1]
  assert all(m["steps_per_second"].min() > 0 for m in recorder.metrics)
  assert result.total_steps == 7 * 16
  leaf = result.params["policy"]["params"]["Dense_0"]["kernel"]
  assert isinstance(leaf, np.ndarray) and leaf.shape == (2, 1, 8)


class _StopAfter:
  """Asks to stop at the given question."""

  def __init__(self, questions):
    self._left = questions

  def __call__(self):
    self._left -= 1
    return self._left < 0


def _resume(task, checkpoints, num_devices=1):
  return starts.resume(task, _SEEDS, _place(num_devices), checkpoints)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
  """Stopped before the first update and after the sixth."""
  task = _task(environments.make("probe:action"))
  whole, cut = _Recorder(), _Recorder()
  expected = _run(task, whole, 9)
  checkpoints = _checkpoints(tmp_path / "checkpoints")
  for questions, update in ((0, 0), (2, 6)):
    with pytest.raises(runner.StoppedError, match=f"update {update} of 9"):
      _run(
        task,
        cut,
        9,
        _resume(task, checkpoints),
        saver=runner.Saver(checkpoints),
        should_stop=_StopAfter(questions),
      )
    assert checkpoints.steps()[-1] == update
  # Devices other than before: the same but for rounding.
  elsewhere = _run(task, _Recorder(), 9, _resume(task, checkpoints, 2))
  for a, b in zip(
    jax.tree.leaves(elsewhere.params),
    jax.tree.leaves(expected.params),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)
  start = _resume(task, checkpoints)
  assert start.update == 6 and start.train_seconds > 0
  result = _run(task, cut, 9, start, saver=runner.Saver(checkpoints))
  assert cut.updates == whole.updates and checkpoints.steps() == [6, 9]
  _assert_same(result.params, expected.params)
  for name in whole.metrics[0]:
    if name not in metric_writers.TIMINGS:
      np.testing.assert_array_equal(
        np.concatenate([m[name] for m in cut.metrics]),
        np.concatenate([m[name] for m in whole.metrics]),
      )


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, [6, 9]), (1e9, [9])])
def test_checkpoints_are_saved_as_time_goes_by(tmp_path, seconds, steps):
  task = _task(environments.make("probe:action"))
  checkpoints = _checkpoints(tmp_path / "checkpoints")
  _run(task, _Recorder(), 9, saver=runner.Saver(checkpoints, seconds))
  assert checkpoints.steps() == steps


def test_a_state_can_move_to_other_devices():
  """Seeds on devices, environments on devices, one device: the same state."""
  task = _task(environments.make("CartPole-v1"))
  one, seeds = _place(), _place(2)
  streams = placement.make_mesh(1, 2, jax.devices()[:2])
  states = {
    mesh: program.initial_state(task, _SEEDS, mesh)
    for mesh in (one, seeds, streams)
  }
  assert [mesh.shape[placement.DATA_AXIS] for mesh in states] == [1, 1, 2]
  expected = transfers.to_host(states[one])
  assert expected.actor.observation.shape == (2, 2, 4)
  for mesh, state in states.items():
    _assert_same(transfers.to_host(state), expected)
    placed = transfers.to_devices(expected, mesh, placement.STATE)
    for a, b in zip(
      jax.tree.leaves(placed), jax.tree.leaves(state), strict=True
    ):
      assert a.sharding == b.sharding and a.dtype == b.dtype
    _assert_same(transfers.to_host(placed), expected)


# What turns bad, in the fifth update: rollouts take 8 steps of an episode that
# never ends, so these are the steps 33 to 40.
def _is_bad(step):
  return step == 35


def _endless(environment, bad=0.0):
  """No episode ends; one reward is bad."""

  def reset(key):
    state, observation = environment.reset(key)
    return (state, jnp.int32(0)), observation

  def step(key, state, action):
    inner, time = state
    transition = environment.step(key, inner, action)
    time = time + 1
    return transition._replace(
      state=(transition.state, time),
      reward=jnp.where(_is_bad(time), bad, transition.reward),
      terminated=jnp.array(False),
    )

  return dataclasses.replace(environment, reset=reset, step=step)


def _bad_rewards(environment, bad):
  return _task(_endless(environment, bad))


def _bad_logits(environment, bad):
  task = _task(_endless(environment))

  def collect(params, actor, keys):
    actor, trajectory = task.collect(params, actor, keys)
    logits = trajectory.old_logits
    wrong = _is_bad(trajectory.episode_length)[..., None]
    return actor, dataclasses.replace(
      trajectory, old_logits=jnp.where(wrong, bad, logits)
    )

  return dataclasses.replace(task, collect=collect)


def _bad_advantages(environment, bad):
  task = _task(_endless(environment), "reinforce")

  def prepare(params, trajectory):
    batch, metrics = task.prepare(params, trajectory)
    wrong = _is_bad(trajectory.episode_length)
    return dataclasses.replace(
      batch, advantage=jnp.where(wrong, bad, batch.advantage)
    ), metrics

  return dataclasses.replace(task, prepare=prepare)


_BAD_REWARD = "rollout: reward, episode_return not finite"


@pytest.mark.parametrize(
  ("make", "bad", "what"),
  [
    (_bad_rewards, jnp.nan, _BAD_REWARD),
    (_bad_rewards, -jnp.inf, _BAD_REWARD),
    (_bad_logits, jnp.nan, "rollout: old_logits not finite"),
    (_bad_advantages, jnp.inf, "batch: advantage not finite"),
  ],
)
def test_what_is_not_finite_is_not_applied(tmp_path, make, bad, what):
  """The fifth update is named, explained and saved, and changes nothing."""
  task = make(environments.make("probe:action"), bad)
  recorder = _Recorder()
  faults = _checkpoints(tmp_path / "fault")
  checkpoints = _checkpoints(tmp_path / "checkpoints")
  with pytest.raises(finiteness.NonFiniteError) as error:
    _run(
      task,
      recorder,
      12,
      updates_per_chunk=4,
      saver=runner.Saver(checkpoints, every_seconds=0.0),
      faults=faults,
    )
  assert str(error.value) == f"update 5, seed 4: {what}"
  assert recorder.updates == [1, 2, 3, 4] and recorder.closed
  seed, state, rollout, recorded = runner.load_fault(
    faults, task, placement.make_mesh(1, 2, jax.devices()[:1])
  )
  assert seed == 4 and recorded == what and state.update == 4
  record = fault_replay.replay(task, state, rollout)
  assert str(fault_replay.find(record, task.counts)) == what
  # The fifth update is the first of the second chunk.
  assert checkpoints.steps()[-1] == 4
  saved = _resume(task, checkpoints)
  host = transfers.to_host(saved.state)
  _assert_same(state, jax.tree.map(lambda leaf: leaf[0], host))


def test_a_step_that_overflows_is_found_in_its_minibatch(tmp_path):
  """No input is bad: a learning rate is."""
  task = _task(environments.make("probe:action"), learning_rate=1e38)
  with pytest.raises(finiteness.NonFiniteError) as error:
    _run(task, _Recorder(), 12)
  assert "minibatch 1 of 1: policy_" in str(error.value)


def test_learners_with_rates_of_their_own():
  """As if each was alone, and one that overflows does not end the others."""
  environment = environments.make("probe:action")
  task = _task(environment, learning_rate=1e-3, own_rate=True)
  recorder = _Recorder()
  start = starts.begin(
    task, (4, 5, 4), _place(), learning_rates=(1.0, 3.0, 1e38)
  )
  before = transfers.to_host(start.state.params)
  result = _run(task, recorder, 6, start, past_faults=True)
  for position, (seed, rate) in enumerate([(4, 1e-3), (5, 3e-3)]):
    alone = _task(environment, learning_rate=rate)
    start = starts.begin(alone, (seed,), _place())
    expected = _run(alone, _Recorder(), 6, start).params
    for got, want in zip(
      jax.tree.leaves(result.params["policy"]),
      jax.tree.leaves(expected["policy"]),
      strict=True,
    ):
      np.testing.assert_allclose(got[position], want[0], atol=1e-5)
  for got, want in zip(
    jax.tree.leaves(result.params), jax.tree.leaves(before), strict=True
  ):
    np.testing.assert_array_equal(got[2], want[2])
  losses = np.concatenate([m["policy_loss"] for m in recorder.metrics])
  assert np.isfinite(losses[:, :2]).all() and np.isnan(losses[:, 2]).all()


def test_a_learner_left_behind_does_not_move_where_a_run_goes_on(tmp_path):
  """The first learner stays at update 0; the run is resumed at 3 of 6."""
  task = _task(environments.make("probe:action"), own_rate=True)
  begin = {"learning_rates": (1e38, 1.0)}
  whole, cut = _Recorder(), _Recorder()
  start = starts.begin(task, _SEEDS, _place(), **begin)
  expected = _run(task, whole, 6, start, past_faults=True)
  checkpoints = _checkpoints(tmp_path / "checkpoints")
  with pytest.raises(runner.StoppedError, match="update 3 of 6"):
    _run(
      task,
      cut,
      6,
      starts.begin(task, _SEEDS, _place(), **begin),
      past_faults=True,
      saver=runner.Saver(checkpoints),
      should_stop=_StopAfter(1),
    )
  start = starts.resume(task, _SEEDS, _place(), checkpoints, **begin)
  assert start.update == 3
  result = _run(task, cut, 6, start, past_faults=True)
  _assert_same(result.params, expected.params)
  assert cut.updates == whole.updates
  for name in ("policy_loss", "kl_old_new"):
    found, want = (
      np.concatenate([m[name] for m in recorder.metrics])
      for recorder in (cut, whole)
    )
    np.testing.assert_array_equal(found, want)
    assert np.isnan(want[:, 0]).all() and np.isfinite(want[:, 1]).all()
