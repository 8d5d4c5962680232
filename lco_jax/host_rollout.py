"""Collecting experience from host environments: the same Trajectory.

The copies of all seeds are one vector environment; devices choose the actions,
the host steps. Each process steps those of its own devices. Episodes under way
are not part of the learner's state: a run that is resumed begins new ones.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lco_jax import finiteness, training, types
from lco_jax import placement as placement_lib

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
    environment: types.HostEnvironment,
    policy: types.Apply,
    task: training.Training,
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
        training.collection_keys(task, placement.num_shards, state), time
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

  def collect(self, state: types.LearnerState) -> types.Trajectory:
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

  def _step(self, action: np.ndarray, logits: np.ndarray) -> types.Trajectory:
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


class Collector(Protocol):
  """What collects on the host.

  Attributes:
    rollout: the last one, [devices, seeds, T, N, ...].
  """

  rollout: Any

  def collect(self, state: types.LearnerState) -> Any:
    """The rollout of the update that follows a state [devices, seeds, ...]."""
    ...

  def close(self) -> None:
    """Ends what runs beside."""
    ...


def make_programs(
  collector: Collector,
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
    metrics [length, seeds] on the host). It ends with the first update that is
    not finite, the collector's rollout being that update's.
  """

  def learn_one(state, rollout):
    actor = task.follow(state.actor, rollout, state.update)
    return training.learn_step(task, state, actor, rollout)

  def learn(state, rollout):
    state, metrics = placement_lib.each_seed(learn_one)(state, rollout)
    return state, placement.all_seeds(metrics, axis=0)

  steps = {}  # By the rollout's shapes.

  def run(length, state):
    chunk = []
    for _ in range(length):
      rollout = collector.collect(state)
      shapes = tuple(leaf.shape for leaf in jax.tree.leaves(rollout))
      if shapes not in steps:
        steps[shapes] = placement.compile(
          learn,
          state,
          rollout,
          donate_argnums=0,
          long_reductions=task.long_reductions,
        )
      state, metrics = steps[shapes](state, rollout)
      chunk.append(placement.common(metrics))
      required = finiteness.always_finite(chunk[-1])
      if not all(np.isfinite(values).all() for values in required.values()):
        break
    return state, jax.tree.map(lambda *x: np.stack(x), *chunk)

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
