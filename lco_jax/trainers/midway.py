"""Evaluation in the course of a run, and the best policy so far.

An evaluation reads the state and changes nothing of it: a run with evaluations
is bit for bit the run without. `evaluations.csv` has a row for each, and
`best/` the parameters of all seeds at the best one: that of the highest score,
the mean of the first reward over samples, or else the share that is right.
"""

import csv
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from lco_jax import types
from lco_jax.runs import checkpointing, runner
from lco_jax.trainers import run as run_lib
from lco_jax.training import placement, transfers

_COLUMNS = ("update", "greedy", "sampled", "score")
# {part: parameters [seeds, ...]} → an evaluation.
_Evaluate = Callable[[Mapping[str, types.Params]], Mapping[str, Any]]


def make_checkup(
  launch: run_lib.Launch, every: int, evaluate: _Evaluate
) -> runner.Checkup:
  """Makes the checkup that evaluates a run every so many updates.

  Args:
    launch: of the run.
    every: updates between evaluations.
    evaluate: {part: parameters [seeds, ...]}, on the host, or on a mesh that
      divides them → the evaluation, with statistics "greedy" and "sampled", and
      maybe means "sampled_rewards".
  """

  def is_due(done: int) -> bool:
    # After a resume also where it began: the process may have ended just there.
    return done > 0 and done % every == 0

  def act(done: int, state: types.LearnerState) -> None:
    params, first = state.params, jax.process_index() == 0
    divided = placement.is_divided(params)
    if not divided:
      params = transfers.to_host(params)
    summary = evaluate(params)
    greedy, sampled = summary["greedy"]["mean"], summary["sampled"]["mean"]
    score = next(iter(summary.get("sampled_rewards", {}).values()), sampled)
    if first:
      launch.tell(
        f"update {done}: {summary['split']}: greedy {greedy:.3f}, sampled"
        f" {sampled:.3f}, score {score:.3f}"
      )
    if launch.workdir is None:
      return
    path = launch.workdir / "evaluations.csv"
    # Later ones are of a course that an earlier checkpoint has ended.
    before = {at: own for at, own in _read(path).items() if at < done}
    highest = max((own[-1] for own in before.values()), default=-math.inf)
    (is_best,) = transfers.any_process(first and score > highest)
    if is_best:
      best = best_checkpoints(launch.workdir, launch.settings)
      if first:
        best.remove_after(done - 1)
      if first or divided:
        best.save(done, params, {"score": score}, together=divided)
    if first:
      _write(path, before | {done: (greedy, sampled, score)})

  return runner.Checkup(is_due, act)


def best_checkpoints(
  workdir: pathlib.Path, settings: Mapping
) -> checkpointing.Checkpoints:
  """Where a run keeps the parameters of its best evaluation."""
  return run_lib.make_checkpoints(workdir / "best", settings, keep=1)


def _read(path: pathlib.Path) -> dict[int, tuple[float, ...]]:
  """Reads the evaluations of a run, {update: values of the other columns}."""
  if not path.exists():
    return {}
  with open(path, newline="") as file:
    rows = [[float(cell) for cell in row] for row in [*csv.reader(file)][1:]]
  return {int(update): tuple(values) for update, *values in rows}


def _write(path: pathlib.Path, found: Mapping[int, tuple[float, ...]]) -> None:
  """Writes all evaluations at once, so that no row is ever cut."""
  partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
  with open(partial, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(_COLUMNS)
    # All digits: they are compared with later scores.
    writer.writerows([update, *found[update]] for update in sorted(found))
  partial.replace(path)
