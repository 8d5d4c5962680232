import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import environments
from lco_jax.environments import probes

# One of each kind: Box and Discrete observations, matrices and images.
_GYMNAX = [
  "CartPole-v1",
  "Acrobot-v1",
  "MountainCar-v0",
  "Catch-bsuite",
  "DeepSea-bsuite",
  "Breakout-MinAtar",
  "Asterix-MinAtar",
  "Freeway-MinAtar",
  "SpaceInvaders-MinAtar",
  "Seaquest-MinAtar",
  "FrozenLake-misc",
  "BernoulliBandit-misc",
  "UmbrellaChain-bsuite",
]


@pytest.mark.third_party
@pytest.mark.parametrize("name", _GYMNAX)
def test_gymnax_environments_step(name):
  environment = environments.make(name)
  key = jax.random.key(0)
  state, observation = environment.reset(key)
  assert observation.shape == environment.observation_shape
  transition = jax.jit(environment.step)(key, state, jnp.int32(1))
  assert transition.observation.shape == environment.observation_shape
  assert transition.observation.dtype == jnp.float32
  assert transition.reward.dtype == jnp.float32
  assert transition.terminated.dtype == transition.truncated.dtype == bool
  same = jax.tree.map(
    lambda a, b: jnp.shape(a) == jnp.shape(b), state, transition.state
  )
  assert all(jax.tree.leaves(same))


@pytest.mark.third_party
@pytest.mark.parametrize(
  ("bad", "message"),
  [
    ("Nope-v0", "unknown environment 'Nope-v0'"),
    ("os:system", "unknown environment namespace 'os'"),
    ("probe:nope", "unknown probe environment 'nope'"),
    ("tabular:nope", "unknown tabular environment 'nope'"),
    ("Pendulum-v1", "'Pendulum-v1' has continuous actions.*set action_bins"),
    ("gymnax:MountainCarContinuous-v0", "set action_bins"),
    ("", "unknown environment ''"),
    ("gymnasium:os:system", "unknown environment namespace 'gymnasium:os'"),
    ("gymnasium:Acrobat-v1", "unknown environment.*mean Acrobot-v1"),
    ("gymnasium:Pendulum-v1", "set action_bins"),
    ("gymnasium:Blackjack-v1", "Box, Discrete and MultiDiscrete"),
    ("gymnasium:LunarLander-v3", "cannot be built: Box2D is not installed"),
  ],
)
def test_wrong_ids_are_named(bad, message):
  with pytest.raises(ValueError, match=message):
    environments.make(bad)


def test_data_that_cannot_be_had_is_a_clear_error(monkeypatch):
  def no_network(*_, **__):
    raise OSError("no network")

  monkeypatch.setattr(gymnax, "make", no_network)
  with pytest.raises(ValueError, match="cannot be built: no network"):
    environments.make("MNISTBandit-bsuite")


@pytest.mark.parametrize("name", probes.PROBES)
def test_probe_answers_by_simulation(name):
  """Plays the optimal actions from every start; the returns are the values."""
  probe = probes.PROBES[name]()
  environment, discount = probe.environment, 0.9
  table = {
    float(o[0]): (float(v), np.maximum(a, 0))
    for o, v, a in zip(
      probe.observations, probe.values(discount), probe.actions, strict=True
    )
  }
  for seed in range(8):
    state, observation = environment.reset(jax.random.key(seed))
    value, _ = table[float(observation[0])]
    total, weight = 0.0, 1.0
    while True:
      _, action = table[float(observation[0])]
      transition = environment.step(
        jax.random.key(0), state, jnp.asarray(action, jnp.int32)
      )
      total += weight * float(transition.reward)
      weight *= discount
      state, observation = transition.state, transition.observation
      if transition.terminated or transition.truncated:
        break
    if transition.truncated:  # The rest of an endless episode.
      total += weight * table[float(observation[0])][0]
    np.testing.assert_allclose(total, value, rtol=1e-6)


