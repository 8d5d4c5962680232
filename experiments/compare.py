"""Compares algorithms over tasks, each at its own tuned learning rate.

python -m experiments.compare --workdir=DIR
python -m experiments.compare --workdir=DIR \
    --config=experiments/configs/comparison.py:language \
    --config.tasks="('sorting','parity')"

Every variant of an algorithm is trained on every task at every learning rate,
the rates and seeds side by side in one program. In control a half of the seeds
is judged at the rate that was best for the other half; in language the rate is
chosen on validation problems and the result is of test problems. Writes a
table, a picture and a CSV file. Called again, it goes on with what is not done
yet; more variants and tasks can be asked for later.
"""

import csv
import json
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
from absl import flags
from ml_collections import config_flags

from experiments.common import command_line, process_pool
from lco_jax.reporting import (
  comparison,
  interval_plots,
  stability,
  statistics,
  tables,
)

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the comparison.")
flags.mark_flag_as_required("workdir")
_JOBS = flags.DEFINE_integer("jobs", 2, "Runs at the same time.")
_CONFIG = config_flags.DEFINE_config_file(
  "config",
  "experiments/configs/comparison.py:control",
  "FILE:KIND; then --config.NAME=VALUE to change it.",
)

# What language runs start from, as a line of the table.
_START = "warm start"


class _Variant(NamedTuple):
  """An algorithm with its own settings, NAME=VALUE each."""

  name: str
  settings: list[str]


def main() -> None:
  """Runs what is missing, then writes and shows the results."""
  # Runs need the accelerators; comparing does not.
  jax.config.update("jax_platforms", "cpu")
  settings = json.loads(json.dumps(_CONFIG.value.to_dict()))
  variants = _check(settings)
  workdir = pathlib.Path(_WORKDIR.value)
  fixed = ("base", "settings", "policy_learning_rates")
  with process_pool.held(workdir, {name: settings[name] for name in fixed}):
    _run(workdir, settings, variants)
    _report(workdir, settings, variants)


def _check(settings: Mapping) -> list[_Variant]:
  """The variants; ends with one line if a setting is wrong."""
  process_pool.check(settings["policy_learning_rates"], _JOBS.value)
  common = process_pool.split_settings(settings["settings"])
  variants = []
  for text in settings["variants"]:
    name, _, own = (part.strip() for part in text.partition(":"))
    variants.append(
      _Variant(name, process_pool.split_settings(own or f"algorithm={name}"))
    )
  names = [variant.name for variant in variants]
  for name, values in (
    ("variants", names),
    ("variants", [tuple(variant.settings) for variant in variants]),
    ("tasks", settings["tasks"]),
  ):
    if not values or len(set(values)) < len(values):
      raise command_line.ScriptError(f"{name} must hold things, each once")
  if settings["against"] and settings["against"] not in names:
    raise command_line.ScriptError(
      f"against: {settings['against']!r} is none of the variants"
    )
  for task in settings["tasks"]:
    for variant in variants:
      process_pool.check_run(
        settings["base"], task, [*common, *variant.settings]
      )
  return variants


def _task_directory(workdir: pathlib.Path, task: str) -> pathlib.Path:
  return workdir / task.replace(":", "-").replace(",", "-")


def _directory(
  workdir: pathlib.Path, task: str, variant: _Variant
) -> pathlib.Path:
  """Of a run: what its settings are, so that a name can change its meaning."""
  return _task_directory(workdir, task) / ",".join(variant.settings)


