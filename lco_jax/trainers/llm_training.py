"""Training, evaluating and exporting of pretrained models."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import tqdm

from lco_jax import pretrained, tasks, types
from lco_jax.language import host_sampler, scoring, text_evaluation
from lco_jax.reporting import curves, statistics
from lco_jax.runs import run_directory, runner
from lco_jax.trainers import llm, midway
from lco_jax.trainers import run as run_lib
from lco_jax.training import placement, transfers

# Completions are shown in so many of the updates.
_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A run that is checked, and whose directory is open; from `prepare`.

  Attributes:
    run: the run.
    examinations: of validation and of test problems.
  """

  run: llm.Run
  examinations: Sequence[text_evaluation.Examination]


def prepare(
  stack: contextlib.ExitStack, launch: run_lib.Launch, run: llm.Run
) -> Prepared:
  """Checks a run, draws its validation and test problems, opens its directory.

  Args:
    stack: holds the directory.
    launch: of the run.
    run: built from the launch's settings.

  Raises:
    ValueError: if anything is wrong, before anything is written.
  """
  settings = launch.settings
  mesh = run_lib.make_mesh(settings, run.training, launch.mesh)
  llm.check_placement(settings, mesh)
  divided = {}
  if placement.divides_parameters(mesh.shape):
    divided = {
      "mesh": mesh,
      "gather_dtype": llm.choose_gather_dtype(
        run.model_config, mesh, launch.gather_weights
      ),
    }
  examinations = [
    text_evaluation.make_examination(
      run.asking,
      run.model,
      split,
      num_problems=settings["eval_problems"],
      num_samples=settings["eval_samples"],
      batch_size=settings["eval_batch"],
      seed=settings["seed"],
      **divided,
    )
    for split in ("validation", "test")
  ]
  # Before anything is written: they are read again when they are placed.
  pretrained.check_finite(
    dict(run.given), jax.process_index(), jax.process_count()
  )
  transfers.any_process(False)  # A process that found one ends the job here.
  run_lib.open_directory(stack, launch)
  if isinstance(run.asking.task, tasks.RowTask) and jax.process_index() == 0:
    launch.tell(f"data: {run.asking.task.note}")
  return Prepared(run, examinations)


def execute(
  stack: contextlib.ExitStack, launch: run_lib.Launch, prepared: Prepared
) -> run_lib.Outcome:
  """Trains and evaluates a policy, and writes what it came to.

  Args:
    stack: ends the processes that score.
    launch: of the run.
    prepared: from `prepare`.

  Raises:
    InputError, FaultError, CheckpointError, StoppedError: as of `run.start`
      and `run.finish`.
    ScoringError: if the processes that score end.
  """
  run, settings = prepared.run, launch.settings
  scorer = stack.enter_context(make_scorer(run, settings))
  before = _evaluate_before(launch, prepared, scorer)
  checkup = None
  if settings["eval_every"]:
    checkup = midway.make_checkup(
      launch,
      settings["eval_every"],
      lambda params: _summarize(
        prepared.examinations[0], list_policies(settings, run, params), scorer
      ),
    )
  started, result = train(stack, launch, run, scorer, checkup)
  reported = []
  if takes_part(result.params):
    with run_lib.input_errors():
      reported = [
        (cell, _report(started, cell, prepared, result, before, scorer))
        for cell in run_lib.cells(launch.workdir, settings)
      ]
  return run_lib.make_outcome(started, result, reported)


def train(
  stack: contextlib.ExitStack,
  launch: run_lib.Launch,
  run: llm.Run,
  scorer: scoring.Scorer,
  checkup: runner.Checkup | None = None,
) -> tuple[run_lib.Started, runner.Result]:
  """Trains to the end, from the start or from a checkpoint.

  Args:
    stack: closes the log of completions.
    launch: of the run.
    run: built from the launch's settings.
    scorer: of completions.
    checkup: acts between updates.

  Raises:
    Exceptions as of `execute`.
  """
  settings = launch.settings

  def make_collector(mesh, seeds, update):
    show = {}
    if jax.process_index() == 0 and launch.workdir is not None:
      log = CompletionLog(
        launch.workdir,
        settings["num_updates"],
        update,
        show=launch.show_progress,
      )
      show = {"show": stack.enter_context(log)}
    return host_sampler.TextCollector(
      run.asking,
      run.model,
      run.training,
      mesh,
      seeds,
      scorer,
      run.completes,
      update,
      gather_dtype=llm.choose_gather_dtype(
        run.model_config, mesh, launch.gather_weights
      ),
      **show,
    )

  started = run_lib.start(
    launch,
    run.training,
    given=copy_to_seeds(settings, run.given),
    make_collector=make_collector,
  )
  return started, run_lib.finish(started, run.num_updates, checkup)


