"""One training run from its settings: in its directory, or without one.

Each kind of run (`control`, `language`, `llm`) builds its `program.Training`
and calls, in this order, `open_directory`, `start` and `finish`.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lco_jax import types
from lco_jax.runs import (
  checkpointing,
  metric_writers,
  run_directory,
  runner,
  starts,
)
from lco_jax.trainers import extension
from lco_jax.training import (
  finiteness,
  host_loop,
  placement,
  program,
  transfers,
)


class Cell(NamedTuple):
  """The seeds of a run that train at one learning rate, and where they write.

  Attributes:
    workdir: their directory; the run's own, if it has only one rate. None for a
      run that writes nothing.
    settings: as of a run at this rate alone.
    learners: which of the run's they are.
  """

  workdir: pathlib.Path | None
  settings: Mapping
  learners: slice


class InputError(ValueError):
  """Wrong input that shows only while a run is running.

  A checkpoint that cannot be used, for example, or an environment that ends an
  evaluation with a ValueError.
  """


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
  """Turns what wrong input raises into an InputError."""
  try:
    yield
  except (ValueError, checkpointing.CheckpointError) as error:
    raise InputError(*error.args) from error


class FaultError(Exception):
  """An update of a run is not finite.

  Attributes:
    workdir: of the run; None if it writes nothing.
    settings: of the run.
  """

  def __init__(
    self,
    error: finiteness.NonFiniteError,
    workdir: pathlib.Path | None,
    settings: Mapping,
  ):
    good = [] if workdir is None else checkpoints(workdir, settings).steps()
    line = f"training stopped at {error}"
    if workdir is not None:
      line += f"; last checkpoint: {good[-1] if good else 'none'}"
    super().__init__(line)
    self.workdir, self.settings = workdir, settings


@dataclasses.dataclass(frozen=True)
class Launch:
  """How a run is run: its settings, where it writes, and what may stop it.

  Attributes:
    settings: of the run.
    workdir: its directory; None to write nothing.
    resume: whether to go on from a checkpoint.
    resume_update: of the checkpoint; None for the newest.
    should_stop: asked between chunks, as of `runner.run`.
    profile: whether to trace a chunk into the directory.
    show_progress: whether to draw a progress bar on standard error.
    tell: takes lines about the course of the run.
    mesh: devices along its axes, as of `placement.parse_sizes`; None lets them
      divide the learners, or else the streams. It changes no result.
    gather_weights: as of `llm.choose_gather_dtype`.
  """

  settings: Mapping
  workdir: pathlib.Path | None = None
  resume: bool = False
  resume_update: int | None = None
  should_stop: Callable[[], bool] = lambda: False
  profile: bool = False
  show_progress: bool = True
  tell: Callable[[str], None] = lambda line: None
  mesh: str | None = None
  gather_weights: bool | None = None


@dataclasses.dataclass(frozen=True)
class Started:
  """A run that is ready to train; from `start`.

  Attributes:
    launch: how it is run.
    training: what it trains.
    start: states on the mesh, new or from a checkpoint.
    collector: what collects, if that is on the host.
    writers: of metrics; empty in all processes but the first.
    recorder: keeps the metrics of a run without a directory; else None.
  """

  launch: Launch
  training: program.Training
  start: starts.Start
  collector: host_loop.Collector | None
  writers: Sequence[metric_writers.MetricWriter]
  recorder: metric_writers.Recorder | None

  def read_metrics(
    self, cell: Cell, names: Sequence[str] | None = None
  ) -> dict[str, np.ndarray]:
    """Reads what has been logged of a cell.

    Args:
      cell: of the run.
      names: metrics; None for all.

    Returns:
      {name: float[updates, seeds]}, and "env_steps", float[updates].
    """
    if self.recorder is None:
      return run_directory.read_metrics(cell.workdir, names)
    return self.recorder.read(cell.learners, names)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The result of a whole run, evaluations included.

  Attributes:
    started: the run.
    result: parameters and times.
    reported: (cell, content of its summary.json) of each; empty in all
      processes but the first.
  """

  started: Started
  result: runner.Result
  reported: list[tuple[Cell, dict]]


def make_outcome(
  started: Started, result: runner.Result, reported: list[tuple[Cell, dict]]
) -> Outcome:
  """Makes an outcome, of which the first process alone knows what to report."""
  first = jax.process_index() == 0
  return Outcome(started, result, reported if first else [])


def cells(workdir: pathlib.Path | None, settings: Mapping) -> list[Cell]:
  """The parts of a run, one for each learning rate of the policy."""
  if not settings["policy_learning_rates"]:
    return [Cell(workdir, settings, slice(None))]
  count = settings["num_seeds"]
  return [
    Cell(
      workdir / f"rate_{rate:g}",
      settings | {"policy_learning_rate": rate, "policy_learning_rates": []},
      slice(index * count, (index + 1) * count),
    )
    for index, rate in enumerate(settings["policy_learning_rates"])
  ]


