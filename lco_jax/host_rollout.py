"""Collecting experience from host environments: the same Trajectory.

The copies of all seeds are one vector environment; devices choose the actions,
the host steps. Episodes under way are not part of the learner's state: a run
that is resumed begins new ones.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lco_jax import placement as placement_lib
from lco_jax import training, types

Array = jax.Array


class HostCollector:
  """Steps the environments of all seeds, and remembers where they are.

  Attributes:
    rollout: the last one, a Trajectory [S, T, N, ...] on the host.
  """

  def __init__(
    self,
    environment: types.HostEnvironment,
    policy: types.Apply,
    task: training.Training,
    placement: placement_lib.Placement,
    seeds: np.ndarray,
    first_update: int,
  ):
    """Starts an episode in every copy.

    Args:
      environment: the environment.
      policy: (policy parameters, observation [N, O]) → logits [N, A].
      task: what is trained; it has N streams and T steps.
      placement: of seeds and streams on devices.
      seeds: int[S].
      first_update: from which training goes on; other episodes begin there than
        at the beginning.
    """
    self._environment, self._task, self._placement = (
      environment,
      task,
      placement,
    )
    self._shape = (len(seeds), task.num_streams)
    self._copies = environment.make_copies(len(seeds) * task.num_streams)
    # A copy's seed is its own: the same whatever runs beside it.
    words = [
      np.random.SeedSequence([seed, stream, first_update]).generate_state(1)
      for seed in seeds
      for stream in range(task.num_streams)
    ]
    observation, _ = self._copies.reset(seed=[int(w[0] >> 1) for w in words])
    self._observation = self._encode(observation)
    self._return = np.zeros(self._shape, np.float32)
    self._length = np.zeros(self._shape, np.int32)
    self.rollout = None

    def act(state, observation, time):
      keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(
        training.collection_keys(task, placement.num_shards, state), time
      )
      logits = policy(state.params["policy"], observation)
      noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(
        keys
      )
      return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32), logits

    self._act = placement.map(jax.vmap(act, in_axes=(0, 0, None)))

  def _encode(self, observation: np.ndarray) -> np.ndarray:
    """Observations of all copies as float32[S, N, O]."""
    encoded = self._environment.encode(observation)
    return encoded.reshape(*self._shape, *encoded.shape[1:])

  def collect(self, state: types.LearnerState) -> types.Trajectory:
    """Takes T steps in every environment.

    Args:
      state: learner state [devices, seeds, ...].

    Returns:
      Trajectory [S, T, N, ...] on the host.
    """
    num_devices = len(self._placement.devices)
    steps = []
    for time in range(self._task.num_steps):
      action, logits = map(
        self._placement.collect_streams,
        self._act(
          state,
          self._placement.deal_streams(self._observation),
          np.full(num_devices, time, np.int32),
        ),
      )
      steps.append(self._step(action, logits))
    self.rollout = jax.tree.map(lambda *x: np.stack(x, axis=1), *steps)
    return self.rollout

  def _step(self, action: np.ndarray, logits: np.ndarray) -> types.Trajectory:
    """One step of every copy, [S, N, ...]."""
    following, reward, terminated, truncated, info = self._copies.step(
      action.reshape(-1)
    )
    # A copy whose episode ended has begun the next; what it saw last is here.
    successor = np.array(following)
    for copy in np.flatnonzero(terminated | truncated):
      successor[copy] = info["final_obs"][copy]
    reward, terminated, done = (
      np.reshape(x, self._shape)
      for x in (reward, terminated, terminated | truncated)
    )
    self._return = self._return + reward.astype(np.float32)
    self._length = self._length + 1
    step = types.Trajectory(
      observation=self._observation,
      action=action,
      behaviour_logits=logits,
      reward=reward.astype(np.float32),
      next_observation=self._encode(successor),
      terminated=terminated,
      done=done,
      episode_return=self._return,
      episode_length=self._length,
    )
    self._observation = self._encode(following)
    self._return = np.where(done, np.float32(0), self._return)
    self._length = np.where(done, np.int32(0), self._length)
    return step

  def close(self) -> None:
    """Closes the environments."""
    self._copies.close()


def make_programs(
  collector: HostCollector,
  task: training.Training,
  placement: placement_lib.Placement,
  lengths: Sequence[int],
) -> dict[int, Callable]:
  """The programs of `training.compile_chunks`, with a host that collects.

  Args:
    collector: of the run.
    task: what to train.
    placement: of the state.
    lengths: numbers of updates in a chunk.

  Returns:
    {length: program}; a program takes and consumes a state and returns (state,
    metrics [devices, length, seeds]). It ends with the first update that is not
    finite, the collector's rollout being that update's.
  """

  def learn(state, rollout):
    return training.learn_step(task, state, state.actor, rollout)

  step = placement.map(jax.vmap(learn), donate_argnums=0)

  def run(length, state):
    chunk = []
    for _ in range(length):
      rollout = jax.tree.map(
        lambda leaf: placement.deal_streams(leaf, axis=2),
        collector.collect(state),
      )
      state, metrics = step(state, rollout)
      chunk.append(jax.tree.map(np.asarray, metrics))
      required = training.always_finite(chunk[-1])
      if not all(np.isfinite(values).all() for values in required.values()):
        break
    return state, jax.tree.map(lambda *x: np.stack(x, axis=1), *chunk)

  return {length: functools.partial(run, length) for length in set(lengths)}


def blank_trajectory(
  environment: types.HostEnvironment, num_steps: int, num_streams: int
) -> types.Trajectory:
  """A Trajectory of zeros [T, N, ...], as one seed's rollouts are shaped."""
  shape = (num_steps, num_streams)
  observation = np.zeros((*shape, *environment.observation_shape), np.float32)
  return types.Trajectory(
    observation=observation,
    action=np.zeros(shape, np.int32),
    behaviour_logits=np.zeros((*shape, environment.num_actions), np.float32),
    reward=np.zeros(shape, np.float32),
    next_observation=observation,
    terminated=np.zeros(shape, bool),
    done=np.zeros(shape, bool),
    episode_return=np.zeros(shape, np.float32),
    episode_length=np.zeros(shape, np.int32),
  )
