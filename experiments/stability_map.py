r"""Maps the stability of algorithms over learning rates × epochs × seeds.

python -m experiments.stability_map --workdir=DIR
python -m experiments.stability_map --workdir=DIR \
    --config=experiments/configs/stability_map.py:language

Trains every algorithm at every learning rate and value of another setting
(epochs per rollout, or --config.rows); one program trains all rates and seeds
of a row in parallel, or a single rate of a pretrained model. Draws the score
and the share of collapsed runs, and reports the share of the map that is nearly
as good as its best cell. Compares the algorithms in each row, where each half
of the seeds is scored at the other half's best rate. A repeated call with the
same flags trains only missing runs.
"""

import csv
import json
import math
import pathlib
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from experiments.common import command_line, process_pool
from lco_jax import algorithms
from lco_jax.reporting import (
  comparison,
  heat_maps,
  interval_plots,
  stability,
  statistics,
  tables,
)

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the map.")
flags.mark_flag_as_required("workdir")
_JOBS = flags.DEFINE_integer("jobs", 2, "Number of parallel runs.")
_CONFIG = command_line.define_default_config(
  "experiments/configs/stability_map.py:control",
  "FILE:KIND; then --config.NAME=VALUE to change it.",
)


def main() -> None:
  """Trains the missing runs, then writes and prints the map."""
  # Leave the accelerators to the runs.
  jax.config.update("jax_platforms", "cpu")
  settings = process_pool.join_settings(
    json.loads(json.dumps(_CONFIG.value.to_dict()))
  )
  files = _check(settings)
  workdir = pathlib.Path(_WORKDIR.value)
  # Later calls may add algorithms and rows and change the bounds.
  fixed = ("base", "settings", "policy_learning_rates")
  held = {name: settings[name] for name in fixed} | files
  with process_pool.hold(workdir, held):
    _run(workdir, settings)
    _report(workdir, settings)


def _check(settings: dict) -> dict[str, dict[str, str]]:
  """Raises ScriptError if a setting is wrong, before any training.

  Returns:
    The hashes of files that runs read, as of `process_pool.find_files`.
  """
  process_pool.check_rates(settings["policy_learning_rates"], _JOBS.value)
  for name in ("algorithms", "values"):
    values = [str(value) for value in settings[name]]
    if not values or len(set(values)) < len(values):
      raise command_line.ScriptError(
        f"{name} must be a non-empty list without repetitions"
      )
  against = settings["against"]
  if against and against not in algorithms.ALGORITHMS:
    raise command_line.ScriptError(
      f"against: no algorithm is called {against!r}"
    )
  file, _, task = settings["base"].partition(":")
  common = process_pool.split_settings(settings["settings"])
  runs = []
  for algorithm in settings["algorithms"]:
    for value in settings["values"]:
      own = [f"algorithm={algorithm}", f"{settings['rows']}={value}"]
      runs.append(process_pool.check_run(file, task, [*common, *own]))
    given = [setting.partition("=")[0] for setting in (*common, *own)]
    command_line.say_idle(runs[-1], given, f"{algorithm}: ")
  if against and against not in settings["algorithms"]:
    print(f"no differences: against {against!r} is not one of the algorithms")
  return process_pool.find_files(runs)


def _row_directory(
  workdir: pathlib.Path, settings: dict, algorithm: str, value
):
  """Names the directory of one program: a row of an algorithm's map."""
  return workdir / algorithm / f"{settings['rows']}_{value}"


def _run(workdir: pathlib.Path, settings: dict) -> None:
  """Trains the missing runs."""
  common = process_pool.split_settings(settings["settings"])
  script = process_pool.find_script(settings["base"])
  if script == "train_language":
    warm_start = process_pool.Run(
      script,
      settings["base"],
      [*common, "algorithm=sft"],
      workdir / "warm_start",
    )
    process_pool.complete([warm_start], _JOBS.value)
    common.append(f"init_from={warm_start.workdir}")
  process_pool.complete(
    [
      run
      for value in settings["values"]
      for algorithm in settings["algorithms"]
      for run in process_pool.make_runs(
        settings["base"],
        [*common, f"algorithm={algorithm}", f"{settings['rows']}={value}"],
        settings["policy_learning_rates"],
        _row_directory(workdir, settings, algorithm, value),
      )
    ],
    _JOBS.value,
  )


class _Map(NamedTuple):
  """Scores of all runs by algorithm, as arrays [rows, rates, seeds]."""

  scores: dict[str, stability.Scores]
  collapsed: dict[str, np.ndarray]
  floor: float
  ceiling: float
  label: str


def _report(workdir: pathlib.Path, settings: dict) -> None:
  """Writes map.csv, the figures and the table."""
  found = _read_map(workdir, settings)
  _write_csv(workdir, settings, found)
  heat_maps.save_heat_maps(
    [workdir / "stability_map.png", workdir / "stability_map.svg"],
    {
      algorithm: (
        statistics.interquartile_mean(own.final),
        found.collapsed[algorithm].mean(axis=-1),
      )
      for algorithm, own in found.scores.items()
    },
    settings["rows"],
    settings["values"],
    settings["policy_learning_rates"],
    f"{found.label}, last tenth of training (interquartile mean)",
    (found.floor, found.ceiling),
    f"Stability on {settings['base'].partition(':')[2]}",
  )
  best = [
    _make_table_row(settings, found, algorithm) for algorithm in found.scores
  ]
  text = "\n\n".join(
    tables.format_markdown(rows)
    for rows in (best, _compare_rows(workdir, settings, found))
    if rows
  )
  (workdir / "stability_map.md").write_text(text + "\n")
  print(text)
  print(f"maps: {workdir / 'stability_map.png'}")