@pytest.mark.third_party
@pytest.mark.parametrize(
  ("name", "shape"),
  [("Acrobot-v1", (6,)), ("CliffWalking-v1", (48,)), ("Taxi-v4", (500,))],
)
def test_gymnasium_environments_are_encoded(name, shape):
  environment = environments.make(f"gymnasium:{name}")
  copies = environment.make_copies(3)
  observation, _ = copies.reset(seed=0)
  encoded = environment.encode(observation)
  assert encoded.shape == (3, *shape) and encoded.dtype == np.float32
  if len(shape) == 1 and observation.ndim == 1:
    np.testing.assert_array_equal(encoded.argmax(-1), observation)
    np.testing.assert_array_equal(encoded.sum(-1), 1.0)
  copies.close()


@pytest.mark.third_party
def test_host_environments_of_every_kind():
  """MultiDiscrete observations and spaces that do not start at 0."""

  class Odd(gymnasium.Env):
    observation_space = gymnasium.spaces.MultiDiscrete([2, 3], start=[5, 0])
    action_space = gymnasium.spaces.Discrete(2, start=7)

    def reset(self, *, seed=None, options=None):
      return np.array([6, 1]), {}

    def step(self, action):
      assert action in (7, 8)
      return np.array([5, 2]), float(action), False, False, {}

  gymnasium.register("Odd-v0", entry_point=Odd)
  environment = environments.make("gymnasium:Odd-v0")
  assert environment.observation_shape == (5,) and environment.num_actions == 2
  copies = environment.make_copies(2)
  observation, _ = copies.reset()
  np.testing.assert_array_equal(
    environment.encode(observation), [[0, 1, 0, 1, 0]] * 2
  )
  _, reward, _, _, _ = copies.step(np.array([0, 1]))
  np.testing.assert_array_equal(reward, [7, 8])
  copies.close()
  del gymnasium.registry["Odd-v0"]


_CONTINUOUS = {  # Dimensions of the action.
  "Pendulum-v1": 1,
  "MountainCarContinuous-v0": 1,
  "PointRobot-misc": 2,
  "Reacher-misc": 2,
  "Swimmer-misc": 2,
}


@pytest.mark.third_party
def test_continuous_gymnax_environments_are_all_here():
  continuous = set()
  for name in gymnax.registered_envs:
    if name.startswith("MNIST"):  # Needs data.
      continue
    environment, params = gymnax.make(name)
    space = environment.action_space(params)
    if not isinstance(space, gymnax.environments.spaces.Discrete):
      continuous.add(name)
  assert continuous == set(_CONTINUOUS)


@pytest.mark.third_party
@pytest.mark.parametrize("name", _CONTINUOUS)
def test_continuous_actions_are_cut_into_bins(name):
  """The first and the last bin are the bounds, and steps use the value."""
  environment = environments.make(name, 5)
  dimensions = _CONTINUOUS[name]
  shape = (5,) if dimensions == 1 else (dimensions, 5)
  assert environments.logits_shape(environment) == shape
  assert environments.legal_actions(environment) is None
  original, params = gymnax.make(name)
  space = original.action_space(params)
  key = jax.random.key(0)
  state, _ = environment.reset(key)
  for choice, value in ((0, space.low), (4, space.high)):
    value = jnp.broadcast_to(jnp.asarray(value, jnp.float32), space.shape)
    expected, _, reward, _, _ = jax.jit(original.step_env)(
      key, state, value, params
    )
    transition = jax.jit(environment.step)(
      key, state, jnp.full(shape[:-1], choice, jnp.int32)
    )
    np.testing.assert_allclose(transition.observation, expected, rtol=1e-5)
    np.testing.assert_allclose(transition.reward, np.squeeze(reward), rtol=1e-5)
    assert transition.reward.shape == transition.terminated.shape == ()


@pytest.mark.third_party
@pytest.mark.parametrize(
  ("name", "action_bins", "message"),
  [
    ("Pendulum-v1", 1, "action_bins must be ≥ 2"),
    ("CartPole-v1", 3, "action_bins: environment 'CartPole-v1' has discrete"),
    ("probe:action", 3, "action_bins: environment 'probe:action' has discrete"),
    ("gymnasium:CartPole-v1", 3, "'gymnasium:CartPole-v1' has discrete"),
    ("gymnasium:Endless-v0", 3, "bins need finite bounds"),
  ],
)
def test_wrong_bins_are_named(name, action_bins, message):
  class Endless(gymnasium.Env):
    observation_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))

  gymnasium.register("Endless-v0", entry_point=Endless)
  with pytest.raises(ValueError, match=message):
    environments.make(name, action_bins)
  del gymnasium.registry["Endless-v0"]


