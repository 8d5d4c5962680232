"""Collecting experience from host environments: the same Trajectory.

The copies of all seeds are one vector environment; devices choose the actions,
the host steps. Each process steps those of its own devices. Episodes under way
are not part of the learner's state: a run that is resumed begins new ones.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lco_jax import environments, types
from lco_jax.control import data
from lco_jax.training import placement as placement_lib
from lco_jax.training import program

Array = jax.Array


class HostCollector:
  """Steps the environments of this process, and remembers where they are.

  D is the number of the process' devices, S and N are the seeds and streams on
  each.

  Attributes:
    rollout: the last one, a Trajectory [devices, S, T, N, ...].
  """

  def __init__(
    self,
    environment: environments.HostEnvironment,
    policy: types.Apply,
    task: program.Training,
    placement: placement_lib.Placement,
    seeds: Sequence[int],
    first_update: int,
  ):
    """Starts an episode in every copy.

    Args:
      environment: the environment.
      policy: (policy parameters, observation [N, O]) → logits [N, A].
      task: what is trained; its streams are environments.
      placement: of seeds and streams on devices.
      seeds: of the run.
      first_update: from which training goes on; other episodes begin there than
        at the beginning.
    """
    self._environment, self._task, self._placement = (
      environment,
      task,
      placement,
    )
    seed, stream = (
      placement.deal_streams(index)[placement.local_devices]
      for index in np.meshgrid(
        np.asarray(seeds), np.arange(task.num_streams), indexing="ij"
      )
    )
    self._shape = seed.shape
    self._copies = environment.make_copies(seed.size)
    # A copy's seed is its own: the same whatever runs beside it.
    words = [
      np.random.SeedSequence([*pair, first_update]).generate_state(1)
      for pair in zip(seed.flat, stream.flat, strict=True)
    ]
    observation, _ = self._copies.reset(seed=[int(w[0] >> 1) for w in words])
    self._observation = self._encode(observation)
    self._return = np.zeros(self._shape, np.float32)
    self._length = np.zeros(self._shape, np.int32)
    self._act = None
    self.rollout = None

    def act(state, observation, time):
      keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(
        program.collection_keys(task, placement.num_shards, state), time
      )
      logits = policy(state.params["policy"], observation)
      noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(
        keys
      )
      return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32), logits

    self._choose = jax.vmap(act, in_axes=(0, 0, None))

  def _encode(self, observation: np.ndarray) -> np.ndarray:
    """Observations of all copies as float32[D, S, N, O]."""
    encoded = self._environment.encode(observation)
    return encoded.reshape(*self._shape, *encoded.shape[1:])

  def collect(self, state: types.LearnerState) -> data.Trajectory:
    """Takes T steps in every environment.

    Args:
      state: learner state [devices, seeds, ...].

    Returns:
      Trajectory [devices, S, T, N, ...], on the devices.
    """
    where = self._placement
    steps = []
    for time in range(self._task.num_steps):
      arguments = (
        state,
        where.put_local(self._observation),
        where.put_local(np.full(len(self._observation), time, np.int32)),
      )
      if self._act is None:
        self._act = where.compile(self._choose, *arguments)
      steps.append(self._step(*where.local(self._act(*arguments))))
    self.rollout = where.put_local(
      jax.tree.map(lambda *x: np.stack(x, axis=2), *steps)
    )
    return self.rollout

  def _step(self, action: np.ndarray, logits: np.ndarray) -> data.Trajectory:
    """One step of every copy, [D, S, N, ...]."""
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
    step = data.Trajectory(
      observation=self._observation,
      action=action,
      old_logits=logits,
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


def blank_trajectory(
  environment: environments.HostEnvironment, num_steps: int, num_streams: int
) -> data.Trajectory:
  """A Trajectory of zeros [T, N, ...], as one seed's rollouts are shaped."""
  shape = (num_steps, num_streams)
  observation = np.zeros((*shape, *environment.observation_shape), np.float32)
  return data.Trajectory(
    observation=observation,
    action=np.zeros(shape, np.int32),
    old_logits=np.zeros((*shape, environment.num_actions), np.float32),
    reward=np.zeros(shape, np.float32),
    next_observation=observation,
    terminated=np.zeros(shape, bool),
    done=np.zeros(shape, bool),
    episode_return=np.zeros(shape, np.float32),
    episode_length=np.zeros(shape, np.int32),
  )
