"""Report of runs: an HTML page, figures and tables.

Scores are returns or shares of right answers. Seeds are never dropped. Runs are
compared only with runs of the same length, data and evaluation.
"""

import csv
import html
import json
import pathlib
import string
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from lco_jax.reporting import (
  conditions,
  recorded,
  statistics,
  styles,
  tables,
)
from lco_jax.reporting.recorded import Run

_LEGEND_CHARACTERS = 110  # Per line below the figure.
_NO_PAIRS = "There are no two algorithms with runs that can be compared."
# Names of the files of a report, of which the next one replaces all.
_CONTENTS = "contents.json"
_PAGE = pathlib.Path(__file__).with_name("page.html")
# Settings that labels omit, because they do not affect training.
_UNLABELLED = (
  *recorded.NOT_TRAINED,
  "init_from",
  "verifier_from",
  "eval_problems",
  "eval_samples",
  "eval_episodes",
  "algorithm",
)


def make_labels(runs: Sequence[Run]) -> list[str]:
  """Makes distinct labels: the algorithm and the settings that differ.

  Args:
    runs: all runs of a report; settings are compared within a problem.
  """
  result = []
  for run in runs:
    others = [other for other in runs if other.problem == run.problem]
    alike = [other for other in others if other.algorithm == run.algorithm]
    differing = [
      name
      for name, value in run.settings.items()
      if name not in _UNLABELLED
      and any(other.settings.get(name) != value for other in alike)
    ]
    parts = [run.algorithm]
    parts += [
      f"{name}={run.settings[name]}"
      for name in differing
      if run.settings[name] is not None
    ]
    result.append(" ".join(parts))
  # Runs with equal labels differ only in their directories.
  names = [
    (run.problem, label) for run, label in zip(runs, result, strict=True)
  ]
  return [
    f"{label} ({_join_paths(run)})"
    if names.count((run.problem, label)) > 1
    else label
    for run, label in zip(runs, result, strict=True)
  ]


def summarize_runs(runs: Sequence[Run]) -> list[dict]:
  """Makes a row of scores per run, ordered by problem, best run first."""
  rows = []
  for run, label in zip(runs, make_labels(runs), strict=True):
    scores = statistics.summarize(run.final)
    rows.append(
      {
        "problem": run.problem,
        "run": label,
        "algorithm": run.algorithm,
        "seeds": len(run.final),
        "steps": int(run.steps[-1]),
        "IQM": scores["iqm"],
        "low": scores["ci95"][0],
        "high": scores["ci95"][1],
        "worst": None if np.isnan(run.final).any() else float(run.final.min()),
        "stopped": int(run.stopped.sum()),
        **_summarize_evaluation(run, "greedy"),
        **_summarize_evaluation(run, "sampled"),
        "directory": _join_paths(run),
      }
    )
  return sorted(
    rows,
    key=lambda row: (
      row["problem"],
      np.inf if row["IQM"] is None else -row["IQM"],
    ),
  )


def _summarize_evaluation(run: Run, name: str) -> dict[str, float | None]:
  """Computes the IQM of an evaluation's scores and its interval."""
  columns = name, f"{name} low", f"{name} high"
  if name not in run.evaluated:
    return dict.fromkeys(columns)
  scores = statistics.summarize(run.evaluated[name])
  return dict(zip(columns, (scores["iqm"], *scores["ci95"]), strict=True))


def _join_paths(run: Run) -> str:
  return ", ".join(map(str, run.paths))


def group_by_conditions(
  runs: Sequence[Run],
) -> dict[tuple[str, str], list[Run]]:
  """Groups runs whose scores can be compared.

  Returns:
    {(problem, conditions that differ from other runs of the problem): runs}.
  """
  groups: dict[tuple[str, str], list[Run]] = {}
  for problem in sorted({run.problem for run in runs}):
    own = [run for run in runs if run.problem == problem]
    found = [run.conditions for run in own]
    names = conditions.find_differences(found)
    for run, each in zip(own, found, strict=True):
      key = problem, conditions.format_conditions(each, names)
      groups.setdefault(key, []).append(run)
  return groups


def describe_differences(runs: Sequence[Run]) -> list[str]:
  """Says on which problems runs are not compared, and why; a line for each."""
  lines = []
  for problem in sorted({run.problem for run in runs}):
    found = [run.conditions for run in runs if run.problem == problem]
    names = conditions.find_differences(found)
    if names:
      lines.append(
        f"{problem}: runs that differ in {', '.join(names)} are not compared."
      )
  return lines