@pytest.mark.third_party
@pytest.mark.parametrize(
  ("space", "action_bins", "choices", "expected"),
  [
    (
      gymnasium.spaces.Box(-1.0, np.float32([1.0, 3.0])),
      5,
      [[0, 0], [4, 2]],
      [[-1.0, -1.0], [1.0, 1.0]],
    ),
    (gymnasium.spaces.Box(-2.0, 2.0, (1,)), 3, [0, 2], [[-2.0], [2.0]]),
    (
      gymnasium.spaces.MultiDiscrete([2, 3], start=[5, 0]),
      None,
      [[0, 2], [1, 1]],
      [[5, 2], [6, 1]],
    ),
  ],
)
def test_host_environments_get_the_actions_of_their_space(
  space, action_bins, choices, expected
):
  seen = []

  class Recording(gymnasium.Env):
    observation_space = gymnasium.spaces.Discrete(2)
    action_space = space

    def reset(self, *, seed=None, options=None):
      return 0, {}

    def step(self, action):
      assert space.contains(action), action
      seen.append(np.array(action))
      return 0, 0.0, False, False, {}

  gymnasium.register("Recording-v0", entry_point=Recording)
  environment = environments.make("gymnasium:Recording-v0", action_bins)
  copies = environment.make_copies(2)
  copies.reset()
  copies.step(np.array(choices))
  np.testing.assert_allclose(seen, expected)
  copies.close()
  del gymnasium.registry["Recording-v0"]


@pytest.mark.third_party
@pytest.mark.parametrize(
  "name", ["CartPole-v1", "Catch-bsuite", "probe:dimensions", "tabular:chain"]
)
def test_built_in_environments_pass_the_check(name):
  environments.check_environment(environments.make(name))


@pytest.mark.parametrize(
  ("changes", "line"),
  [
    ({"num_actions": 0}, "num_actions must be"),
    ({"max_episode_steps": 0}, "max_episode_steps must be"),
    ({"observation_shape": (3,)}, r"reset: observation must be float32\[3\]"),
    (
      {"reset": lambda key: (jnp.int32(0), "text")},
      "reset: TypeError: .*_test.py",
    ),
    (
      {"reset": lambda key: (jnp.int32(0), {"x": jnp.zeros(1)})},
      r"reset: observation must be float32\[1\], got {x: float32\[1\]}",
    ),
    ({"reset": lambda key: None}, r"reset must return \(state, observation\)"),
    (
      {"step": lambda key, state, action: 1 if action else 2},
      r"step: TracerBool.*_test.py\); in place of if",
    ),
    (
      {"step": lambda key, state, action: (1, 2)},
      "step must return a Transition",
    ),
    (
      {"reward": jnp.int32(1)},
      r"step: reward must be float32\[\], got int32\[\]",
    ),
    ({"reward": jnp.zeros(1)}, r"step: reward must be .* got float32\[1\]"),
    ({"terminated": jnp.int32(0)}, r"step: terminated must be bool\[\]"),
    ({"state": jnp.float32(0)}, r"step: state must be int32\[\]"),
  ],
)
def test_what_an_environment_returns_is_checked(changes, line):
  def step(key, state, action):
    found = {
      "state": state,
      "observation": jnp.zeros(1),
      "reward": jnp.float32(0),
      "terminated": jnp.bool_(False),
      "truncated": jnp.bool_(True),
    }
    return environments.Transition(
      **{name: changes.get(name, value) for name, value in found.items()}
    )

  own = {
    "name": "mine",
    "observation_shape": (1,),
    "num_actions": 2,
    "max_episode_steps": 5,
    "reset": lambda key: (jnp.int32(0), jnp.zeros(1)),
    "step": step,
  }
  environment = environments.Environment(
    **(own | {k: v for k, v in changes.items() if k in own})
  )
  with pytest.raises(ValueError, match=f"environment mine: {line}"):
    environments.check_environment(environment)