def takes_part(params: types.Params) -> bool:
  """Whether this process evaluates and exports what was learned.

  The first does, and all do where devices divide the parameters.
  """
  return placement.is_divided(params) or jax.process_index() == 0


def copy_to_seeds(
  settings: Mapping, given: Mapping[str, types.Params]
) -> dict[str, types.Params]:
  """Gives all seeds the same parameters, {part: parameters [seeds, ...]}."""
  return jax.tree.map(
    lambda leaf: transfers.Repeated(leaf, settings["num_seeds"]), dict(given)
  )


def make_scorer(run: llm.Run, settings: Mapping) -> scoring.Scorer:
  """Starts the processes that score a run's completions."""
  return scoring.Scorer(
    run.asking.task.grader,
    settings["scoring_workers"],
    settings["scoring_seconds"],
  )


def list_policies(
  settings: Mapping, run: llm.Run, params: Mapping[str, types.Params]
) -> list[types.Params]:
  """Lists the policy of each seed, as the model's parameters.

  Args:
    settings: of the run.
    run: built from them.
    params: {part: parameters [seeds, ...]}, on the host or on a mesh.
  """

  def take(seed):
    own = dict(params)
    if placement.is_divided(own):
      return transfers.take_seed(own, seed, placement.find_mesh(own))
    return jax.tree.map(lambda leaf: leaf[seed], own)

  return [run.learned(take(seed)) for seed in range(settings["num_seeds"])]


def format_accuracy(summary: Mapping) -> str:
  """Formats an evaluation, a part of summary.json, as a line."""
  failed = summary["scoring_failed"]
  note = f"; {failed} could not be scored" if failed else ""
  return (
    f"{summary['split']}: greedy {summary['greedy']['mean']:.3f}, sampled"
    f" {summary['sampled']['mean']:.3f}"
    f" ({summary['problems']} draws of {summary['distinct_problems']} questions"
    f" × {summary['samples']} samples){note}"
    + "".join(
      f"; {name} {mean:.3f}"
      for name, mean in summary.get("sampled_rewards", {}).items()
    )
  )


def _evaluate_before(
  launch: run_lib.Launch, prepared: Prepared, scorer: scoring.Scorer
) -> dict | None:
  """Evaluates the untrained model, unless an earlier process has done so.

  All processes do the same, or some would wait for others for too long.

  Returns:
    A part of summary.json; None if the run was trained before it had one.
  """
  written = None
  with run_lib.input_errors():
    if launch.workdir is not None:
      written = launch.workdir / "before.json"
      saved = run_lib.checkpoints(launch.workdir, launch.settings).steps()
      # A run may have been killed before it was evaluated, but not trained.
      (trained,) = transfers.any_process(bool(saved))
      if trained:
        return json.loads(written.read_text()) if written.exists() else None
    before = _summarize(
      prepared.examinations[1], [prepared.run.pretrained.params], scorer
    )
  if jax.process_index() == 0:
    if written is not None:
      run_directory.write_json(written, before)
    launch.tell(f"before: {format_accuracy(before)}")
  return before


def _summarize(
  examination: text_evaluation.Examination,
  learned: Sequence[types.Params],
  scorer: scoring.Scorer,
) -> dict:
  """Evaluates policies of several seeds: a part of summary.json."""
  found = [
    text_evaluation.evaluate(examination, own, scorer) for own in learned
  ]
  problems, means = examination.problems, {}
  if isinstance(examination.asking.task, tasks.RowTask):
    means = {
      f"{how}_rewards": {
        reward.name: float(np.mean([own[index] for own in values]))
        for index, reward in enumerate(examination.asking.task.grader.rewards)
      }
      for how, values in (
        ("greedy", [own.greedy_values for own in found]),
        ("sampled", [own.sampled_values for own in found]),
      )
    }
  return means | {
    "split": examination.split,
    "problems": len(problems),
    "distinct_problems": len({problem["question"] for problem in problems}),
    "samples": examination.num_samples,
    "scoring_failed": sum(own.num_failed for own in found),
    "greedy": statistics.summarize(
      np.array([own.greedy.mean() for own in found])
    ),
    "sampled": statistics.summarize(
      np.array([own.sampled.mean() for own in found])
    ),
    "examples": [
      [problem["question"], problem["answer"], text, bool(right)]
      for problem, text, right in zip(
        problems[:5], found[0].texts[:5], found[0].greedy[:5], strict=True
      )
    ],
  }


