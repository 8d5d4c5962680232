"""Tables that fit a terminal."""

from collections.abc import Mapping


def run_summary(summary: Mapping) -> str:
  """A run's results as a table.

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
    f"{summary['algorithm']} on {summary['env']}:"
    f" {summary['num_seeds']} seeds × {summary['total_steps']:,} steps",
    f"compiled in {summary['compile_seconds']:.1f} s, trained in"
    f" {summary['train_seconds']:.1f} s"
    f" ({summary['steps_per_second']:,.0f} steps/s)",
    f"evaluated on {evaluation['episodes']} episodes a seed"
    f" ({evaluation['backend']})",
    "",
    f"{'return':<22}{'mean':>8}{'IQM':>8}  {'95% interval':<18}"
    f"{'worst seed':>11}{'best':>8}",
  ]
  for label, result in rows:
    known = [score for score in result["per_seed"] if score is not None]
    low, high = (_cell(bound) for bound in result["ci95"])
    lines.append(
      f"{label:<22}{_cell(result['mean']):>8}{_cell(result['iqm']):>8}"
      f"  {f'[{low}, {high}]':<18}"
      f"{_cell(min(known, default=None)):>11}"
      f"{_cell(max(known, default=None)):>8}"
    )
  return "\n".join([*lines, ""])


def _cell(value: float | None) -> str:
  return "–" if value is None else f"{value:.4g}"