def seeds_of(settings: Mapping) -> range:
  """The seeds of a run, side by side."""
  return range(settings["seed"], settings["seed"] + settings["num_seeds"])


def num_learners(settings: Mapping) -> int:
  """How many learners a run has: each seed at each learning rate."""
  return settings["num_seeds"] * max(1, len(settings["policy_learning_rates"]))


def make_mesh(
  settings: Mapping, training: program.Training, mesh: str | None = None
) -> Mesh:
  """Builds the mesh of all devices that a run is divided over.

  Args:
    settings: of the run.
    training: what it trains.
    mesh: as of `Launch`.

  Raises:
    ValueError: if it cannot be divided.
  """
  return placement.make_mesh(
    num_learners(settings),
    training.num_streams,
    jax.devices(),
    None if mesh is None else placement.parse_sizes(mesh),
  )


def can_replay(settings: Mapping) -> bool:
  """Whether `experiments.replay` runs an update of such a run again."""
  return "model" not in settings


def checkpoints(
  workdir: pathlib.Path, settings: Mapping
) -> checkpointing.Checkpoints:
  """Where a run saves its state."""
  return make_checkpoints(
    workdir / "checkpoints", settings, settings["keep_checkpoints"]
  )


def fault_checkpoints(
  workdir: pathlib.Path, settings: Mapping
) -> checkpointing.Checkpoints:
  """Where a run saves an update that is not finite."""
  return make_checkpoints(workdir / "fault", settings, keep=1)


def make_checkpoints(
  directory: pathlib.Path, settings: Mapping, keep: int
) -> checkpointing.Checkpoints:
  """Makes the access to a run's checkpoints in a directory.

  Those from before an extension of the run are among them.
  """
  return checkpointing.Checkpoints(
    directory,
    checkpointing.fingerprint(settings),
    keep,
    tuple(map(checkpointing.fingerprint, extension.list_earlier(settings))),
  )


def open_directory(stack: contextlib.ExitStack, launch: Launch) -> None:
  """Makes the run directory, or checks the one to resume, and holds it.

  Args:
    stack: holds it.
    launch: of the run; nothing is done for one without a directory.

  Raises:
    ValueError: if it cannot be used.
  """
  workdir, settings = launch.workdir, launch.settings
  if workdir is None or jax.process_index() > 0:
    return  # The first process alone writes.
  metric_writers.check_wandb(settings["wandb_project"])
  if launch.resume:
    whole = workdir.parent / "config.json"
    if workdir.name.startswith("rate_") and whole.exists():
      raise ValueError(
        f"workdir {workdir} is a part of the run in {workdir.parent}; resume"
        " that"
      )
    before = [*extension.list_earlier(settings), settings]
    stored = run_directory.read_config(workdir)
    extends = len(before) > 1 and stored == before[-2]
    if not extends:
      run_directory.check_same_config(workdir, settings)
  else:
    run_directory.create(workdir, settings)
  stack.enter_context(run_directory.lock(workdir))
  if launch.resume and extends:
    _extend(launch)


def _extend(launch: Launch) -> None:
  """Writes the longer configuration of a finished run, and says so.

  Its summaries are renamed: they are of the shorter run.

  Raises:
    ValueError: if the run is not finished.
  """
  parts = cells(launch.workdir, launch.settings)
  length = launch.settings["extended_from"][-1]
  summaries = {
    cell.workdir / "summary.json": cell.workdir / f"summary_{length}.json"
    for cell in parts
  }
  for path, kept in summaries.items():
    if not (path.exists() or kept.exists()):
      raise ValueError(
        f"--extend_to: the run in {launch.workdir} is not finished, no {path};"
        " resume it without --extend_to first"
      )
  # The run's own configuration comes last: until then the extension can be
  # asked for again.
  for path, kept in summaries.items():
    if path.exists():
      path.rename(kept)
  for cell in parts:
    run_directory.write_json(cell.workdir / "config.json", cell.settings)
  run_directory.write_json(launch.workdir / "config.json", launch.settings)
  launch.tell(extension.describe_extension(launch.settings))


def start(
  launch: Launch,
  training: program.Training,
  *,
  given: Mapping[str, Any] | None = None,
  make_collector: Callable[..., host_loop.Collector] | None = None,
) -> Started:
  """Makes a run's states and writers, from the start or from a checkpoint.

  Args:
    launch: of the run; its directory is open.
    training: what to train.
    given: {part: parameters [seeds, ...]} to begin with.
    make_collector: (mesh, seeds, completed updates) → the collector, if it is
      on the host; the caller closes it.

  Raises:
    InputError: if the run cannot be divided over the devices, a checkpoint
      cannot be used, or the metrics end before it.
  """
  with input_errors():
    begun = _begin(launch, training, given or {})
    collector, recorder, writers = None, None, []
    if make_collector is not None:
      collector = make_collector(begun.mesh, begun.seeds, begun.update)
    if launch.workdir is None:
      recorder = metric_writers.Recorder()
      writers = [recorder]
    elif jax.process_index() == 0:
      writers = _make_writers(launch, begun.update, training.steps_per_update)
  return Started(launch, training, begun, collector, writers, recorder)