def _report(
  started: run_lib.Started,
  cell: run_lib.Cell,
  prepared: Prepared,
  result: runner.Result,
  before: dict | None,
  scorer: scoring.Scorer,
) -> dict:
  """Evaluates a cell's seeds; writes and returns their summary.

  The first process alone writes.
  """
  settings, run = cell.settings, prepared.run
  learned = list_policies(settings, run, result.params)
  evaluations = {
    name: _summarize(examination, learned, scorer)
    for name, examination in zip(
      ("validation", "evaluation"), prepared.examinations, strict=True
    )
  }
  if jax.process_index() > 0:
    export(started.launch, cell, run, learned)
    return evaluations
  logged = started.read_metrics(
    cell, ["first_visit_correct", "first_visits", "entropy"]
  )
  # Prompts that are met again are those that are not solved.
  correct = logged["first_visit_correct"], logged["first_visits"]
  summary = {
    **described(settings, result),
    "samples_per_second": result.steps_per_second,
    "final_correct": statistics.summarize(
      curves.compute_final_scores(*correct)
    ),
    "final_entropy": statistics.summarize(
      curves.last_tenth(logged["entropy"]).mean(0)
    ),
    "before": before,
    **evaluations,
  }
  export(started.launch, cell, run, learned)
  if cell.workdir is not None:
    curves.save_learning_curve(
      cell.workdir / run_directory.PICTURE,
      *curves.bin_returns(
        logged["env_steps"], *correct, gone=np.isnan(logged["entropy"])
      ),
      title=f"{settings['algorithm']} on {settings['task']}",
      x_label="samples",
      y_label="share of correct samples (training prompts when first met)",
    )
    # Last: with it the run is complete.
    run_directory.write_json(cell.workdir / "summary.json", summary)
  return summary


def described(settings: Mapping, result: runner.Result) -> dict:
  """The first part of every summary: the run and its cost."""
  return {
    "task": settings["task"],
    "algorithm": settings["algorithm"],
    "model": settings["model"],
    "learning_rate": settings["policy_learning_rate"],
    "num_seeds": settings["num_seeds"],
    "total_samples": result.total_steps,
    "compile_seconds": result.compile_seconds,
    "train_seconds": result.train_seconds,
    "timings": result.timings,
  }


def export(
  launch: run_lib.Launch,
  cell: run_lib.Cell,
  run: llm.Run,
  learned: list[types.Params],
) -> None:
  """Writes what each seed has learned into the run directory, if asked to."""
  if not cell.settings["export"] or cell.workdir is None:
    return
  first = jax.process_index() == 0
  for seed, own in zip(run_lib.seeds_of(cell.settings), learned, strict=True):
    folder = cell.workdir / f"model_{seed}"
    # Of a run that was resumed, it may be of other steps.
    if first and folder.exists():
      shutil.rmtree(folder)
    pretrained.export(
      run.pretrained, own, folder, read=transfers.to_host, writes=first
    )
    if first:
      launch.tell(f"model: {folder}")


class CompletionLog(contextlib.AbstractContextManager):
  """Writes the first prompt's completions of each update, and shows some."""

  def __init__(
    self, workdir: pathlib.Path, num_updates: int, done: int, show: bool
  ):
    """Opens WORKDIR/completions.jsonl; what is of later updates is cut off."""
    path = workdir / "completions.jsonl"
    lines = []
    if done and path.exists():
      # Not splitlines: a text may hold other ends of lines than files do.
      lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
      file.writelines(
        line + "\n" for line in lines if json.loads(line)["update"] <= done
      )
    partial.replace(path)
    # Held open for the whole run; __exit__ ends it.
    self._file = path.open("a", encoding="utf-8")
    self._every = max(1, num_updates // _SHOWN)
    self._show = show

  def __call__(self, update: int, examples: list[host_sampler.Example]):
    """Takes the completions of an update."""
    for example in examples:
      line = {
        "update": update,
        "question": example.question,
        "completion": example.completion,
        "reward": example.reward,
      }
      self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
    self._file.flush()
    if self._show and (update == 1 or update % self._every == 0):
      shown = examples[0]
      tqdm.tqdm.write(
        f"update {update}: {shown.question!r} → {shown.completion!r}"
        f" ({shown.reward:g})"
      )

  def __exit__(self, *_):
    self._file.close()
