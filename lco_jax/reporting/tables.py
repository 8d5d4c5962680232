"""Tables that fit a terminal."""

from collections.abc import Mapping


def run_summary(summary: Mapping) -> str:
  """A run's results as a table.

  Args:
    summary: content of summary.json.
  """
  evaluation = summary["evaluation"]
  where = f"{evaluation['backend']}, {evaluation['episodes']} episodes a seed"
  rows = [
    ("training, last tenth", summary["final_return"]),
    ("greedy policy", evaluation),
    ("sampled policy", summary["evaluation_sampled"]),
  ]
  lines = [
    "",
    f"{summary['algorithm']} on {summary['env']}:"
    f" {summary['num_seeds']} seeds × {summary['total_steps']:,} steps",
    f"compiled in {summary['compile_seconds']:.1f} s, trained in"
    f" {summary['train_seconds']:.1f} s"
    f" ({summary['steps_per_second']:,.0f} steps/s);"
    f" evaluated: {where}",
    "",
    f"{'return':<22}{'mean':>9}{'IQM':>9}  {'95% interval':<19}"
    f"{'worst seed':>10}{'best':>9}",
  ]
  for label, result in rows:
    known = [score for score in result["per_seed"] if score is not None]
    low, high = (_cell(bound) for bound in result["ci95"])
    lines.append(
      f"{label:<22}{_cell(result['mean']):>9}{_cell(result['iqm']):>9}"
      f"  {f'[{low}, {high}]':<19}"
      f"{_cell(min(known, default=None)):>10}"
      f"{_cell(max(known, default=None)):>9}"
    )
  return "\n".join([*lines, ""])


def _cell(value: float | None) -> str:
  return "–" if value is None else f"{value:.4g}"