def _compare_rows(
  workdir: pathlib.Path, settings: dict, found: _Map
) -> list[dict[str, object]]:
  """Draws and compares the algorithms in each row, each at its own rate."""
  if next(iter(found.collapsed.values())).shape[-1] < 2:
    return []  # A single seed cannot choose a rate for another.
  rates = settings["policy_learning_rates"]
  results = {
    value: {
      name: comparison.cross_fit(
        {"score": own.final[index], "area": own.area[index]}, rates
      )
      for name, own in found.scores.items()
    }
    for index, value in enumerate(settings["values"])
  }
  interval_plots.save_rows(
    [workdir / "stability_rows.png", workdir / "stability_rows.svg"],
    results,
    settings["rows"],
    f"{found.label}, last tenth of training",
    f"Each at its own rate on {settings['base'].partition(':')[2]}",
  )
  rows = comparison.make_task_rows(
    results, settings["against"] or None, settings["rows"]
  )
  gone = (
    (own[index].sum(), own[index].size)
    for index in range(len(results))
    for own in found.collapsed.values()
  )
  return [
    row | {"collapsed": f"{count} of {size}"}
    for row, (count, size) in zip(rows, gone, strict=True)
  ]


def _read_map(workdir: pathlib.Path, settings: dict) -> _Map:
  """Reads all runs and detects collapse with a common floor and ceiling."""
  cells = {
    algorithm: [
      [
        process_pool.find_cell(
          settings["base"],
          _row_directory(workdir, settings, algorithm, value),
          rate,
        )
        for rate in settings["policy_learning_rates"]
      ]
      for value in settings["values"]
    ]
    for algorithm in settings["algorithms"]
  }
  every = [cell for rows in cells.values() for row in rows for cell in row]
  # Language runs begin with a model that knows something, which they can lose:
  # the floor is 0. In control it is estimated from the first tenth of training.
  in_control = stability.find_score(every[0]) == "episode_return_mean"
  floor = stability.estimate_floor(every) if in_control else 0.0
  scores = {
    algorithm: stability.stack_scores(
      [[stability.read_scores(cell, floor) for cell in row] for row in rows]
    )
    for algorithm, rows in cells.items()
  }
  best = [statistics.interquartile_mean(s.final).max() for s in scores.values()]
  ceiling = max(floor, *best)
  collapsed = {
    algorithm: stability.detect_collapse(
      own,
      floor,
      ceiling,
      settings["min_entropy"],
      settings["max_gradient_norm"] or math.inf,
    )
    for algorithm, own in scores.items()
  }
  label = "return" if in_control else "share of right answers"
  return _Map(scores, collapsed, floor, ceiling, label)


def _make_table_row(
  settings: dict, found: _Map, algorithm: str
) -> dict[str, object]:
  """Makes an algorithm's table row: its best cell and its whole map."""
  own = found.scores[algorithm]
  middle = statistics.interquartile_mean(own.final)
  best = np.unravel_index(np.argmax(middle), middle.shape)
  return {
    "algorithm": algorithm,
    settings["rows"]: settings["values"][best[0]],
    "rate": f"{settings['policy_learning_rates'][best[1]]:g}",
    "best": tables.format_interval(
      middle[best], *statistics.bootstrap_interval(own.final[best])
    ),
    "area": tables.format_interval(
      statistics.interquartile_mean(own.area[best]),
      *statistics.bootstrap_interval(own.area[best]),
    ),
    "robustness": tables.format_interval(
      float(stability.robustness_area(own.final, found.floor, found.ceiling)),
      *stability.robustness_interval(own.final, found.floor, found.ceiling),
    ),
    "collapsed": f"{found.collapsed[algorithm].mean():.1%}",
    "largest KL": f"{np.fmax.reduce(own.max_kl, axis=None):.3g}",
  }


def _write_csv(workdir: pathlib.Path, settings: dict, found: _Map) -> None:
  """Writes a row per run."""
  columns = [
    "final",
    "area",
    "best",
    "faulted",
    "max_kl",
    "entropy",
    "max_gradient_norm",
  ]
  with open(workdir / "map.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(
      ["algorithm", settings["rows"], "learning_rate", "seed_index"]
      + [*columns, "collapsed"]
    )
    for algorithm, own in found.scores.items():
      for index, gone in np.ndenumerate(found.collapsed[algorithm]):
        row, rate, seed = index
        writer.writerow(
          [
            algorithm,
            settings["values"][row],
            f"{settings['policy_learning_rates'][rate]:g}",
            seed,
            *(f"{getattr(own, name)[index]:.7g}" for name in columns),
            int(gone),
          ]
        )


if __name__ == "__main__":
  command_line.run(main)
