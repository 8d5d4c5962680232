r"""Compares algorithms over tasks, each at its own tuned learning rate.

python -m experiments.compare --workdir=DIR
python -m experiments.compare --workdir=DIR \
    --config=experiments/configs/comparison.py:language \
    --config.tasks="('sorting','parity')"

Trains every variant of an algorithm on every task at every learning rate; one
program trains all rates and seeds in parallel, or a single rate of a pretrained
model. In control, each half of the seeds is scored at the other half's best
rate. In language, the score on validation problems determines the rate, and
that on test problems is compared. Writes a table, a figure and a CSV file. A
repeated call trains only missing runs; it may add variants and tasks.
"""

import csv
import json
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
from absl import flags

from experiments.common import command_line, process_pool
from lco_jax.reporting import (
  comparison,
  conditions,
  interval_plots,
  stability,
  statistics,
  tables,
)

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the comparison.")
flags.mark_flag_as_required("workdir")
_JOBS = flags.DEFINE_integer("jobs", 2, "Number of parallel runs.")
_CONFIG = command_line.define_default_config(
  "experiments/configs/comparison.py:control",
  "FILE:KIND; then --config.NAME=VALUE to change it.",
)

# Names in the table of what language runs begin with.
_WARM_START, _UNTRAINED = "warm start", "untrained"


class _Variant(NamedTuple):
  """A named list of settings, NAME=VALUE each."""

  name: str
  settings: list[str]


def main() -> None:
  """Trains the missing runs, then writes and prints the results."""
  # Leave the accelerators to the runs.
  jax.config.update("jax_platforms", "cpu")
  given = json.loads(json.dumps(_CONFIG.value.to_dict()))
  # A configuration of one's own may leave the score out.
  settings = process_pool.join_settings(
    {"score": comparison.LANGUAGE_SCORES[0]} | given
  )
  variants, files = _check(settings)
  workdir = pathlib.Path(_WORKDIR.value)
  fixed = ("base", "settings", "policy_learning_rates")
  held = {name: settings[name] for name in fixed} | files
  with process_pool.hold(workdir, held):
    _run(workdir, settings, variants)
    _report(workdir, settings, variants)


def _check(
  settings: Mapping,
) -> tuple[list[_Variant], dict[str, dict[str, str]]]:
  """Parses the variants; raises ScriptError if a setting is wrong.

  Returns:
    (the variants, hashes of files that runs read, as of
    `process_pool.find_files`).
  """
  process_pool.check_rates(settings["policy_learning_rates"], _JOBS.value)
  if settings["score"] not in comparison.LANGUAGE_SCORES:
    raise command_line.ScriptError(
      f"score: want one of {', '.join(comparison.LANGUAGE_SCORES)}, got"
      f" {settings['score']!r}"
    )
  common = process_pool.split_settings(settings["settings"])
  variants = []
  for text in settings["variants"]:
    name, _, own = (part.strip() for part in text.partition(":"))
    variants.append(
      _Variant(name, process_pool.split_settings(own or f"algorithm={name}"))
    )
  for variant in variants:
    if not any(x.startswith("algorithm=") for x in variant.settings):
      raise command_line.ScriptError(
        f"variants: {variant.name!r} names no algorithm; add algorithm=NAME"
      )
  names = [variant.name for variant in variants]
  for name, values in (
    ("variants", names),
    ("variants", [tuple(variant.settings) for variant in variants]),
    ("tasks", settings["tasks"]),
  ):
    if not values or len(set(values)) < len(values):
      raise command_line.ScriptError(
        f"{name} must be a non-empty list without repetitions"
      )
  for name in {_WARM_START, _UNTRAINED}.intersection(names):
    raise command_line.ScriptError(
      f"variants: {name!r} is the name of another row of the table"
    )
  if settings["against"] and settings["against"] not in names:
    raise command_line.ScriptError(
      f"against: {settings['against']!r} is not one of the variants"
    )
  runs = []
  for index, task in enumerate(settings["tasks"]):
    found = {
      variant.name: process_pool.check_run(
        settings["base"], task, [*common, *variant.settings]
      )
      for variant in variants
    }
    _check_conditions(found)
    runs += found.values()
    for variant in variants if index == 0 else ():
      given = [x.partition("=")[0] for x in (*common, *variant.settings)]
      command_line.say_idle(found[variant.name], given, f"{variant.name}: ")
  return variants, process_pool.find_files(runs)