def finish(
  started: Started, num_updates: int, checkup: runner.Checkup | None = None
) -> runner.Result:
  """Trains to the end.

  Args:
    started: from `start`.
    num_updates: updates of each seed.
    checkup: acts between chunks, as of `runner.run`.

  Raises:
    FaultError: if an update is not finite.
    CheckpointError, StoppedError: as of `runner.run`.
  """
  launch, settings = started.launch, started.launch.settings
  saver, faults, profile = None, None, None
  if launch.workdir is not None:
    saver = runner.Saver(
      checkpoints(launch.workdir, settings), settings["checkpoint_seconds"]
    )
    # A fault may take gigabytes: it is saved only if it can be replayed.
    if can_replay(settings):
      faults = fault_checkpoints(launch.workdir, settings)
    if launch.profile and jax.process_index() == 0:
      profile = launch.workdir / "profile"
  try:
    return runner.run(
      started.training,
      started.start,
      num_updates,
      started.writers,
      collector=started.collector,
      saver=saver,
      checkup=checkup,
      faults=faults,
      # Other rates need not end with one that was too high.
      past_faults=bool(settings["policy_learning_rates"]),
      should_stop=launch.should_stop,
      updates_per_chunk=settings["updates_per_chunk"],
      profile=profile,
      show_progress=launch.show_progress,
    )
  except finiteness.NonFiniteError as error:
    raise FaultError(error, launch.workdir, settings) from error


def restore_params(
  workdir: pathlib.Path,
  settings: Mapping,
  training: program.Training,
  given: Mapping[str, Any] | None = None,
) -> tuple[int, dict[str, types.Params]]:
  """Reads the parameters of a run's newest checkpoint.

  Args:
    workdir: the run's directory.
    settings: of the run.
    training: built from them.
    given: {part: parameters [seeds, ...]} that the run was given, such as those
      of a pretrained model; None if it initialised all. Their shapes are used.

  Returns:
    (completed updates, {part: parameters [learners, ...]} on the host). There
    is a learner for each seed and learning rate.

  Raises:
    CheckpointError: if there is none, or it cannot be used.
  """
  update, state, _ = checkpoints(workdir, settings).restore(
    blank_state(settings, training, given)
  )
  return update, state.params


def blank_state(
  settings: Mapping,
  training: program.Training,
  given: Mapping[str, Any] | None = None,
) -> types.LearnerState:
  """Makes a state [learners, ...] on the host, of a run's shapes.

  Arguments are those of `restore_params`.
  """
  here = placement.make_mesh(
    num_learners(settings), training.num_streams, jax.local_devices()[:1]
  )
  learners, begin = _make_learners(settings, given or {})
  state = starts.begin(training, learners, here, **begin).state
  return transfers.to_host(state)


def _begin(
  launch: Launch, training: program.Training, given: Mapping[str, Any]
) -> starts.Start:
  """Begins a run, each seed at each rate; or goes on from a checkpoint."""
  settings = launch.settings
  mesh = make_mesh(settings, training, launch.mesh)
  learners, begin = _make_learners(settings, given)
  if not launch.resume:
    return starts.begin(training, learners, mesh, **begin)
  saved = checkpoints(launch.workdir, settings)
  return starts.resume(
    training, learners, mesh, saved, launch.resume_update, **begin
  )


def _make_learners(
  settings: Mapping, given: Mapping[str, Any]
) -> tuple[list[int], dict[str, Any]]:
  """Seeds of all learners, and with what parameters and rates they begin."""
  rates = settings["policy_learning_rates"]
  count = max(1, len(rates))
  if count > 1:
    given = jax.tree.map(lambda own: np.concatenate([own] * count), dict(given))
  return [*seeds_of(settings)] * count, {
    "given": given,
    "learning_rates": np.repeat(rates, settings["num_seeds"])
    if rates
    else None,
  }


def _make_writers(
  launch: Launch, done: int, steps_per_update: int
) -> list[metric_writers.MetricWriter]:
  """Opens the writers of all cells, making their directories.

  Args:
    launch: of the run.
    done: completed updates.
    steps_per_update: of each seed.
  """
  writers = []
  for cell in cells(launch.workdir, launch.settings):
    if not (cell.workdir / "config.json").exists():
      run_directory.create(cell.workdir, cell.settings)
    writers += [
      metric_writers.PartWriter(writer, cell.learners)
      for writer in metric_writers.make_writers(
        cell.workdir,
        seeds_of(launch.settings),
        cell.settings,
        done if launch.resume else None,
        steps_per_update,
      )
    ]
  return writers
