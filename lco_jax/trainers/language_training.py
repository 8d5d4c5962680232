"""Language runs from start to end: checked, trained, evaluated, reported."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from lco_jax import tasks, types
from lco_jax.language import evaluation, signals
from lco_jax.reporting import curves, statistics, tables
from lco_jax.runs import run_directory, runner
from lco_jax.trainers import extension, language
from lco_jax.trainers import run as run_lib

# k of the pass@k that are reported.
_PASSES = (1, 8, 32)


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A run that is checked, and whose directory is open; from `prepare`.

  Attributes:
    run: the run.
    given: {part: parameters [seeds, ...]} from other runs.
    warm_launch: of the warm start, a run of its own; None without one.
    warm_run: the warm start; None without one.
  """

  run: language.Run
  given: dict[str, types.Params]
  warm_launch: run_lib.Launch | None
  warm_run: language.Run | None


def prepare(
  stack: contextlib.ExitStack,
  launch: run_lib.Launch,
  task: tasks.Task | None = None,
) -> Prepared:
  """Builds a run and its warm start, checks both, and opens their directories.

  Args:
    stack: holds the directories.
    launch: of the run.
    task: to train on; None for the one that the settings name.

  Raises:
    ValueError: if anything is wrong, before anything is written.
    CheckpointError: if the run that this one begins with cannot be read.
  """
  settings = launch.settings
  run = language.build(settings, task)
  run_lib.make_mesh(settings, run.training)
  given, warm_launch, warm_run = _read_given(settings, run.task), None, None
  begins_here = (
    settings["algorithm"] != language.WARM_START and "policy" not in given
  )
  if begins_here and settings["warm_start_updates"]:
    # An extension of the run is none of the warm start.
    warm = extension.find_original(settings)
    warm |= {"algorithm": language.WARM_START, "policy_learning_rates": []}
    warm_run = language.build(warm, task)
    run_lib.make_mesh(warm, warm_run.training)
    warm_launch = dataclasses.replace(
      launch,
      settings=warm,
      workdir=launch.workdir and launch.workdir / "warm_start",
      resume_update=None,
      profile=False,
    )
  run_lib.open_directory(stack, launch)
  if warm_launch is not None:
    # A run may have been killed when it had but its own directory.
    there = (
      warm_launch.workdir is not None
      and (warm_launch.workdir / "config.json").exists()
    )
    run_lib.open_directory(
      stack, dataclasses.replace(warm_launch, resume=launch.resume and there)
    )
  return Prepared(run, given, warm_launch, warm_run)


def execute(launch: run_lib.Launch, prepared: Prepared) -> run_lib.Outcome:
  """Trains and evaluates a run, and writes what it came to.

  Args:
    launch: of the run.
    prepared: from `prepare`.

  Raises:
    InputError, FaultError, CheckpointError, StoppedError: as of `run.start`
      and `run.finish`.
  """
  run, settings = prepared.run, launch.settings
  given, before = dict(prepared.given), None
  if prepared.warm_launch is not None:
    warm_launch = dataclasses.replace(
      prepared.warm_launch, should_stop=launch.should_stop
    )
    warm = run_lib.finish(
      run_lib.start(warm_launch, prepared.warm_run.training),
      prepared.warm_run.num_updates,
    )
    given["policy"] = warm.params["policy"]
  first = jax.process_index() == 0
  if "policy" in given and first:
    with run_lib.input_errors():
      found = _evaluate(run, given["policy"], settings, "test")
      before = _summarize(found, settings, "test")
    launch.tell(f"before: {tables.format_accuracy(before)}")
  started = run_lib.start(launch, run.training, given=given)
  result = run_lib.finish(started, run.num_updates)
  reported = []
  if first:
    with run_lib.input_errors():
      reported = _report_all(started, run, result, before)
  return run_lib.Outcome(started, result, reported)


def _report_all(
  started: run_lib.Started,
  run: language.Run,
  result: runner.Result,
  before: dict | None,
) -> list[tuple[run_lib.Cell, dict]]:
  """Evaluates all learners, and reports each cell."""
  settings = started.launch.settings
  found = {
    name: (split, _evaluate(run, result.params["policy"], settings, split))
    for name, split in (("validation", "validation"), ("evaluation", "test"))
  }
  reported = []
  for cell in run_lib.cells(started.launch.workdir, settings):
    own = {
      name: _summarize(scores.select_seeds(cell.learners), settings, split)
      for name, (split, scores) in found.items()
    }
    summary = _report(started, cell, run, result, {"before": before} | own)
    reported.append((cell, summary))
  return reported


