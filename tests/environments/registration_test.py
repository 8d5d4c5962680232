"""Environments of a user's own, by name."""

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lco_jax
from lco_jax import environments

pytestmark = pytest.mark.third_party


@pytest.fixture(autouse=True)
def registered(monkeypatch):
  own = {}
  monkeypatch.setattr(environments, "_REGISTERED", own)
  return own


class _Endless(gymnasium.Env):
  observation_space = gymnasium.spaces.Box(-1, 1, (2,))
  action_space = gymnasium.spaces.Box(-1, 1, (1,))

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    return np.zeros(2, np.float32), {}

  def step(self, action):
    return np.full(2, action[0], np.float32), float(action[0]), False, False, {}


@pytest.mark.parametrize("with_params", [False, True])
def test_an_environment_of_gymnax_s_interface(with_params):
  """The same as gymnax's own id; parameters of one's own are used."""

  @lco_jax.register_environment("own")
  def make_own():
    environment, params = gymnax.make("CartPole-v1")
    short = params.replace(max_steps_in_episode=7)
    return (environment, short) if with_params else environment

  own, original = environments.make("own"), environments.make("CartPole-v1")
  assert own.name == "own" and own.num_actions == 2
  assert own.max_episode_steps == (7 if with_params else 500)
  for key in jax.random.split(jax.random.key(0), 3):
    (state, seen), (_, expected) = own.reset(key), original.reset(key)
    np.testing.assert_array_equal(seen, expected)
    found = own.step(key, state, jnp.int32(1))
    np.testing.assert_array_equal(
      found.observation, original.step(key, state, jnp.int32(1)).observation
    )


def test_a_class_of_gymnasium_environments():
  """Continuous actions in bins; 1,000 steps at most."""
  lco_jax.register_environment("endless")(_Endless)
  environment = environments.make("endless", action_bins=3)
  assert environment.name == "endless" and environment.num_actions == 3
  copies = environment.make_copies(2)
  copies.reset(seed=0)
  for time in range(1000):
    observation, reward, _, truncated, info = copies.step(np.array([[0], [2]]))
    np.testing.assert_array_equal(reward, [-1.0, 1.0])
    assert truncated.all() == (time == 999)
  np.testing.assert_array_equal(np.stack(info["final_obs"])[:, 0], [-1, 1])
  np.testing.assert_array_equal(observation, 0.0)
  copies.close()
  with pytest.raises(ValueError, match="action_bins"):
    environments.make("endless")


def test_names_that_cannot_be():
  register = lco_jax.register_environment
  register("mine")(_Endless)
  for name, line in (("mine", "is taken"), ("a:b", "no colon"), ("", "got ''")):
    with pytest.raises(ValueError, match=line):
      register(name)(_Endless)
  register("CartPole-v1")(_Endless)
  with pytest.raises(ValueError, match="gymnax has this name"):
    environments.make("CartPole-v1")
  register("three")(lambda: 3)
  with pytest.raises(ValueError, match="'three'.* got int"):
    environments.make("three")


def test_what_cannot_be_built_is_named():
  def make_broken():
    raise RuntimeError("no simulator")

  lco_jax.register_environment("broken")(make_broken)
  with pytest.raises(ValueError, match="'broken': RuntimeError: no simulator"):
    environments.make("broken")
