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
import math
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence

import jax
from absl import flags

from experiments import command_line, language_run
from lco_jax import run_directory, tasks
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
_RUNNING: set[subprocess.Popen] = set()


def main() -> None:
  """Runs what is missing, then writes and shows the table."""
  # Runs need the accelerators; checking flags does not.
  jax.config.update("jax_platforms", "cpu")
  _check()
  workdir = pathlib.Path(_WORKDIR.value)
  signal.signal(signal.SIGTERM, _stop)
  try:
    _hold(workdir)
    with run_directory.locked(workdir):
      _compare(workdir)
  except (ValueError, OSError) as error:
    raise command_line.ScriptError(error) from error
  finally:
    for process in list(_RUNNING):
      process.terminate()  # It saves its state; the next call goes on.


def _compare(workdir: pathlib.Path) -> None:
  """The runs, and the table of them."""
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
  for name in ("tasks", "algorithms", "learning_rates"):
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


def _hold(workdir: pathlib.Path) -> None:
  """Makes the directory, or checks that it was made with these settings.

  Raises:
    ValueError: if it was made with others, which would mix in one table.
  """
  given = {"settings": sorted(_SETTINGS.value)}
  if (workdir / "config.json").exists():
    run_directory.check_same_config(workdir, given)
  else:
    run_directory.create(workdir, given)


def _stop(number, frame):
  """At SIGTERM: by way of an exception, so that runs are stopped, too."""
  raise command_line.ScriptError(
    f"stopped; go on with --workdir={_WORKDIR.value}", command_line.STOPPED
  )


def _all(
  pool: concurrent.futures.Executor,
  runs: Sequence[tuple[pathlib.Path, str, Sequence[str]]],
) -> None:
  """Runs what is not done, some at a time; a failure ends the others."""
  missing = [run for run in runs if not (run[0] / "summary.json").exists()]
  waiting = [pool.submit(_run, *run) for run in missing]
  try:
    for index, future in enumerate(concurrent.futures.as_completed(waiting)):
      path, accuracy = future.result()
      print(f"[{index + 1}/{len(missing)}] {path}: {accuracy:.3f}", flush=True)
  except BaseException:
    for future in waiting:
      future.cancel()
    for process in list(_RUNNING):
      process.terminate()
    raise


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
    # Runs share the machine; each would otherwise take all of it.
    environment.setdefault(
      "XLA_FLAGS", "--xla_force_host_platform_device_count=1"
    )
    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  process = subprocess.Popen(
    command,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  _RUNNING.add(process)
  _, complaint = process.communicate()
  _RUNNING.discard(process)
  if process.returncode:
    line = complaint.strip().rpartition("\n")[2]
    raise command_line.ScriptError(f"{path}: {line}", command_line.FAILED)
  return path, _summary(path)["validation"]["greedy"]


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
