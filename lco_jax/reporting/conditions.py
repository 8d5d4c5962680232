"""Conditions of runs: how long they learned, from what, and how judged.

Scores of runs whose conditions differ say nothing about their algorithms.
"""

import math
from collections.abc import Mapping, Sequence

# Settings that are neither the algorithm's nor an option of it. `files` holds
# the hashes of data and reward files.
_SETTINGS = (
  "environment",
  "task",
  "action_bins",
  "model",
  "files",
  "data",
  "validation",
  "test",
  "question_field",
  "answer_field",
  "rewards",
  "task_options",
  "instruction",
  "chat",
  "extraction",
  "reward",
  "completion_length",
  "warm_start_updates",
  "warm_start_prompts",
  "warm_start_learning_rate",
  "eval_problems",
  "eval_samples",
  "eval_episodes",
)
_LENGTH = "length"


def find_conditions(
  settings: Mapping, length: int | None = None
) -> dict[str, object]:
  """Finds the conditions of a run, by name.

  Args:
    settings: of the run, as config.json has them.
    length: environment steps or samples that each seed has learned from; None
      for as many as the settings ask for.
  """
  found = {name: settings[name] for name in _SETTINGS if name in settings}
  if length is None:
    length = _plan_length(settings)
  return {_LENGTH: length} | found


def _plan_length(settings: Mapping) -> int:
  """Computes the environment steps or samples that settings ask for."""
  factors = (
    ("total_steps",)
    if "total_steps" in settings
    else ("num_updates", "num_prompts", "num_samples")
  )
  return math.prod(settings[name] for name in factors)


def find_differences(conditions: Sequence[Mapping]) -> list[str]:
  """Returns the names of the conditions that are not the same for all runs.

  Args:
    conditions: of each run, from `find_conditions`.
  """
  names = dict.fromkeys(name for own in conditions for name in own)
  return [
    name
    for name in names
    if any(own.get(name) != conditions[0].get(name) for own in conditions)
  ]


def format_conditions(conditions: Mapping, names: Sequence[str]) -> str:
  """Formats some of a run's conditions: "length=1,000, eval_episodes=10"."""
  return ", ".join(f"{name}={_format(conditions.get(name))}" for name in names)


def _format(value: object) -> str:
  if isinstance(value, Mapping):  # Hashes of files.
    return " ".join(f"{name}:{str(own)[:6]}" for name, own in value.items())
  return f"{value:,}" if type(value) is int else str(value)
