"""Collecting experience from host environments: the same Trajectory.

The copies of all seeds are one vector environment; devices choose the actions,
the host steps. Each process steps those of its own devices. Episodes under way
are not part of the learner's state: a run that is resumed begins new ones.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lco_jax import environments, types
from lco_jax.control import data
from lco_jax.training import memory, phases, placement, program, transfers


class HostCollector:
  """Steps the environments of this process, and remembers where they are.

  S and N are the seeds and streams of this process. Its owner closes it.
  """

  def __init__(
    self,
    environment: environments.HostEnvironment,
    policy: types.Apply,
    training: program.Training,
    mesh: Mesh,
    seeds: Sequence[int],
    first_update: int,
    return_discount: float | None = None,
  ):
    """Starts an episode in every copy.

    Args:
      environment: the environment.
      policy: (parameters by part, observation [N, O]) → logits [N, A], or
        [N, D, A] for an action of D dimensions.
      training: what is trained; its streams are environments.
      mesh: that seeds and streams are divided over.
      seeds: of the run.
      first_update: from which training goes on; other episodes begin there than
        at the beginning.
      return_discount: γ of discounted returns; None to keep none.
    """
    self._environment, self._policy = environment, policy
    self._training, self._mesh = training, mesh
    pairs = np.meshgrid(
      np.asarray(seeds, np.uint32),
      np.arange(training.num_streams, dtype=np.uint32),
      indexing="ij",
    )
    seed, stream = transfers.read_local(
      transfers.to_devices(pairs, mesh, placement.STREAMS)
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
    self._return_discount = return_discount
    self._discounted = np.zeros(self._shape, np.float32)
    self._act = None  # Compiled when the first state is known.
    self.phases = phases.Phases()

  def _encode(self, observation: np.ndarray) -> np.ndarray:
    """Observations of all copies as float32[S, N, O]."""
    encoded = self._environment.encode(observation)
    return encoded.reshape(*self._shape, *encoded.shape[1:])

  def collect(self, state: types.LearnerState) -> data.Trajectory:
    """Takes T steps in every environment.

    Args:
      state: the learner state, on the mesh.

    Returns:
      Trajectory [seeds, T, N, ...] of all processes, on the mesh.
    """
    with self.phases.measure(phases.ACTING):
      steps = [
        self._act_once(state, time) for time in range(self._training.num_steps)
      ]
    return transfers.put_local(
      jax.tree.map(lambda *x: np.stack(x, axis=1), *steps),
      self._mesh,
      placement.ROLLOUTS,
    )

  def _act_once(self, state: types.LearnerState, time: int) -> data.Trajectory:
    """One step in every environment."""
    arguments = (
      transfers.to_devices(np.int32(time), self._mesh, placement.EVERYWHERE),
      state,
      transfers.put_local(self._observation, self._mesh, placement.STREAMS),
    )
    if self._act is None:
      self._act = placement.compile(
        self._choose_all,
        self._mesh,
        (placement.EVERYWHERE, placement.STATE, placement.STREAMS),
        placement.STREAMS,
        *arguments,
      )
    return self._step(*transfers.read_local(self._act(*arguments)))

  def _choose_all(self, time, state, observation):
    """Actions of one device's seeds and streams, and their logits."""
    choose = functools.partial(self._choose, time)
    return placement.each_seed(choose)(state, observation)

  def _choose(self, time, state, observation):
    """Actions [N] of one seed's streams, and their logits [N, A]."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(
      program.collection_keys(self._training, state), time
    )
    logits = self._policy(memory.acting(state.params), observation)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32), logits

  def _step(self, action: np.ndarray, logits: np.ndarray) -> data.Trajectory:
    """One step of every copy, [S, N, ...]."""
    following, reward, terminated, truncated, info = self._copies.step(
      action.reshape(self._copies.num_envs, *action.shape[2:])
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
    discounted = None
    if self._return_discount is not None:
      discounted = np.float32(
        self._return_discount
      ) * self._discounted + reward.astype(np.float32)
      self._discounted = np.where(done, np.float32(0), discounted)
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
      discounted_return=discounted,
    )
    self._observation = self._encode(following)
    self._return = np.where(done, np.float32(0), self._return)
    self._length = np.where(done, np.int32(0), self._length)
    return step

  def close(self) -> None:
    """Closes the environments."""
    self._copies.close()


def blank_trajectory(
  environment: environments.HostEnvironment,
  num_steps: int,
  num_streams: int,
  return_discount: float | None = None,
) -> data.Trajectory:
  """A Trajectory of zeros [T, N, ...], as one seed's rollouts are shaped."""
  shape = (num_steps, num_streams)
  logits_shape = environments.logits_shape(environment)
  observation = np.zeros((*shape, *environment.observation_shape), np.float32)
  return data.Trajectory(
    observation=observation,
    action=np.zeros((*shape, *logits_shape[:-1]), np.int32),
    old_logits=np.zeros((*shape, *logits_shape), np.float32),
    reward=np.zeros(shape, np.float32),
    next_observation=observation,
    terminated=np.zeros(shape, bool),
    done=np.zeros(shape, bool),
    episode_return=np.zeros(shape, np.float32),
    episode_length=np.zeros(shape, np.int32),
    discounted_return=None
    if return_discount is None
    else np.zeros(shape, np.float32),
  )
