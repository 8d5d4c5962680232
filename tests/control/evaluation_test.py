import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax.control import evaluation
from lco_jax.environments import gymnasium_env

pytestmark = pytest.mark.third_party


def _pole(params, observation):
  """Pushes under the falling pole, which balances it; `params` scales this."""
  lean = observation[:, 2] + observation[:, 3]
  return params * jnp.stack([-lean, lean], axis=-1)


def test_host_evaluation_counts_the_first_episode_of_each_copy():
  """By hand: step single environments with the same seeds and actions."""
  params = jnp.array([1.0, -1.0])
  environment = gymnasium_env.make("CartPole-v1")
  returns = evaluation.on_host(
    environment, _pole, params, seed=5, num_episodes=3, greedy=True
  )
  assert returns.shape == (2, 3)
  for policy in range(2):
    for episode in range(3):
      single = gymnasium.make("CartPole-v1")
      observation, _ = single.reset(seed=5 + 3 * policy + episode)
      total, over = 0.0, False
      while not over:
        logits = _pole(params[policy], jnp.asarray(observation)[None])
        observation, reward, terminated, truncated, _ = single.step(
          int(jnp.argmax(logits))
        )
        total += reward
        over = terminated or truncated
      assert returns[policy, episode] == total
  assert (returns[0] > 100).all() and (returns[1] < 20).all()


def test_greedy_and_sampled_differ():
  environment = gymnasium_env.make("CartPole-v1")
  flat = jnp.array([1e-6])  # Nearly uniform: only greedily is it any good.
  greedy, sampled, again = (
    evaluation.on_host(environment, _pole, flat, 0, num_episodes=10, greedy=g)
    for g in (True, False, False)
  )
  assert greedy.mean() > 100 > sampled.mean()
  np.testing.assert_array_equal(again, sampled)
