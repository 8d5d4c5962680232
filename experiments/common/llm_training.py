"""Training, evaluating and exporting of the scripts of pretrained models."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping

import jax
import numpy as np
import tqdm

from experiments.builders import llm
from experiments.common import training_run
from lco_jax import pretrained, types
from lco_jax.language import host_sampler, scoring, text_evaluation
from lco_jax.runs import runner

# Completions are shown in so many of the updates.
_SHOWN = 20


def train(
  stack: contextlib.ExitStack,
  workdir: pathlib.Path,
  settings: Mapping,
  run: llm.Run,
  scorer: scoring.Scorer,
  should_stop: Callable[[], bool],
  *,
  resume: bool,
  resume_update: int | None = None,
  profile: bool = False,
) -> runner.Result:
  """Trains to the end, from the start or from a checkpoint.

  Args:
    stack: holds what the run needs until the script ends.
    workdir: its directory, from `training_run.open_directory`.
    settings: of the run.
    run: built from them.
    scorer: of completions.
    should_stop: as of `runner.run`.
    resume: whether to go on from a checkpoint.
    resume_update: of the checkpoint; None for the newest.
    profile: whether to trace a chunk into the directory.

  Raises:
    ScriptError: if it stops before the end.
  """

  def make_collector(mesh, seeds, update):
    show = {}
    if jax.process_index() == 0:
      log = CompletionLog(workdir, settings["num_updates"], update)
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
      **show,
    )

  return training_run.train(
    workdir,
    settings,
    run.training,
    run.num_updates,
    should_stop=should_stop,
    given=jax.tree.map(
      lambda leaf: np.broadcast_to(leaf, (settings["num_seeds"], *leaf.shape)),
      dict(run.given),
    ),
    resume=resume,
    resume_update=resume_update,
    make_collector=make_collector,
    profile=profile,
  )


def open_run(
  stack: contextlib.ExitStack,
  workdir: pathlib.Path,
  settings: Mapping,
  run: llm.Run,
  resume: bool,
) -> list[text_evaluation.Examination]:
  """Checks a run, draws its validation and test problems, opens its directory.

  Returns:
    The examinations: problems of a split, and how they are scored.

  Raises:
    ValueError: if anything is wrong, before anything is written.
  """
  llm.check_placement(settings, training_run.make_mesh(settings, run.training))
  examinations = [
    text_evaluation.make_examination(
      run.asking,
      run.model,
      split,
      num_problems=settings["eval_problems"],
      num_samples=settings["eval_samples"],
      batch_size=settings["eval_batch"],
      seed=settings["seed"],
    )
    for split in ("validation", "test")
  ]
  training_run.open_directory(stack, workdir, settings, resume)
  return examinations


def make_scorer(run: llm.Run, settings: Mapping) -> scoring.Scorer:
  """Starts the processes that score a run's completions."""
  return scoring.Scorer(
    run.asking.task, settings["scoring_workers"], settings["scoring_seconds"]
  )


def policies(
  cell: training_run.Cell, run: llm.Run, result: runner.Result
) -> list[types.Params]:
  """The trained policy of each seed of a cell, as the model's parameters."""
  whole = jax.tree.map(lambda leaf: leaf[cell.learners], result.params)
  return [
    run.learned(jax.tree.map(lambda leaf, seed=seed: leaf[seed], whole))
    for seed in range(cell.settings["num_seeds"])
  ]


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
  }


def export(
  cell: training_run.Cell, run: llm.Run, learned: list[types.Params]
) -> None:
  """Writes what each seed has learned into the run directory, if asked to."""
  if not cell.settings["export"]:
    return
  for seed, own in zip(
    training_run.seeds_of(cell.settings), learned, strict=True
  ):
    folder = cell.workdir / f"model_{seed}"
    if folder.exists():  # Of a run that was resumed: maybe of other steps.
      shutil.rmtree(folder)
    pretrained.export(run.pretrained, own, folder)
    print(f"model: {folder}")


class CompletionLog(contextlib.AbstractContextManager):
  """Writes the first prompt's completions of each update, and shows some."""

  def __init__(self, workdir: pathlib.Path, num_updates: int, done: int):
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
    if update == 1 or update % self._every == 0:
      shown = examples[0]
      tqdm.tqdm.write(
        f"update {update}: {shown.question!r} → {shown.completion!r}"
        f" ({shown.reward:g})"
      )

  def __exit__(self, *_):
    self._file.close()
