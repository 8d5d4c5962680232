"""One training run in its directory, from set-up to result.

What the training scripts share: the directory and its lock, checkpoints,
writers, and one clear line for whatever goes wrong.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.common import command_line, plugins
from lco_jax.language import scoring
from lco_jax.runs import checkpointing, metric_writers, run_directory, runner
from lco_jax.training import finiteness, host_loop, placement, program


class Cell(NamedTuple):
  """The seeds of a run that train at one learning rate, and where they write.

  Attributes:
    workdir: their directory; the run's own, if it has only one rate.
    settings: as of a run at this rate alone.
    learners: which of the run's they are.
  """

  workdir: pathlib.Path
  settings: Mapping
  learners: slice


def cells(workdir: pathlib.Path, settings: Mapping) -> list[Cell]:
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


def make_mesh(settings: Mapping, training: program.Training) -> Mesh:
  """Builds the mesh of all devices that a run is divided over.

  Raises:
    ValueError: if it cannot be divided.
  """
  return placement.make_mesh(
    num_learners(settings), training.num_streams, jax.devices()
  )


def can_replay(settings: Mapping) -> bool:
  """Whether `experiments.replay` runs an update of such a run again."""
  return "model" not in settings


def checkpoints(
  workdir: pathlib.Path, settings: Mapping
) -> checkpointing.Checkpoints:
  """Where a run saves its state."""
  return checkpointing.Checkpoints(
    workdir / "checkpoints",
    checkpointing.fingerprint(settings),
    settings["keep_checkpoints"],
  )


def fault_checkpoints(
  workdir: pathlib.Path, settings: Mapping
) -> checkpointing.Checkpoints:
  """Where a run saves an update that is not finite."""
  return checkpointing.Checkpoints(
    workdir / "fault", checkpointing.fingerprint(settings), keep=1
  )


@contextlib.contextmanager
def explained(
  workdir: pathlib.Path,
  wrong_input: tuple[type[Exception], ...] = (
    ValueError,
    checkpointing.CheckpointError,
  ),
) -> Iterator[None]:
  """Turns known errors into one line.

  Args:
    workdir: of the run.
    wrong_input: errors that the user's input causes.

  Raises:
    ScriptError: for wrong input, a damaged checkpoint, a full disk, or
      processes that cannot score.
  """
  try:
    yield
  except wrong_input as error:
    raise command_line.ScriptError(error) from error
  except (checkpointing.CheckpointError, scoring.ScoringError) as error:
    raise command_line.ScriptError(error, command_line.FAILED) from error
  except OSError as error:
    raise command_line.ScriptError(
      f"workdir {workdir} cannot be written to: {error}", command_line.FAILED
    ) from error


def open_directory(
  stack: contextlib.ExitStack,
  workdir: pathlib.Path,
  settings: Mapping,
  resume: bool,
) -> None:
  """Makes the run directory, or checks the one to resume, and holds it.

  Args:
    stack: holds it.
    workdir: the directory.
    settings: of the run.
    resume: whether it is there already.

  Raises:
    ValueError: if it cannot be used.
  """
  if jax.process_index() > 0:
    return  # The first process alone writes.
  metric_writers.check_wandb(settings["wandb_project"])
  if resume:
    whole = workdir.parent / "config.json"
    if workdir.name.startswith("rate_") and whole.exists():
      raise ValueError(
        f"workdir {workdir} is a part of the run in {workdir.parent}; resume"
        " that"
      )
    plugins.check_run(workdir)
    run_directory.check_same_config(workdir, settings)
  else:
    run_directory.create(workdir, settings)
  stack.enter_context(run_directory.lock(workdir))


def train(
  workdir: pathlib.Path,
  settings: Mapping,
  training: program.Training,
  num_updates: int,
  *,
  should_stop: Callable[[], bool],
  resume: bool,
  resume_update: int | None = None,
  given: Mapping[str, Any] | None = None,
  make_collector: Callable[..., host_loop.Collector] | None = None,
  profile: bool = False,
  script_workdir: pathlib.Path | None = None,
) -> runner.Result:
  """Trains to the end, from the start or from a checkpoint.

  Args:
    workdir: its directory, from `open_directory`.
    settings: of the run.
    training: what to train.
    num_updates: updates of each seed.
    should_stop: as of `runner.run`.
    resume: whether to go on from a checkpoint.
    resume_update: of the checkpoint; None for the newest.
    given: {part: parameters [seeds, ...]} to begin with.
    make_collector: (mesh, seeds, completed updates) → the collector, if the
      environments are on the host; the caller closes it.
    profile: whether to trace a chunk into the directory.
    script_workdir: the directory to resume, if this run is a part of another;
      None for its own.

  Raises:
    ScriptError: if it stops before the end.
  """
  first = jax.process_index() == 0
  saved = checkpoints(workdir, settings)
  rates = settings["policy_learning_rates"]
  with explained(workdir):
    start = _start(
      settings, training, saved if resume else None, resume_update, given or {}
    )
    collector = None
    if make_collector is not None:
      collector = make_collector(start.mesh, start.seeds, start.update)
    writers = []
    if first:
      resumed = start.update if resume else None
      writers = _writers(workdir, settings, resumed, training.steps_per_update)
  try:
    with explained(workdir, wrong_input=()):
      return runner.run(
        training,
        start,
        num_updates,
        writers,
        collector=collector,
        saver=runner.Saver(saved, settings["checkpoint_seconds"]),
        # A fault may take gigabytes: it is saved only if it can be replayed.
        faults=fault_checkpoints(workdir, settings)
        if can_replay(settings)
        else None,
        # Other rates need not end with one that was too high.
        past_faults=bool(rates),
        should_stop=should_stop,
        updates_per_chunk=settings["updates_per_chunk"],
        profile=workdir / "profile" if first and profile else None,
      )
  except runner.StoppedError as stopped:
    raise command_line.ScriptError(
      f"{stopped}; its state is saved: go on with"
      f" {' '.join(['--resume', *plugins.make_flags()])}"
      f" --workdir={script_workdir or workdir}",
      command_line.STOPPED,
      everywhere=True,
    ) from stopped
  except finiteness.NonFiniteError as error:
    raise command_line.ScriptError(
      _describe_fault(error, workdir, settings, saved.steps()),
      command_line.FAILED,
      everywhere=True,
    ) from error


def _start(
  settings: Mapping,
  training: program.Training,
  saved: checkpointing.Checkpoints | None,
  update: int | None,
  given: Mapping[str, Any],
) -> runner.Start:
  """Begins a run, each seed at each rate; or goes on from a checkpoint."""
  rates = settings["policy_learning_rates"]
  count = max(1, len(rates))
  learners = [*seeds_of(settings)] * count
  mesh = make_mesh(settings, training)
  begin = {
    "given": jax.tree.map(
      lambda own: np.concatenate([own] * count), dict(given)
    ),
    "learning_rates": np.repeat(rates, settings["num_seeds"])
    if rates
    else None,
  }
  if saved is None:
    return runner.begin(training, learners, mesh, **begin)
  return runner.resume(training, learners, mesh, saved, update, **begin)


def _describe_fault(
  error: finiteness.NonFiniteError,
  workdir: pathlib.Path,
  settings: Mapping,
  good: list[int],
) -> str:
  """The line that a run ends with at an update that is not finite."""
  line = (
    f"training stopped at {error}; last checkpoint:"
    f" {good[-1] if good else 'none'}"
  )
  if can_replay(settings):
    line += (
      "; to look into it: python -m experiments.replay"
      f" {' '.join([*plugins.make_flags(), f'--workdir={workdir}'])}"
    )
  return line


def _writers(
  workdir: pathlib.Path,
  settings: Mapping,
  resume_after: int | None,
  steps_per_update: int,
) -> list[metric_writers.MetricWriter]:
  """Opens the writers of all cells, making their directories."""
  writers = []
  for cell in cells(workdir, settings):
    if not (cell.workdir / "config.json").exists():
      run_directory.create(cell.workdir, cell.settings)
    writers += [
      metric_writers.PartWriter(writer, cell.learners)
      for writer in metric_writers.make_writers(
        cell.workdir,
        seeds_of(settings),
        cell.settings,
        resume_after,
        steps_per_update,
      )
    ]
  return writers
