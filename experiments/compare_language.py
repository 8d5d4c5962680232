"""Compares algorithms on language tasks, each at its own best learning rate.

python -m experiments.compare_language --workdir=DIR \
    --tasks=addition,sorting --algorithms=lco_mse,grpo \
    --learning_rates=1e-4,1e-3 --setting=num_updates=200

Every task gets one warm start, from which all runs begin. The rate with the
best greedy accuracy on validation problems is taken, and reported on test
problems.
Called again with the same flags, it goes on with what is not done yet.
"""

import concurrent.futures
import csv
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from absl import flags

from experiments import command_line, language_run
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
  "learning_rates", "1e-4,3e-4,1e-3,3e-3", "Those to choose from."
)
_SETTINGS = flags.DEFINE_multi_string(
  "setting", [], "NAME=VALUE of the config, for all runs."
)
_JOBS = flags.DEFINE_integer("jobs", 2, "Runs at the same time.")

_CONFIG = "experiments/configs/language.py"
_COLUMNS = ("greedy", "pass@1", "pass@8", "entropy")


def main() -> None:
  """Runs what is missing, then writes and shows the table."""
  _check()
  workdir = pathlib.Path(_WORKDIR.value)
  with concurrent.futures.ThreadPoolExecutor(_JOBS.value) as pool:
    warm = {task: workdir / _name(task) / "warm_start" for task in _TASKS.value}
    _all(pool, [(warm[t], t, ["algorithm=sft"]) for t in _TASKS.value])
    grid = {
      (task, algorithm, rate): workdir / _name(task) / algorithm / rate
      for task in _TASKS.value
      for algorithm in _ALGORITHMS.value
      for rate in _RATES.value
    }
    _all(
      pool,
      [
        (
          path,
          task,
          [
            f"algorithm={algorithm}",
            f"policy_learning_rate={rate}",
            f"init_from={warm[task]}",
          ],
        )
        for (task, algorithm, rate), path in grid.items()
      ],
    )
  rows = []
  for task in _TASKS.value:
    rows.append(_row(task, "warm start", "", _summary(warm[task])))
    for algorithm in _ALGORITHMS.value:
      rate, best = max(
        ((r, _summary(grid[task, algorithm, r])) for r in _RATES.value),
        key=lambda item: item[1]["validation"]["greedy"],
      )
      rows.append(_row(task, algorithm, rate, best))
  with open(workdir / "comparison.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(
      ["task", "algorithm", "learning_rate"]
      + [f"{c}_{s}" for c in _COLUMNS for s in ("iqm", "low", "high")]
    )
    for task, algorithm, rate, scores in rows:
      writer.writerow(
        [task, algorithm, rate]
        + [x for s in scores for x in (s["iqm"], *s["ci95"])]
      )
  table = tables.comparison(_COLUMNS, rows)
  (workdir / "comparison.md").write_text(table + "\n")
  print(table)


def _check() -> None:
  """Ends with one line if a flag is wrong, before anything is run."""
  for name in ("tasks", "algorithms", "learning_rates"):
    if not flags.FLAGS[name].value:
      raise command_line.ScriptError(f"--{name} must name something")
  if _JOBS.value < 1:
    raise command_line.ScriptError(f"--jobs must be ≥ 1, got {_JOBS.value}")
  for algorithm in _ALGORITHMS.value:
    if algorithm not in language_run.ALGORITHMS:
      known = ", ".join(language_run.ALGORITHMS)
      raise command_line.ScriptError(
        f"--algorithms: unknown {algorithm!r}; known: {known}"
      )
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


def _all(
  pool: concurrent.futures.Executor,
  runs: Sequence[tuple[pathlib.Path, str, Sequence[str]]],
) -> None:
  """Runs what is not done, some at a time; the first failure ends it."""
  missing = [run for run in runs if not (run[0] / "summary.json").exists()]
  waiting = [pool.submit(_run, *run) for run in missing]
  try:
    for index, future in enumerate(concurrent.futures.as_completed(waiting)):
      path, accuracy = future.result()
      print(f"[{index + 1}/{len(missing)}] {path}: {accuracy:.3f}", flush=True)
  finally:
    for future in waiting:
      future.cancel()


def _run(
  path: pathlib.Path, task: str, own: Sequence[str]
) -> tuple[pathlib.Path, float]:
  """Runs one, or goes on with it."""
  command = [sys.executable, "-m", "experiments.train_language"]
  command += [f"--config={_CONFIG}:{task}", f"--workdir={path}"]
  command += [f"--config.{x}" for x in (*_SETTINGS.value, *own)]
  if (path / "config.json").exists():
    command.append("--resume")
  environment = dict(os.environ)
  if _JOBS.value > 1:
    # Runs share the cores; each would otherwise take all of them.
    environment.setdefault(
      "XLA_FLAGS", "--xla_force_host_platform_device_count=1"
    )
  done = subprocess.run(
    command, env=environment, capture_output=True, text=True, check=False
  )
  if done.returncode:
    line = done.stderr.strip().rpartition("\n")[2]
    raise command_line.ScriptError(f"{path}: {line}", command_line.FAILED)
  return path, _summary(path)["validation"]["greedy"]


def _summary(path: pathlib.Path) -> dict:
  return json.loads((path / "summary.json").read_text())


def _row(task: str, algorithm: str, rate: str, summary: dict) -> tuple:
  """(task, algorithm, rate, statistics in the order of _COLUMNS)."""
  found = summary["evaluation"]
  passes = found["pass_at_k"]
  return (
    task,
    algorithm,
    rate,
    (found, passes["1"], passes["8"], summary["final_entropy"]),
  )


def _name(task: str) -> str:
  """A task's name as that of a directory."""
  return task.replace(":", "-").replace(",", "-")


if __name__ == "__main__":
  command_line.run(main)
