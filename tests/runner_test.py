import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import (
  control,
  environments,
  networks,
  objectives,
  optimizers,
  placement,
  runner,
  training,
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


def _task(environment):
  net = networks.make_actor_critic(
    environment.observation_shape, environment.num_actions, (8,), "tanh"
  )
  chain = optimizers.make_optimizer(
    "adam", optimizers.make_schedule("constant", 1e-3, 1), 0.5
  )
  return control.make_training(
    environment,
    net,
    objectives.make_objective(
      net.policy, net.value, objectives.make_policy_loss("lco_mse")
    ),
    {"policy": chain, "value": chain},
    num_envs=2,
    num_steps=8,
    num_epochs=1,
    num_minibatches=1,
    discount=0.9,
    gae_lambda=0.95,
    beta=1.0,
  )


def _run(environment, recorder, num_updates, updates_per_chunk=3):
  return runner.run(
    _task(environment),
    (4, 5),
    placement.place(2, 2, jax.devices()[:1]),
    num_updates,
    [recorder],
    updates_per_chunk=updates_per_chunk,
    show_progress=False,
  )


def test_every_update_is_written_once():
  recorder = _Recorder()
  result = _run(environments.make("probe:action"), recorder, num_updates=7)
  assert recorder.updates == list(range(1, 8)) and recorder.closed
  assert [len(m["episodes"]) for m in recorder.metrics] == [3, 3, 1]
  assert all(m["steps_per_second"].min() > 0 for m in recorder.metrics)
  assert result.total_steps == 7 * 16
  leaf = result.params["policy"]["params"]["Dense_0"]["kernel"]
  assert isinstance(leaf, np.ndarray) and leaf.shape == (2, 1, 8)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_reward_that_is_not_finite_stops_the_run(bad):
  """The step counter turns the 5th update's rewards (steps 33 to 40) bad."""
  healthy = environments.make("probe:action")

  def reset(key):
    state, observation = healthy.reset(key)
    return (state, jnp.int32(0)), observation

  def step(key, state, action):
    inner, time = state
    transition = healthy.step(key, inner, action)
    time = time + 1
    return transition._replace(
      state=(transition.state, time),
      reward=jnp.where(time > 32, bad, transition.reward),
      terminated=jnp.array(False),
    )

  environment = dataclasses.replace(healthy, reset=reset, step=step)
  recorder = _Recorder()
  with pytest.raises(training.NonFiniteError, match="update 5, seed 4:"):
    _run(environment, recorder, num_updates=9)
  assert recorder.updates == [1, 2, 3, 4] and recorder.closed