def _check_conditions(variants: Mapping[str, Mapping]) -> None:
  """Checks that all variants learn as long, from the same, judged alike.

  Args:
    variants: {name: settings}.

  Raises:
    ScriptError: naming a variant and the conditions that differ.
  """
  found = {
    name: conditions.find_conditions(own) for name, own in variants.items()
  }
  first = next(iter(found))
  for name, own in found.items():
    names = conditions.find_differences([found[first], own])
    if names:
      raise command_line.ScriptError(
        f"variants: {name!r} has {conditions.format_conditions(own, names)},"
        f" {first!r} {conditions.format_conditions(found[first], names)}; set"
        " it for all in --config.settings"
      )


def _task_directory(workdir: pathlib.Path, task: str) -> pathlib.Path:
  return workdir / task.replace(":", "-").replace(",", "-")


def _directory(
  workdir: pathlib.Path, task: str, variant: _Variant
) -> pathlib.Path:
  """Names a run's directory by its settings, because names may be redefined."""
  return _task_directory(workdir, task) / ",".join(variant.settings)


def _run(
  workdir: pathlib.Path, settings: Mapping, variants: list[_Variant]
) -> None:
  """Trains the missing runs."""
  common = process_pool.split_settings(settings["settings"])
  configs = {task: f"{settings['base']}:{task}" for task in settings["tasks"]}
  begin = {task: [] for task in configs}
  if process_pool.find_script(settings["base"]) == "train_language":
    warm = {
      task: process_pool.Run(
        "train_language",
        config,
        [*common, "algorithm=sft"],
        _task_directory(workdir, task) / "warm_start",
      )
      for task, config in configs.items()
    }
    process_pool.complete(list(warm.values()), _JOBS.value)
    begin = {task: [f"init_from={warm[task].workdir}"] for task in warm}
  process_pool.complete(
    [
      run
      for task, config in configs.items()
      for variant in variants
      for run in process_pool.make_runs(
        config,
        [*common, *variant.settings, *begin[task]],
        settings["policy_learning_rates"],
        _directory(workdir, task, variant),
      )
    ],
    _JOBS.value,
  )


def _report(
  workdir: pathlib.Path, settings: Mapping, variants: list[_Variant]
) -> None:
  """Writes comparison.csv, .md, .png and .svg and prints the tables."""
  script = process_pool.find_script(settings["base"])
  score = settings["score"]
  results, bounds = {}, {}
  for task in settings["tasks"]:
    cells = {
      variant.name: {
        rate: process_pool.find_cell(
          settings["base"], _directory(workdir, task, variant), rate
        )
        for rate in settings["policy_learning_rates"]
      }
      for variant in variants
    }
    if script == "train_control":
      results[task], bounds[task] = _read_control(cells)
      continue
    tuned = {
      name: comparison.tune_on_validation(by_rate, score)
      for name, by_rate in cells.items()
    }
    if script == "train_llm":
      one, *_ = (run for own in cells.values() for run in own.values())
      start = {_UNTRAINED: comparison.from_before_training(one, score)}
    else:
      warm = _task_directory(workdir, task) / "warm_start"
      start = {_WARM_START: comparison.from_language_run(warm, score)}
    results[task], bounds[task] = start | tuned, (0.0, 1.0)
  scores = comparison.normalize(results, bounds)
  against = settings["against"] or None
  overall = comparison.make_overall_rows(scores, against)
  text = "\n\n".join(
    tables.format_markdown(rows)
    for rows in (comparison.make_task_rows(results, against), overall)
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
  """Reads ({variant: result} on a task, scores normalised to 0 and 1).

  0 is the worst run's score in the first tenth of training, 1 the best
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


def _write_csv(
  path: pathlib.Path, results: Mapping[str, Mapping[str, comparison.Result]]
) -> None:
  """Writes a row per score and seed."""
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
