"""Evaluation of trained policies: whole episodes, greedy or sampled.

Every copy of the environment plays exactly one episode: playing on until a
number of episodes is reached would favour the short ones. Policies of several
training seeds are evaluated side by side; parameters have a leading axis S.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lco_jax import environments, types


def in_graph(
  environment: environments.Environment,
  policy: types.Apply,
  params: types.Params,
  key: types.PRNGKey,
  num_episodes: int,
  greedy: bool,
) -> np.ndarray:
  """Undiscounted returns in an in-graph environment.

  Args:
    environment: the environment.
    policy: (parameters, observation [E, O]) → logits [E, A], or
      [E, D, A] for an action of D dimensions.
    params: policies' parameters [S, ...].
    key: PRNG key.
    num_episodes: E, episodes of each policy.
    greedy: whether to take the likeliest action, or to sample.

  Returns:
    float[S, E].
  """

  def run(params, key):
    reset_key, run_key = jax.random.split(key)
    reset_keys = jax.random.split(reset_key, num_episodes)
    state, observation = jax.vmap(environment.reset)(reset_keys)

    def step(carry, step_key):
      state, observation, returns, ended = carry
      action_key, environment_key = jax.random.split(step_key)
      action = _act(policy(params, observation), action_key, greedy)
      transition = jax.vmap(environment.step)(
        jax.random.split(environment_key, num_episodes), state, action
      )
      returns += jnp.where(ended, 0.0, transition.reward)
      ended = ended | transition.terminated | transition.truncated
      return (transition.state, transition.observation, returns, ended), None

    start = (
      state,
      observation,
      jnp.zeros(num_episodes),
      jnp.zeros(num_episodes, bool),
    )
    keys = jax.random.split(run_key, environment.max_episode_steps)
    (_, _, returns, _), _ = jax.lax.scan(step, start, keys)
    return returns

  num_policies = len(jax.tree.leaves(params)[0])
  keys = jax.random.split(key, num_policies)
  return np.asarray(jax.jit(jax.vmap(run))(params, keys))


def on_host(
  environment: environments.HostEnvironment,
  policy: types.Apply,
  params: types.Params,
  seed: int,
  num_episodes: int,
  greedy: bool,
) -> np.ndarray:
  """Undiscounted returns in a host environment.

  Arguments are those of `in_graph`, but for the seed of the environments and
  sampled actions in place of a key.

  Returns:
    float[S, E].
  """
  num_policies = len(jax.tree.leaves(params)[0])

  @jax.jit
  def act(observation, key):
    observation = observation.reshape(num_policies, -1, *observation.shape[1:])
    action = _act(jax.vmap(policy)(params, observation), key, greedy)
    return action.reshape(-1, *action.shape[2:])

  key = jax.random.key(seed)
  copies = environment.make_copies(num_policies * num_episodes)
  observation, _ = copies.reset(seed=seed)
  returns = np.zeros(copies.num_envs)
  running = np.ones(copies.num_envs, bool)
  time = 0
  while running.any():
    encoded = environment.encode(observation)
    action = np.asarray(act(encoded, jax.random.fold_in(key, time)))
    observation, reward, terminated, truncated, _ = copies.step(action)
    returns += np.where(running, reward, 0.0)
    running &= ~(terminated | truncated)
    time += 1
  copies.close()
  return returns.reshape(num_policies, -1)


def _act(logits: Array, key: types.PRNGKey, greedy: bool) -> Array:
  if greedy:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  return jax.random.categorical(key, logits).astype(jnp.int32)
