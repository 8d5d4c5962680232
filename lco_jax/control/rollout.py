"""Collecting experience from in-graph environments, in one scan.

Randomness is drawn before the scan, in one batch for all steps, and belongs to
the environment: each of the N environments has a key of its own, so what it
does is the same wherever, and beside whichever others, it runs.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import environments, types
from lco_jax.control import data

Collect = Callable[
  [types.Params, data.ActorState, types.PRNGKey],
  tuple[data.ActorState, data.Trajectory],
]


def start(
  environment: environments.Environment,
  keys: types.PRNGKey,
  return_discount: float | None = None,
) -> data.ActorState:
  """Starts an episode in every environment.

  Args:
    environment: the environment.
    keys: PRNG keys [N], one for each environment.
    return_discount: as of `make_collect`.
  """
  environment_state, observation = jax.vmap(environment.reset)(keys)
  return data.ActorState(
    environment_state=environment_state,
    observation=observation,
    episode_return=jnp.zeros(len(keys), jnp.float32),
    episode_length=jnp.zeros(len(keys), jnp.int32),
    discounted_return=None
    if return_discount is None
    else jnp.zeros(len(keys), jnp.float32),
  )


def make_collect(
  environment: environments.Environment,
  policy: types.Apply,
  num_steps: int,
  reward_noise: float = 0.0,
  return_discount: float | None = None,
) -> Collect:
  """Builds the collector: T steps of the sampled policy in N environments.

  Args:
    environment: the environment; episodes that end are restarted.
    policy: (parameters, observation [N, O]) → logits [N, A], or [N, D, A] for
      an action of D dimensions.
    num_steps: T.
    reward_noise: standard deviation of what is added to every recorded reward,
      ≥ 0; episodes' returns are without it.
    return_discount: γ of discounted returns; None to keep none.

  Returns:
    (parameters, ActorState, PRNG keys [N]) → (ActorState, Trajectory [T, N]).
  """

  def draw(key):
    """All that is random in one environment's rollout, step by step."""
    action_key, step_key, reset_key = jax.random.split(key, 3)
    shape = environments.logits_shape(environment)
    noise = jax.random.gumbel(action_key, (num_steps, *shape))
    step_keys = jax.random.split(step_key, num_steps)
    resets = jax.vmap(environment.reset)(jax.random.split(reset_key, num_steps))
    return noise, step_keys, resets

  def collect(params, actor, keys):
    randomness = jax.vmap(draw, out_axes=1)(keys)

    def step(actor, randomness_t):
      noise, step_keys, (reset_state, reset_observation) = randomness_t
      logits = policy(params, actor.observation)
      # The Gumbel-max trick: argmax of logits plus noise samples the softmax.
      action = jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)
      transition = jax.vmap(environment.step)(
        step_keys, actor.environment_state, action
      )
      done = transition.terminated | transition.truncated
      episode_return = actor.episode_return + transition.reward
      episode_length = actor.episode_length + 1
      discounted = None
      if return_discount is not None:
        discounted = (
          return_discount * actor.discounted_return + transition.reward
        )
      recorded = data.Trajectory(
        observation=actor.observation,
        action=action,
        old_logits=logits,
        reward=transition.reward,
        next_observation=transition.observation,
        terminated=transition.terminated,
        done=done,
        episode_return=episode_return,
        episode_length=episode_length,
        discounted_return=discounted,
      )
      actor = data.ActorState(
        environment_state=_select(done, reset_state, transition.state),
        observation=_select(done, reset_observation, transition.observation),
        episode_return=jnp.where(done, 0.0, episode_return),
        episode_length=jnp.where(done, 0, episode_length),
        discounted_return=None
        if discounted is None
        else jnp.where(done, 0.0, discounted),
      )
      return actor, recorded

    actor, trajectory = jax.lax.scan(step, actor, randomness)
    if reward_noise:
      # A key apart, so that all else is as it is without noise: the three of
      # `draw` are those of 0, 1 and 2.
      error = jax.vmap(
        lambda key: jax.random.normal(jax.random.fold_in(key, 3), (num_steps,)),
        out_axes=1,
      )(keys)
      trajectory = dataclasses.replace(
        trajectory, reward=trajectory.reward + reward_noise * error
      )
    return actor, trajectory

  return collect


def _select(done: Array, if_done, otherwise):
  """Chooses pytrees row by row; `done` is bool[N], leaves are [N, ...]."""

  def choose(a, b):
    mask = done.reshape(done.shape + (1,) * (b.ndim - 1))
    return jnp.where(mask, a, b).astype(b.dtype)

  return jax.tree.map(choose, if_done, otherwise)
