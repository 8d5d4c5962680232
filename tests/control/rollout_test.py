import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import environments
from lco_jax.control import rollout

pytestmark = pytest.mark.third_party


def _collect(
  name, num_envs=3, num_steps=40, policy=None, seed=0, first=0, **options
):
  """A rollout of environments first, first + 1, ..."""
  environment = environments.make(name)
  if policy is None:
    policy = lambda params, observation: jnp.zeros(
      (len(observation), environment.num_actions)
    )
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
    jax.random.key(seed), first + jnp.arange(num_envs)
  )
  actor = rollout.start(environment, keys)
  collect = rollout.make_collect(environment, policy, num_steps, **options)
  return actor, *jax.jit(collect)(None, actor, keys)


def test_trajectory_is_consistent():
  start, end, trajectory = _collect("CartPole-v1")
  done = np.asarray(trajectory.done)
  assert trajectory.observation.shape == (40, 3, 4)
  assert done.any()
  np.testing.assert_array_equal(trajectory.observation[0], start.observation)
  # Within an episode the successor is what is seen next ...
  next_seen = np.concatenate(
    [trajectory.observation[1:], end.observation[None]]
  )
  np.testing.assert_array_equal(
    np.asarray(trajectory.next_observation)[~done], next_seen[~done]
  )
  # ... and at its end it is the true last state, not the fresh start.
  assert np.abs(np.asarray(trajectory.next_observation)[done]).max() > 0.1
  assert np.abs(next_seen[done]).max() <= 0.05
  np.testing.assert_array_equal(
    trajectory.terminated, trajectory.done
  )  # No time limit is reached here.


def test_episode_statistics_are_sums_of_rewards():
  _, end, trajectory = _collect("CartPole-v1")
  for n in range(3):
    total = length = 0
    for t in range(40):
      total += trajectory.reward[t, n]
      length += 1
      assert trajectory.episode_return[t, n] == total
      assert trajectory.episode_length[t, n] == length
      if trajectory.done[t, n]:
        total = length = 0
    assert end.episode_return[n] == total
    assert end.episode_length[n] == length


def test_noise_is_on_recorded_rewards_alone():
  _, end, plain = _collect("CartPole-v1", 8, 200)
  _, noisy_end, noisy = _collect("CartPole-v1", 8, 200, reward_noise=2.0)
  jax.tree.map(np.testing.assert_array_equal, end, noisy_end)
  error = np.asarray(noisy.reward - plain.reward)
  assert abs(error.mean()) < 0.2 and abs(error.std() - 2.0) < 0.15
  assert len(np.unique(error)) > 0.99 * error.size
  # Apart from what actions are drawn with.
  noise = jax.vmap(
    lambda n: jax.random.gumbel(
      jax.random.split(jax.random.fold_in(jax.random.key(0), n), 3)[0], (200, 2)
    )
  )(jnp.arange(8))
  drawn = np.asarray(noise.reshape(8, -1)[:, :200]).T
  assert abs(np.corrcoef(drawn.ravel(), error.ravel())[0, 1]) < 0.1
  restored = dataclasses.replace(noisy, reward=plain.reward)
  jax.tree.map(np.testing.assert_array_equal, plain, restored)


def test_truncation_is_told_apart():
  _, _, trajectory = _collect("probe:truncation", num_steps=6)
  np.testing.assert_array_equal(trajectory.done[:, 0], [0, 1, 0, 1, 0, 1])
  assert not trajectory.terminated.any()


def test_actions_follow_the_behaviour_policy():
  logits = jnp.log(jnp.array([0.2, 0.8]))
  policy = lambda params, observation: jnp.broadcast_to(
    logits, (len(observation), 2)
  )
  _, _, trajectory = _collect(
    "probe:value", num_envs=50, num_steps=200, policy=policy
  )
  frequency = np.mean(np.asarray(trajectory.action))
  assert abs(frequency - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 10_000)
  np.testing.assert_allclose(
    jax.nn.softmax(trajectory.old_logits[0, 0]), [0.2, 0.8], rtol=1e-5
  )


def test_an_environment_does_the_same_beside_whichever_others():
  """What makes a run independent of the number of devices."""
  _, _, together = _collect("CartPole-v1", num_envs=4)
  _, _, apart = _collect("CartPole-v1", num_envs=2, first=2)
  for a, b in zip(
    jax.tree.leaves(together), jax.tree.leaves(apart), strict=True
  ):
    np.testing.assert_array_equal(a[:, 2:], b)