def _read_given(settings: Mapping, task: tasks.Task) -> dict[str, types.Params]:
  """Reads the parts of the parameters that come from other runs.

  Raises:
    ValueError: if one is missing, or does not fit.
    CheckpointError: if one cannot be read.
  """
  given = {}
  if settings["init_from"] is not None:
    parts = _params_of("init_from", task, settings)
    given["policy"] = parts["policy"]
  asks = settings["advantage"] in signals.FROM_VERIFIERS
  if asks and settings["verifier_from"] is None:
    raise ValueError(
      f"verifier_from must be set for advantage {settings['advantage']}"
    )
  if settings["verifier_from"] is not None:
    if not asks:
      raise ValueError(
        "verifier_from is for advantage"
        f" {' or '.join(signals.FROM_VERIFIERS)}, got {settings['advantage']}"
      )
    parts = _params_of("verifier_from", task, settings)
    given["verifier"] = parts["policy"]
    if settings["advantage"] == "preference":
      given["verifier_reference"] = parts["reference"]
  return given


def _evaluate(
  run: language.Run, params: types.Params, settings: Mapping, split: str
) -> evaluation.Evaluation:
  return evaluation.evaluate(
    run.task,
    run.model,
    params,
    split=split,
    num_problems=settings["eval_problems"],
    num_samples=settings["eval_samples"],
    seed=settings["seed"],
  )


def _summarize(
  found: evaluation.Evaluation, settings: Mapping, split: str
) -> dict:
  """Makes the evaluation's part of summary.json."""
  summary = statistics.summarize(found.greedy.mean(axis=1))
  return {
    "split": split,
    "problems": settings["eval_problems"],
    "samples": settings["eval_samples"],
    "greedy": summary["mean"],
    "pass_at_k": {
      str(k): statistics.summarize(found.pass_at_k(k))
      for k in _PASSES
      if k <= settings["eval_samples"]
    },
    "by_difficulty": {
      str(level): float(np.mean(scores))
      for level, scores in found.by_difficulty().items()
    },
    "examples": [list(example) for example in found.examples[0]],
    **summary,
  }


def _report(
  started: run_lib.Started,
  cell: run_lib.Cell,
  run: language.Run,
  result: runner.Result,
  evaluations: dict,
) -> dict:
  """Makes the summary of a cell; writes it and the picture."""
  settings = cell.settings
  logged = started.read_metrics(cell, ["correct", "entropy"])
  summary = {
    "task": run.task.name,
    "algorithm": settings["algorithm"],
    "learning_rate": language.learning_rate(settings),
    "num_seeds": settings["num_seeds"],
    "total_samples": result.total_steps,
    "compile_seconds": result.compile_seconds,
    "train_seconds": result.train_seconds,
    "samples_per_second": result.steps_per_second,
    **{
      f"final_{name}": statistics.summarize(
        curves.last_tenth(logged[name]).mean(0)
      )
      for name in ("correct", "entropy")
    },
    **evaluations,
  }
  if cell.workdir is not None:
    curves.save_learning_curve(
      cell.workdir / run_directory.PICTURE,
      *curves.bin_returns(
        logged["env_steps"],
        logged["correct"],
        np.ones_like(logged["correct"]),
        gone=np.isnan(logged["correct"]),
      ),
      title=f"{settings['algorithm']} on {run.task.name}",
      x_label="samples",
      y_label="share of correct samples (training prompts)",
    )
    # Last: with it the run is complete.
    run_directory.write_json(cell.workdir / "summary.json", summary)
  return summary


def _params_of(
  setting: str, task: tasks.Task, own: Mapping
) -> dict[str, types.Params]:
  """The parameters at the end of another run.

  Args:
    setting: the one that names the run's directory.
    task: of this run.
    own: settings of this run, whose network the other must have.

  Returns:
    {part: parameters [seeds, ...]} on the host, for the seeds of this run.

  Raises:
    ValueError: if it holds no finished run, or one of another vocabulary,
      network or number of seeds.
    CheckpointError: if its checkpoint cannot be read.
  """
  path = pathlib.Path(own[setting])

  def check(fits: bool, reason: str):
    if not fits:
      raise ValueError(f"{setting} {own[setting]}: {reason}")

  try:
    theirs = run_directory.read_config(path)
  except ValueError as error:
    raise ValueError(f"{setting}: {error}") from None
  for name in own:
    check(
      name in theirs,
      f"not a language run of this version, its config.json has no {name}",
    )
  check(
    not theirs["policy_learning_rates"],
    "it has several policy_learning_rates; train it at one",
  )
  if setting == "verifier_from" and own["advantage"] == "preference":
    check(
      theirs["algorithm"] == "dpo",
      f"its algorithm is {theirs['algorithm']}, but preferences are of dpo",
    )
  other = language.build(theirs)
  check(
    other.task.characters == task.characters,
    f"its vocabulary is {other.task.characters!r}, not {task.characters!r}",
  )
  for name in language.NETWORK:
    check(
      theirs[name] == own[name],
      f"its {name} is {theirs[name]}, not {own[name]}",
    )
  check(
    theirs["num_seeds"] in (1, own["num_seeds"]),
    f"it has {theirs['num_seeds']} seeds, not {own['num_seeds']} or 1",
  )
  update, parts = run_lib.restore_params(path, theirs, other.training)
  check(
    update == other.num_updates,
    f"not finished, at update {update} of {other.num_updates}",
  )
  return jax.tree.map(
    lambda leaf: np.broadcast_to(leaf, (own["num_seeds"], *leaf.shape[1:])),
    parts,
  )
