"""gymnax and Gymnasium, side by side: same state, same actions, same steps."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import environments
from lco_jax.environments import gymnasium_env

pytestmark = pytest.mark.third_party

_FIELDS = {
  "CartPole-v1": ("x", "x_dot", "theta", "theta_dot"),
  "Acrobot-v1": (
    "joint_angle1",
    "joint_angle2",
    "velocity_1",
    "velocity_2",
  ),
  "MountainCar-v0": ("position", "velocity"),
  "Pendulum-v1": ("theta", "theta_dot"),
}


def _make_pair(name):
  """Gymnasium's with the actions of the twin, and the twin."""
  continuous = gymnasium_env.TWINS[name]
  twin = environments.make(name, 11 if continuous else None)
  original = gymnasium.make(name)
  if continuous:
    torques = np.linspace(-2, 2, 11, dtype=np.float32)
    original = gymnasium.wrappers.TransformAction(
      original, lambda a: torques[a : a + 1], gymnasium.spaces.Discrete(11)
    )
  return original, twin


@pytest.mark.parametrize("name", gymnasium_env.TWINS)
def test_the_twins_step_alike(name):
  original, twin = _make_pair(name)
  step = jax.jit(twin.step)
  rng = np.random.default_rng(0)
  steps = ends = 0
  for episode in range(6):
    original.reset(seed=episode)
    state, _ = twin.reset(jax.random.key(episode))
    while True:
      # Start every step from the original's state: errors do not pile up.
      values = np.asarray(original.unwrapped.state, np.float32)
      state = state.replace(
        **dict(zip(_FIELDS[name], map(jnp.float32, values), strict=True))
      )
      action = int(rng.integers(twin.num_actions))
      observation, reward, terminated, truncated, _ = original.step(action)
      transition = step(jax.random.key(0), state, jnp.int32(action))
      state = transition.state
      np.testing.assert_allclose(
        transition.observation, observation, rtol=1e-3, atol=1e-4
      )
      np.testing.assert_allclose(transition.reward, reward, rtol=1e-4)
      assert bool(transition.terminated) == terminated
      assert bool(transition.truncated) == truncated
      steps += 1
      if terminated or truncated:
        ends += 1
        break
  assert ends == 6 and steps > 100
  original.close()


@pytest.mark.parametrize("name", gymnasium_env.TWINS)
def test_the_twins_agree_on_starts_and_limits(name):
  original, twin = _make_pair(name)
  assert original.spec.max_episode_steps == twin.max_episode_steps
  assert original.action_space.n == twin.num_actions
  starts = np.array([original.reset(seed=i)[0] for i in range(300)])
  _, twins = jax.vmap(twin.reset)(jax.random.split(jax.random.key(0), 300))
  np.testing.assert_allclose(starts.min(0), np.min(twins, 0), atol=0.02)
  np.testing.assert_allclose(starts.max(0), np.max(twins, 0), atol=0.02)
  original.close()
