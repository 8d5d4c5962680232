"""Evaluation in the course of a run, and the best policy so far.

An evaluation reads the state and changes nothing of it: a run with evaluations
is bit for bit the run without. `evaluations.csv` has a row for each, and
`best/` the parameters of all seeds at the best one.
"""

import csv
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from lco_jax import types
from lco_jax.runs import checkpointing, runner
from lco_jax.trainers import run as run_lib
from lco_jax.training import placement

_COLUMNS = ("update", "greedy", "sampled")
# Parts of the state that the best policy is made of.
_Evaluate = Callable[[Mapping[str, types.Params]], Mapping[str, Any]]


def make_checkup(
  launch: run_lib.Launch, every: int, evaluate: _Evaluate
) -> runner.Checkup:
  """Makes what evaluates a run every so many updates.

  Args:
    launch: of the run.
    every: updates between evaluations.
    evaluate: {part: parameters [seeds, ...]} on the host → the evaluation, with
      statistics "greedy" and "sampled".
  """

  def is_due(done: int) -> bool:
    # After a resume also where it began: the process may have ended just there.
    return done > 0 and done % every == 0

  def act(done: int, state: types.LearnerState) -> None:
    params = placement.to_host(state.params)
    summary = evaluate(params)
    if jax.process_index() > 0:
      return
    scores = summary["greedy"]["mean"], summary["sampled"]["mean"]
    launch.tell(
      f"update {done}: {summary['split']}: greedy {scores[0]:.3f}, sampled"
      f" {scores[1]:.3f}"
    )
    if launch.workdir is None:
      return
    path = launch.workdir / "evaluations.csv"
    # Later ones are of a course that an earlier checkpoint has ended.
    before = {at: own for at, own in _read(path).items() if at < done}
    if scores[1] > max((own[1] for own in before.values()), default=-1.0):
      best = best_checkpoints(launch.workdir, launch.settings)
      best.remove_after(done - 1)
      best.save(done, params, {"sampled": scores[1]})
    _write(path, before | {done: scores})

  return runner.Checkup(is_due, act)


def best_checkpoints(
  workdir: pathlib.Path, settings: Mapping
) -> checkpointing.Checkpoints:
  """Where a run keeps the parameters of its best evaluation."""
  return checkpointing.Checkpoints(
    workdir / "best", checkpointing.fingerprint(settings), keep=1
  )


def _read(path: pathlib.Path) -> dict[int, tuple[float, float]]:
  """Reads the evaluations of a run, {update: (greedy, sampled)}."""
  if not path.exists():
    return {}
  with open(path, newline="") as file:
    return {
      int(row["update"]): (float(row["greedy"]), float(row["sampled"]))
      for row in csv.DictReader(file)
    }


def _write(path: pathlib.Path, found: Mapping[int, tuple[float, float]]):
  """Writes all evaluations at once, so that no row is ever cut."""
  partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
  with open(partial, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(_COLUMNS)
    for update in sorted(found):
      greedy, sampled = found[update]
      writer.writerow([update, f"{greedy:.7g}", f"{sampled:.7g}"])
  partial.replace(path)
