"""Compares algorithms on language tasks, each at its own best learning rate.

python -m experiments.compare_language --workdir=DIR \
    --tasks=addition,sorting --algorithms=lco_mse,grpo \
    --learning_rates=1e-4,1e-3 --setting=num_updates=200

Every task gets one warm start, from which all runs begin; the rates of an
algorithm are tried side by side, in one program. The rate with the
best greedy accuracy on validation problems is taken, and reported on test
problems.
Called again with the same flags, it goes on with what is not done yet.
"""

import csv
import json
import math
import pathlib
from collections.abc import Sequence

import jax
from absl import flags

from experiments import command_line, grid, language_run
from lco_jax import tasks
from lco_jax.reporting import tables

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the comparison.")
flags.mark_flag_as_required("workdir")
_TASKS = flags.DEFINE_list(
  "tasks", None, "As of lco_jax.tasks; sizes by colon."
)
flags.mark_flag_as_required("tasks")
_ALGORITHMS = flags.DEFINE_list(
  "algorithms",
  "lco_mse,lco_lch,lco_kld,grpo,dr_grpo,dapo,rloo,ppo,reinforce",
  "As of experiments.train_language.",
)
_RATES = flags.DEFINE_list(
  "learning_rates", "3e-5,1e-4,3e-4,1e-3", "Those to choose from."
)
_SETTINGS = flags.DEFINE_multi_string(
  "setting", [], "NAME=VALUE of the config, for all runs."
)
_JOBS = flags.DEFINE_integer("jobs", 2, "Runs at the same time.")

_CONFIG = "experiments/configs/language.py"


def main() -> None:
  """Runs what is missing, then writes and shows the table."""
  # Runs need the accelerators; checking flags does not.
  jax.config.update("jax_platforms", "cpu")
  _check()
  workdir = pathlib.Path(_WORKDIR.value)
  with grid.held(workdir, {"settings": sorted(_SETTINGS.value)}):
    _compare(workdir)


def _compare(workdir: pathlib.Path) -> None:
  """The runs, and the table of them."""
  rates = [f"{float(rate):g}" for rate in _RATES.value]
  warm = {task: workdir / _name(task) / "warm_start" for task in _TASKS.value}
  grid.complete(
    [_run(t, ["algorithm=sft"], warm[t]) for t in _TASKS.value],
    _JOBS.value,
    _accuracy,
  )
  # A directory for each set of rates: more can be tried later.
  name = "rates_" + "_".join(rates)
  runs = {
    (task, algorithm): _run(
      task,
      [
        f"algorithm={algorithm}",
        f"policy_learning_rates=({','.join(rates)},)",
        f"init_from={warm[task]}",
      ],
      workdir / _name(task) / algorithm / name,
      f"rate_{rates[-1]}/summary.json",
    )
    for task in _TASKS.value
    for algorithm in _ALGORITHMS.value
  }
  grid.complete(list(runs.values()), _JOBS.value)
  rows = []
  for task in _TASKS.value:
    rows.append(_row(task, "warm start", "", _summary(warm[task])))
    for algorithm in _ALGORITHMS.value:
      tried = (
        (rate, _summary(runs[task, algorithm].workdir / f"rate_{rate}"))
        for rate in rates
      )
      # A rate at which a seed stopped is none to choose: it was not trained.
      usable = [
        item for item in tried if item[1]["final_correct"]["mean"] is not None
      ]
      if not usable:
        raise command_line.ScriptError(
          f"{runs[task, algorithm].workdir}: seeds stopped at every rate",
          command_line.FAILED,
        )
      rate, best = max(usable, key=lambda item: item[1]["validation"]["greedy"])
      rows.append(_row(task, algorithm, rate, best))
  columns = list(rows[0][3])
  with open(workdir / "comparison.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(
      ["task", "algorithm", "learning_rate"]
      + [f"{c}_{part}" for c in columns for part in ("iqm", "low", "high")]
    )
    for *names, scores in rows:
      writer.writerow(
        [*names, *(x for s in scores.values() for x in (s["iqm"], *s["ci95"]))]
      )
  table = tables.comparison(
    columns, [(*names, list(scores.values())) for *names, scores in rows]
  )
  (workdir / "comparison.md").write_text(table + "\n")
  print(table)


def _check() -> None:
  """Ends with one line if a flag is wrong, before anything is run."""
  for name in ("tasks", "algorithms"):
    values = flags.FLAGS[name].value
    if not values or len(set(values)) < len(values):
      raise command_line.ScriptError(f"--{name} must name things, each once")
  if _JOBS.value < 1:
    raise command_line.ScriptError(f"--jobs must be ≥ 1, got {_JOBS.value}")
  for algorithm in _ALGORITHMS.value:
    if algorithm not in language_run.ALGORITHMS:
      known = ", ".join(language_run.ALGORITHMS)
      raise command_line.ScriptError(
        f"--algorithms: unknown {algorithm!r}; known: {known}"
      )
  for rate in _RATES.value:
    try:
      right = 0 < float(rate) < math.inf
    except ValueError:
      right = False
    if not right:
      raise command_line.ScriptError(
        f"--learning_rates must be positive numbers, got {rate!r}"
      )
  names = {f"{float(rate):g}" for rate in _RATES.value}
  if not names or len(names) < len(_RATES.value):
    raise command_line.ScriptError("--learning_rates must be some, each once")
  for task in _TASKS.value:
    try:
      tasks.make(task)
    except ValueError as error:
      raise command_line.ScriptError(f"--tasks: {error}") from error
  for setting in _SETTINGS.value:
    if "=" not in setting:
      raise command_line.ScriptError(
        f"--setting: want NAME=VALUE, got {setting!r}"
      )


def _run(
  task: str, own: Sequence[str], path: pathlib.Path, *ends_with: str
) -> grid.Run:
  return grid.Run(
    "train_language",
    f"{_CONFIG}:{task}",
    [*_SETTINGS.value, *own],
    path,
    *ends_with,
  )


def _accuracy(run: grid.Run) -> str:
  return f"{_summary(run.workdir)['validation']['greedy']:.3f}"


def _summary(path: pathlib.Path) -> dict:
  return json.loads((path / "summary.json").read_text())


def _row(task: str, algorithm: str, rate: str, summary: dict) -> tuple:
  """(task, algorithm, rate, {column: statistics over seeds})."""
  found = summary["evaluation"]
  passes = {
    f"pass@{k}": scores
    for k, scores in found["pass_at_k"].items()
    if k in ("1", "8")
  }
  entropy = {"entropy": summary["final_entropy"]}
  return task, algorithm, rate, {"greedy": found} | passes | entropy


def _name(task: str) -> str:
  """A task's name as that of a directory."""
  return task.replace(":", "-").replace(",", "-")


if __name__ == "__main__":
  command_line.run(main)