def compare_runs(runs: Sequence[Run]) -> list[dict]:
  """Compares the algorithms' best runs pairwise under the same conditions.

  The best run has the highest IQM of the runs without stopped seeds, which
  favours algorithms with more runs. p-values are from paired permutation tests
  on runs with the same seeds, corrected for the number of comparisons.
  """
  rows = []
  for (problem, under), group in group_by_conditions(runs).items():
    best: dict[str, Run] = {}
    for run in group:
      if np.isnan(run.final).any():
        continue
      score = statistics.interquartile_mean(run.final)
      known = best.get(run.algorithm)
      if known is None or score > statistics.interquartile_mean(known.final):
        best[run.algorithm] = run
    ordered = sorted(
      best.values(), key=lambda r: -statistics.interquartile_mean(r.final)
    )
    for i, better in enumerate(ordered):
      for other in ordered[i + 1 :]:
        x, y = better.final[None], other.final[None]
        low, high = statistics.stratified_interval(
          statistics.probability_of_improvement, x, y
        )
        shared = better.seeds == other.seeds
        rows.append(
          {
            "problem": problem,
            "conditions": under,
            "better": better.algorithm,
            "than": other.algorithm,
            "probability": statistics.probability_of_improvement(x, y),
            "low": float(low),
            "high": float(high),
            "p": statistics.paired_p_value(x[0], y[0]) if shared else None,
          }
        )
  tested = [row for row in rows if row["p"] is not None]
  if tested:
    adjusted = statistics.adjust_p_values(
      np.array([row["p"] for row in tested])
    )
    for row, value in zip(tested, adjusted, strict=True):
      row["p"] = float(value)
  return rows


def write(runs: Sequence[Run], out: pathlib.Path) -> None:
  """Writes report.html, tables as CSV and Markdown, and a figure per problem.

  Args:
    runs: from `recorded.joined`.
    out: existing directory; the files of an earlier report in it are deleted.
  """
  _delete_earlier(out)
  before = set(out.iterdir())
  rows, pairs = summarize_runs(runs), compare_runs(runs)
  found = {"scores": rows} | ({"comparisons": pairs} if pairs else {})
  for name, table in found.items():
    with open(out / f"{name}.csv", "w", newline="") as file:
      writer = csv.DictWriter(file, list(table[0]))
      writer.writeheader()
      writer.writerows(table)
  (out / "scores.md").write_text(
    tables.format_markdown(_format_scores(rows)) + "\n"
  )
  if pairs:
    (out / "comparisons.md").write_text(
      tables.format_markdown(_format_comparisons(pairs)) + "\n"
    )
  labels = dict(zip(map(id, runs), make_labels(runs), strict=True))
  best = [id(run) for run in _select_best(runs)]
  numbers = _number_lines(runs, best)
  for problem in sorted({run.problem for run in runs}):
    own = [r for r in runs if r.problem == problem and id(r) in best]
    _save_figure(out, problem, own, labels, numbers)
  content = {
    # On a dark page the last one, a dark grey, is the text's colour.
    "colors": [*styles.COLORS[:-1], "currentColor"],
    "runs": [
      {
        "best": id(run) in best,
        "line": numbers[id(run)],
        "problem": run.problem,
        "label": labels[id(run)],
        "algorithm": run.algorithm,
        "score": run.score,
        "steps": run.steps.tolist(),
        "metrics": {
          name: _summarize_windows(values)
          for name, values in run.metrics.items()
        },
      }
      for run in runs
    ],
  }
  page = string.Template(_PAGE.read_text()).substitute(
    # Escape "<", which could end the script element.
    data=json.dumps(content, allow_nan=False, separators=(",", ":")).replace(
      "<", "\\u003c"
    ),
    scores=_html_table(_format_scores(rows)),
    comparisons=_html_table(_format_comparisons(pairs)) if pairs else "",
    differences=html.escape(
      " ".join([*describe_differences(runs), *([] if pairs else [_NO_PAIRS])])
    ),
  )
  (out / "report.html").write_text(page)
  written = [path.name for path in out.iterdir() if path not in before]
  (out / _CONTENTS).write_text(json.dumps(sorted(written)))


def _delete_earlier(out: pathlib.Path) -> None:
  """Deletes the files of an earlier report, which names them itself."""
  contents = out / _CONTENTS
  if not contents.exists():
    return
  for name in json.loads(contents.read_text()):
    # Names alone: nothing outside of the directory.
    (out / pathlib.Path(name).name).unlink(missing_ok=True)
  contents.unlink()


def _number_lines(runs: Sequence[Run], best: Sequence[int]) -> dict[int, int]:
  """Numbers the runs of each problem, the best ones first, by their id."""
  numbers = {}
  for problem in {run.problem for run in runs}:
    own = [id(run) for run in runs if run.problem == problem]
    own.sort(key=lambda number: number not in best)
    numbers |= {run: index for index, run in enumerate(own)}
  return numbers