def _run(
  workdir: pathlib.Path, settings: Mapping, variants: list[_Variant]
) -> None:
  """Trains what is missing."""
  script = process_pool.script_of(settings["base"])
  rates = settings["policy_learning_rates"]

  def run(task, own, path, *ends_with):
    common = process_pool.split_settings(settings["settings"])
    return process_pool.Run(
      script, f"{settings['base']}:{task}", [*common, *own], path, *ends_with
    )

  begin = {task: [] for task in settings["tasks"]}
  if script == "train_language":
    warm = {
      task: run(
        task, ["algorithm=sft"], _task_directory(workdir, task) / "warm_start"
      )
      for task in settings["tasks"]
    }
    process_pool.complete(list(warm.values()), _JOBS.value)
    begin = {task: [f"init_from={warm[task].workdir}"] for task in warm}
  process_pool.complete(
    [
      run(
        task,
        [*variant.settings, *begin[task], process_pool.setting_of_rates(rates)],
        _directory(workdir, task, variant),
        f"rate_{rates[-1]:g}/summary.json",
      )
      for task in settings["tasks"]
      for variant in variants
    ],
    _JOBS.value,
  )


def _report(
  workdir: pathlib.Path, settings: Mapping, variants: list[_Variant]
) -> None:
  """Writes comparison.csv, .md, .png and .svg, and shows the tables."""
  script = process_pool.script_of(settings["base"])
  read = _read_language if script == "train_language" else _read_control
  results, bounds = {}, {}
  for task in settings["tasks"]:
    cells = {
      variant.name: {
        rate: _directory(workdir, task, variant) / f"rate_{rate:g}"
        for rate in settings["policy_learning_rates"]
      }
      for variant in variants
    }
    results[task], bounds[task] = read(cells)
    if script == "train_language":
      start = _task_directory(workdir, task) / "warm_start"
      results[task] = {_START: comparison.from_language_run(start)} | results[
        task
      ]
  scores = comparison.normalize(results, bounds)
  overall = comparison.make_overall_rows(scores, settings["against"] or None)
  text = "\n\n".join(
    tables.format_markdown(rows)
    for rows in (comparison.make_task_rows(results), overall)
  )
  _write_csv(workdir / "comparison.csv", results)
  (workdir / "comparison.md").write_text(text + "\n")
  pictures = [workdir / f"comparison.{ending}" for ending in ("png", "svg")]
  interval_plots.save_intervals(pictures, results, scores, settings["title"])
  print(text)
  print(f"picture: {pictures[0]}")


def _read_control(
  cells: Mapping[str, Mapping[float, pathlib.Path]],
) -> tuple[dict[str, comparison.Result], tuple[float, float]]:
  """({variant: result} on a task, scores that count as 0 and as 1).

  0 is what the worst run had come to in a tenth of training, 1 the best
  variant's score.
  """
  floor = stability.estimate_floor(
    [cell for by_rate in cells.values() for cell in by_rate.values()]
  )
  results = {}
  for name, by_rate in cells.items():
    own = stability.stack_scores(
      [stability.read_scores(cell, floor) for cell in by_rate.values()]
    )
    results[name] = comparison.cross_fit(
      {
        "return": own.final,
        "area": own.area,
        "entropy": own.entropy,
        "largest KL": own.max_kl,
      },
      list(by_rate),
    )
  best = [statistics.interquartile_mean(r.score) for r in results.values()]
  return results, (floor, float(max(floor, *best)))


def _read_language(
  cells: Mapping[str, Mapping[float, pathlib.Path]],
) -> tuple[dict[str, comparison.Result], tuple[float, float]]:
  """({variant: result} on a task, scores that count as 0 and as 1).

  The rate is the one that did best on validation problems.
  """
  return {
    name: comparison.tune_on_validation(by_rate)
    for name, by_rate in cells.items()
  }, (0.0, 1.0)


def _write_csv(
  path: pathlib.Path, results: Mapping[str, Mapping[str, comparison.Result]]
) -> None:
  """A line for each score of each seed."""
  with open(path, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(
      ["task", "algorithm", "seed_index", "learning_rate", "score", "value"]
    )
    for task, own in results.items():
      for name, result in own.items():
        for score, values in result.scores.items():
          rates = result.rates or ("",) * len(values)
          for seed, (rate, value) in enumerate(zip(rates, values, strict=True)):
            writer.writerow([task, name, seed, rate, score, f"{value:.7g}"])


if __name__ == "__main__":
  command_line.run(main)
