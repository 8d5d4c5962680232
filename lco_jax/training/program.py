"""The training program: one scanned step for every kind of task.

    collect → prepare (advantages, targets; once) → epochs × minibatches

What differs between tasks comes in as the functions of a `Training`. A step is
written for one device's share of one seed, under an axis DATA_AXIS. A chunk
of steps is one compiled program: scanned over updates, vmapped over a device's
seeds, sharded over a mesh. Axes of the learner state: [seeds, ...], the
actor's [seeds, N, ...].
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from lco_jax import numerics, types
from lco_jax.training import finiteness, placement, transfers
from lco_jax.training import update as update_lib

DATA_AXIS = numerics.DATA_AXIS

_MAX_CHUNK = 200


@dataclasses.dataclass(frozen=True)
class Training:
  """All that defines a training run, as functions of one device's share.

  A stream is one of the N independent sources of experience on a device (an
  environment); T is the number of steps that a rollout takes in each.

  Attributes:
    init_params: key → {part: parameters}; or (key, {part: parameters}) → the
      same, where a run can begin with given ones.
    init_actor: keys [N] → collector's state, without typed PRNG keys.
    collect: (params, collector's state, keys [N]) → (collector's state,
      rollout [T, N, ...]); None where the host collects.
    prepare: (params, rollout) → (batch [T, N, ...], metrics over all devices).
    update: from `update.make_update`.
    assess: (params before the epochs, params, batch) → metrics over all
      devices, after the epochs.
    optimizers: {part: optax optimizer}, those that `update` applies. Parts of
      the parameters without one stay as they are.
    headline: name of the metric to show while training.
    num_streams: N, streams over all devices.
    num_steps: T.
    num_epochs: passes over each rollout.
    num_minibatches: minibatches of each pass, a divisor of T.
    follow: (collector's state, rollout, completed updates int32[]) → the
      collector's state after it, where the host collects.
    remember: (parameters before, parameters after, rollout, metrics over all
      devices) → parameters after, where parts of them are kept without an
      optimizer.
    max_kl: KL of a minibatch at which the policy's epochs stop, > 0, nats; see
      `update.run_epochs`. None for none.
    samples_per_step: samples that a step of a stream consists of.
    long_reductions: whether an update sums over thousands of rows, as that of a
      transformer does.
    count_packed: mask of a device's samples bool[G, N, C] → int32[], places for
      the packed tokens of a step; None if it reads samples whole.
    counts: {metric that may be NaN: metric that counts the values it is a mean
      of}. All other metrics must be finite for an update to be applied.
  """

  init_params: Callable[..., dict[str, types.Params]]
  init_actor: Callable[[types.PRNGKey], Any]
  collect: Callable[[dict[str, types.Params], Any, types.PRNGKey], Any] | None
  prepare: Callable[[dict[str, types.Params], Any], tuple[Any, types.Metrics]]
  update: update_lib.Update
  assess: Callable[
    [dict[str, types.Params], dict[str, types.Params], Any], types.Metrics
  ]
  optimizers: dict[str, optax.GradientTransformation]
  headline: str
  num_streams: int
  num_steps: int
  num_epochs: int
  num_minibatches: int
  follow: Callable[[Any, Any, Array], Any] = lambda actor, rollout, done: actor
  remember: Callable[[Any, Any, Any, types.Metrics], Any] = (
    lambda before, after, rollout, metrics: after
  )
  max_kl: float | None = None
  samples_per_step: int = 1
  long_reductions: bool = False
  count_packed: Callable[[Array], Array] | None = None
  counts: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name in ("num_streams", "num_steps", "num_epochs", "num_minibatches"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be ≥ 1, got {getattr(self, name)}")
    if self.max_kl is not None and not 0 < self.max_kl < float("inf"):
      raise ValueError(f"max_kl must be positive and finite, got {self.max_kl}")
    if self.max_kl is not None and self.num_epochs * self.num_minibatches == 1:
      raise ValueError("max_kl: one step on a batch leaves nothing to stop")
    if self.num_steps % self.num_minibatches:
      raise ValueError(
        f"num_minibatches {self.num_minibatches} does not divide"
        f" num_steps {self.num_steps}"
      )

  @property
  def steps_per_update(self) -> int:
    """Environment steps, or samples, in one update of one seed."""
    return self.num_streams * self.num_steps * self.samples_per_step


class Record(NamedTuple):
  """The course of one update of one seed on one device, in order.

  Attributes:
    rollout: this device's share, [T, N, ...].
    batch: made from it, [T, N, ...].
    before: metrics over all devices, before the epochs.
    minibatches: metrics over all devices, Averages of [minibatches].
    after: metrics over all devices, after the epochs.
  """

  rollout: Any
  batch: Any
  before: types.Metrics
  minibatches: dict[str, numerics.Average]
  after: types.Metrics


def train_step(
  training: Training, state: types.LearnerState
) -> tuple[types.LearnerState, types.Metrics]:
  """One update of one seed on one device's share of the streams.

  An update in which a metric is not finite is not applied: the state stays as
  it was, and as randomness is keyed by the state's update number, every later
  step meets the same update again and leaves the state as it was, too.

  Args:
    training: what to train.
    state: of one seed on one device, under an axis DATA_AXIS.

  Returns:
    The next state, and metrics that are the same on every device.
  """
  actor, rollout = collect_step(training, state)
  return learn_step(training, state, actor, rollout)


def collect_step(
  training: Training, state: types.LearnerState
) -> tuple[Any, Any]:
  """Collects the rollout of the update that follows a state.

  Args:
    training: what to train.
    state: of one seed on one device.

  Returns:
    (the collector's state after it, rollout [T, N, ...]).
  """
  return training.collect(
    state.params, state.actor, collection_keys(training, state)
  )


def collection_keys(
  training: Training, state: types.LearnerState
) -> types.PRNGKey:
  """Derives the keys [N] of this device's streams for the next rollout."""
  collect_key, _ = _update_keys(state)
  return _stream_keys(collect_key, _own_streams(training))


def learn_step(
  training: Training, state: types.LearnerState, actor: Any, rollout: Any
) -> tuple[types.LearnerState, types.Metrics]:
  """Learns from a rollout, as the second part of `train_step`.

  Args:
    training: what to train.
    state: from which the rollout was collected.
    actor: the collector's state after the rollout.
    rollout: this device's share, [T, N, ...].
  """
  params, opt_state, record = learn(training, state, rollout)
  metrics = (
    record.before
    | {
      name: numerics.Average(jnp.sum(a.total), jnp.sum(a.count)).mean
      for name, a in record.minibatches.items()
    }
    | record.after
    | {
      f"{part}_parameter_norm": optax.tree.norm(params[part])
      for part in training.optimizers
    }
  )
  following = dataclasses.replace(
    state,
    params=training.remember(state.params, params, rollout, metrics),
    opt_state=opt_state,
    actor=actor,
    update=state.update + 1,
  )
  required = finiteness.always_finite(metrics, training.counts)
  healthy = jnp.all(jnp.isfinite(jnp.stack(list(required.values()))))
  state = jax.tree.map(
    lambda new, old: jnp.where(healthy, new, old), following, state
  )
  return state, metrics


def learn(
  training: Training, state: types.LearnerState, rollout: Any
) -> tuple[dict[str, types.Params], dict[str, Any], Record]:
  """Prepares a rollout and passes the epochs over it.

  Args:
    training: what to train.
    state: of one seed on one device.
    rollout: this device's share, [T, N, ...].

  Returns:
    (parameters, optimizer states, what happened).
  """
  batch, before = training.prepare(state.params, rollout)
  num_streams = jax.tree.leaves(rollout)[0].shape[1]
  _, shuffle_key = _update_keys(state)
  indices = update_lib.minibatch_indices(
    _stream_keys(shuffle_key, num_streams),
    training.num_steps,
    training.num_epochs,
    training.num_minibatches,
  )
  params, opt_state, minibatches = update_lib.run_epochs(
    training.update,
    state.params,
    state.opt_state,
    batch,
    indices,
    training.max_kl,
  )
  after = training.assess(state.params, params, batch)
  return (
    params,
    opt_state,
    Record(rollout, batch, before, minibatches, after),
  )


def initial_state(
  training: Training,
  seeds: Sequence[int],
  mesh: Mesh,
  given: Mapping[str, types.Params] | None = None,
  learning_rates: Sequence[float] | None = None,
) -> types.LearnerState:
  """Builds the learner state before the first update.

  Parameters are initialised seed by seed: a vmapped orthogonal initialiser can
  deadlock the CPU backend on two cores.

  Args:
    training: what to train.
    seeds: one run each; the same one again for another learning rate.
    mesh: that seeds and streams are divided over.
    given: {part: parameters [seeds, ...]} to begin with, on the host or in
      files, as of `transfers.to_devices`.
    learning_rates: of the policy, for each of the seeds, if its optimizer is
      from `optimizers.make_own_rate`.

  Returns:
    The state with axes [seeds, ...], the actor's with [seeds, N, ...], on the
    mesh.
  """
  # An array on a device would be consumed with the copy that is donated.
  given = jax.tree.map(
    lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf,
    given,
  )
  starts = (
    np.asarray(seeds, np.uint32),
    None if learning_rates is None else np.asarray(learning_rates, np.float32),
    dict(given) if given else None,
  )
  init, specs = _make_init(training), _start_specs(starts, mesh)
  state_specs = placement.STATE
  if placement.divides_parameters(mesh.shape):
    like = placement.find_shapes(init, mesh, specs, state_specs, *starts)
    state_specs = placement.make_state_specs(like, mesh)
  starts = transfers.to_devices(starts, mesh, specs)
  program = placement.compile(
    init,
    mesh,
    specs,
    state_specs,
    *starts,
    donate_argnums=(2,),  # They become the state's.
    once=True,
  )
  return program(*starts)


def describe_state(
  training: Training,
  num_seeds: int,
  mesh: Mesh,
  given: Mapping[str, types.Params] | None = None,
  learning_rates: Sequence[float] | None = None,
) -> types.LearnerState:
  """Finds the shapes of a learner state, without making it.

  Args:
    training: what to train.
    num_seeds: of the run.
    mesh: that seeds and streams are divided over.
    given: {part: shapes of parameters [seeds, ...]} that it begins with.
    learning_rates: of the policy, one for each seed, if they have some.
  """
  rates = None
  if learning_rates is not None:
    rates = jax.ShapeDtypeStruct((num_seeds,), np.float32)
  given = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
    dict(given) if given else None,
  )
  starts = jax.ShapeDtypeStruct((num_seeds,), np.uint32), rates, given
  return placement.find_shapes(
    _make_init(training),
    mesh,
    _start_specs(starts, mesh),
    placement.STATE,
    *starts,
  )


def _start_specs(starts: tuple, mesh: Mesh) -> tuple:
  """Specs of (seeds, learning rates, given parameters)."""
  given = placement.make_param_specs(starts[2], mesh)
  return placement.SEEDS, placement.SEEDS, given


def _make_init(training: Training) -> Callable:
  """(seeds, learning rates, given parameters) → a device's learner state."""

  def init(params, actor_key, run_key, rate):
    opt_state = {
      part: optimizer.init(params[part])
      for part, optimizer in training.optimizers.items()
    }
    if rate is not None:
      opt_state["policy"] = optax.tree.set(opt_state["policy"], step_size=rate)
    return types.LearnerState(
      params=params,
      opt_state=opt_state,
      actor=training.init_actor(
        _stream_keys(actor_key, _own_streams(training))
      ),
      key=jax.random.key_data(run_key),
      update=jnp.int32(0),
    )

  def init_seeds(seeds, rates, given):
    roots = jax.vmap(jax.random.key)(seeds)
    keys = jax.vmap(lambda root: jax.random.split(root, 3))(roots)
    own = (keys[:, 0],) if given is None else (keys[:, 0], given)
    if given is not None and len(seeds) == 1:  # A loop would copy them.
      params = placement.each_seed(training.init_params)(*own)
    else:
      params = jax.lax.map(lambda own: training.init_params(*own), own)
    return jax.vmap(init)(params, keys[:, 1], keys[:, 2], rates)

  return init_seeds


def compile_chunks(
  training: Training,
  mesh: Mesh,
  state: types.LearnerState,
  lengths: Sequence[int],
) -> dict[int, Callable]:
  """Compiles the training program for each chunk length, ahead of time.

  Args:
    training: what to train.
    mesh: that of the state.
    state: a learner state, read for its shapes only.
    lengths: numbers of updates in a chunk.

  Returns:
    {length: program}; a program takes and consumes a state and returns
    (state, metrics [length, seeds]).
  """
  return {
    length: trace_chunk(training, mesh, state, length).compile()
    for length in sorted(set(lengths))
  }


def trace_chunk(
  training: Training, mesh: Mesh, state: types.LearnerState, length: int
) -> placement.Traced:
  """Traces one of the programs of `compile_chunks`."""
  step = placement.each_seed(functools.partial(train_step, training))
  specs = placement.make_state_specs(state, mesh)

  def run(state):
    state, metrics = jax.lax.scan(
      lambda state, _: step(state), state, length=length
    )
    return state, placement.gather_seeds(metrics, axis=1)

  return placement.trace(
    run,
    mesh,
    (specs,),
    (specs, placement.EVERYWHERE),
    state,
    donate_argnums=(0,),
    long_reductions=training.long_reductions,
  )


def default_chunk_length(num_updates: int) -> int:
  """Updates in a chunk so that a run has about 20 to 60 of them, or more.

  Prefers a divisor: a shorter last chunk would be a second program to compile.
  A run is saved and stopped only between chunks, so they stay short.
  """
  least = min(max(1, num_updates // 60), _MAX_CHUNK // 2)
  most = min(max(1, num_updates // 20), _MAX_CHUNK)
  divisors = [n for n in range(least, most + 1) if num_updates % n == 0]
  return max(divisors, default=(least + most + 1) // 2)


def chunk_lengths(num_updates: int, updates_per_chunk: int) -> list[int]:
  """Splits a run into chunks: equal ones, then what remains."""
  whole, rest = divmod(num_updates, updates_per_chunk)
  return [updates_per_chunk] * whole + [rest] * (rest > 0)


def _update_keys(state: types.LearnerState) -> types.PRNGKey:
  """Keys of the update under way: [collecting, shuffling]."""
  key = jax.random.wrap_key_data(state.key)
  return jax.random.split(jax.random.fold_in(key, state.update))


def _own_streams(training: Training) -> int:
  """How many of a seed's streams are this device's."""
  return training.num_streams // jax.lax.axis_size(DATA_AXIS)


def _stream_keys(key: types.PRNGKey, num_streams: int) -> types.PRNGKey:
  """Folds the global index of each of this device's streams into a key."""
  first = numerics.axis_index(DATA_AXIS) * num_streams
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
    key, first + jnp.arange(num_streams)
  )