def _format_scores(rows: Sequence[Mapping]) -> list[dict]:
  evaluated = [
    name
    for name in ("greedy", "sampled")
    if any(row[name] is not None for row in rows)
  ]
  return [
    {
      "problem": row["problem"],
      "run": row["run"],
      "seeds": row["seeds"],
      "steps": f"{row['steps']:,}",
      "IQM [95%]": tables.format_interval(row["IQM"], row["low"], row["high"]),
      "worst": tables.format_number(row["worst"]),
      "stopped": row["stopped"],
      **{
        name: tables.format_interval(
          row[name], row[f"{name} low"], row[f"{name} high"]
        )
        for name in evaluated
      },
    }
    for row in rows
  ]


def _format_comparisons(pairs: Sequence[Mapping]) -> list[dict]:
  differing = any(row["conditions"] for row in pairs)
  return [
    {
      "problem": row["problem"],
      **({"under": row["conditions"]} if differing else {}),
      "better": row["better"],
      "than": row["than"],
      "probability [95%]": tables.format_interval(
        row["probability"], row["low"], row["high"]
      ),
      "p (adjusted)": tables.format_number(row["p"]),
    }
    for row in pairs
  ]


def _summarize_windows(values: np.ndarray) -> dict[str, list]:
  """Computes each window's IQM and interval, None until all seeds have one."""
  known = ~np.isnan(values).any(axis=1)
  result = {name: [None] * len(values) for name in ("mid", "low", "high")}
  if known.any():
    middle = statistics.interquartile_mean(values[known])
    low, high = statistics.bootstrap_interval(values[known], num_resamples=400)
    for name, array in (("mid", middle), ("low", low), ("high", high)):
      for index, value in zip(np.flatnonzero(known), array, strict=True):
        result[name][index] = float(f"{value:.4g}")
  return result


def _save_figure(
  out: pathlib.Path,
  problem: str,
  runs: Sequence[Run],
  labels: Mapping[int, str],
  numbers: Mapping[int, int],
) -> None:
  """Draws the learning curves of each algorithm's best run on a problem.

  Args:
    out: directory of the figure.
    problem: environment or task.
    runs: the best runs.
    labels: label of a run, by the id of the object.
    numbers: number of a run's line, likewise.
  """
  texts = [textwrap.fill(labels[id(r)], _LEGEND_CHARACTERS) for r in runs]
  columns = 2 if max(map(len, texts)) < _LEGEND_CHARACTERS // 2 else 1
  lines = sum(text.count("\n") + 1 for text in texts) / columns
  figure, axes = styles.make_figure(figsize=(7.2, 3.7 + 0.18 * lines), dpi=120)
  for run, text in zip(runs, texts, strict=True):
    style = styles.line_style(numbers[id(run)])
    values = run.metrics[run.score]
    known = ~np.isnan(values).any(axis=1)
    if not known.any():
      continue
    low, high = statistics.bootstrap_interval(values[known], num_resamples=400)
    axes.fill_between(
      run.steps[known], low, high, color=style["color"], alpha=0.2, linewidth=0
    )
    axes.plot(
      run.steps[known],
      statistics.interquartile_mean(values[known]),
      label=text,
      linewidth=2,
      **style,
    )
  axes.set_title(f"{problem}: each algorithm's best run")
  axes.set_xlabel("environment steps, or samples, of a seed")
  axes.set_ylabel(f"{runs[0].score} (IQM, 95%)")
  axes.grid(alpha=0.2)
  axes.spines[["top", "right"]].set_visible(False)
  figure.legend(
    loc="outside lower left", frameon=False, fontsize=8, ncols=columns
  )
  name = "".join(c if c.isalnum() else "-" for c in problem)
  for suffix in ("png", "svg"):
    figure.savefig(out / f"{name}.{suffix}")


def _select_best(runs: Sequence[Run]) -> list[Run]:
  """Selects the best run of each algorithm under the same conditions."""
  selected = []
  for group in group_by_conditions(runs).values():
    best: dict[str, Run] = {}
    for run in group:
      known = best.get(run.algorithm)
      if known is None or _compute_final(run) > _compute_final(known):
        best[run.algorithm] = run
    selected += best.values()
  return selected


def _compute_final(run: Run) -> float:
  score = statistics.interquartile_mean(run.final)
  return -np.inf if np.isnan(score) else float(score)


def _html_table(rows: Sequence[Mapping]) -> str:
  """Formats rows as the content of an HTML table."""
  head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
  body = "".join(
    "<tr>"
    + "".join(
      # Phones show the label beside the value.
      f'<td data-label="{html.escape(name)}">{html.escape(str(value))}</td>'
      for name, value in row.items()
    )
    + "</tr>"
    for row in rows
  )
  return f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
