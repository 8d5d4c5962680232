"""Text tables of runs and evaluations."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence

# Characters in a column of texts; three columns fit into a terminal.
_WIDEST = 24


def format_run(summary: Mapping) -> str:
  """Formats a control run's results as a table.

  Args:
    summary: content of summary.json.
  """
  evaluation = summary["evaluation"]
  rows = [
    ("training, last tenth", summary["final_return"]),
    ("greedy policy", evaluation),
    ("sampled policy", summary["evaluation_sampled"]),
  ]
  lines = [
    "",
    f"{summary['algorithm']} on {summary['env']}, learning rate"
    f" {summary['learning_rate']:g}:"
    f" {summary['num_seeds']} seeds × {summary['total_steps']:,} steps",
    f"compiled in {summary['compile_seconds']:.1f} s, trained in"
    f" {summary['train_seconds']:.1f} s"
    f" ({summary['steps_per_second']:,.0f} steps/s)",
    f"evaluated on {evaluation['episodes']} episodes a seed"
    f" ({evaluation['backend']})",
    "",
    *format_scores("return", rows),
  ]
  if not any(x is not None for x in summary["final_return"]["per_seed"]):
    lines += ["", "no episode ended in training, so that it has no return"]
  return "\n".join([*lines, ""])


def format_language_run(summary: Mapping) -> str:
  """Formats a language run's results and example completions as tables.

  Args:
    summary: content of summary.json.
  """
  found, before = summary["evaluation"], summary["before"]
  rows = [("training, last tenth", summary["final_correct"])]
  if before is not None:
    rows.append(("greedy, before", before))
  rows.append(("greedy", found))
  rows += [(f"pass@{k}", scores) for k, scores in found["pass_at_k"].items()]
  levels = found["by_difficulty"].items()
  return "\n".join(
    [
      "",
      f"{summary['algorithm']} on {summary['task']}, learning rate"
      f" {summary['learning_rate']:g}:"
      f" {summary['num_seeds']} seeds × {summary['total_samples']:,} samples",
      f"compiled in {summary['compile_seconds']:.1f} s, trained in"
      f" {summary['train_seconds']:.1f} s"
      f" ({summary['samples_per_second']:,.0f} samples/s)",
      f"evaluated on {found['problems']} {found['split']} problems,"
      f" {found['samples']} samples of each",
      "",
      *format_scores("accuracy", rows),
      "",
      "greedy by difficulty: " + ", ".join(f"{k}: {v:.2f}" for k, v in levels),
      "",
      format_completions(found["examples"]),
      "",
    ]
  )


def format_accuracy(evaluation: Mapping) -> str:
  """Formats a language evaluation in one line."""
  each = " ".join(_format_cell(score) for score in evaluation["per_seed"])
  return (
    f"greedy accuracy on {evaluation['problems']} {evaluation['split']}"
    f" problems {_format_cell(evaluation['greedy'])} (seeds: {each})"
  )


def format_scores(title: str, rows: Sequence[tuple[str, Mapping]]) -> list[str]:
  """Formats a header and a line for each (label, statistics over seeds)."""
  lines = [
    f"{title:<22}{'mean':>8}{'IQM':>8}  {'95% interval':<18}"
    f"{'worst seed':>11}{'best':>8}"
  ]
  for label, result in rows:
    known = [score for score in result["per_seed"] if score is not None]
    low, high = (_format_cell(bound) for bound in result["ci95"])
    lines.append(
      f"{label:<22}{_format_cell(result['mean']):>8}{_format_cell(result['iqm']):>8}"
      f"  {f'[{low}, {high}]':<18}"
      f"{_format_cell(min(known, default=None)):>11}"
      f"{_format_cell(max(known, default=None)):>8}"
    )
  return lines


def format_completions(examples: Sequence[tuple[str, str, str, bool]]) -> str:
  """Formats completions beside the right answers.

  Args:
    examples: (prompt, right answer, completion, whether it is right).
  """
  table = [["prompt", "completion", "a right answer", ""]]
  for prompt, answer, completion, right in examples:
    cells = [_wrap(text) for text in (prompt, completion, answer)]
    cells.append(["right" if right else "wrong"])
    table += itertools.zip_longest(*cells, fillvalue="")
  widths = [max(len(row[i]) for row in table) for i in range(4)]
  return "\n".join(
    "  ".join(
      cell.ljust(w) for cell, w in zip(row, widths, strict=True)
    ).rstrip()
    for row in table
  )


def _wrap(text: str) -> list[str]:
  """Wraps a text into lines of at most `_WIDEST` characters, at least one."""
  return textwrap.wrap(text, _WIDEST) or [""]


def _format_cell(value: float | None) -> str:
  return "–" if value is None else f"{value:.4g}"


def format_markdown(rows: Sequence[Mapping[str, object]]) -> str:
  """Formats a Markdown table; the first row's keys are the columns."""
  columns = list(rows[0])
  cells = [columns, ["---"] * len(columns)]
  cells += [[str(row[column]) for column in columns] for row in rows]
  return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def format_interval(
  middle: float | None, low: float | None, high: float | None
) -> str:
  """Formats a score with its interval: middle [low, high]."""
  return (
    f"{format_number(middle)} [{format_number(low)}, {format_number(high)}]"
  )


def format_number(value: float | None) -> str:
  """Formats a number: .123, 1.234 or, from 100 upwards, 1,234.5."""
  if value is None:
    return "–"
  if abs(value) >= 100:
    return f"{value:,.1f}"
  sign, digits = "-" if value < 0 else "", f"{abs(value):.3f}"
  return sign + (digits[1:] if digits.startswith("0.") else digits)
