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
  "init_from",
  "extended_from",
)
_WARM_START = (
  "warm_start_updates",
  "warm_start_prompts",
  "warm_start_learning_rate",
)
# Of these the scores of the learned policies depend, not those of training.
_EVALUATION = ("eval_problems", "eval_samples", "eval_episodes")
_LENGTH = "length"


def find_conditions(
  settings: Mapping, done: int | None = None
) -> dict[str, object]:
  """Finds the conditions of a run, by name.

  Args:
    settings: of the run, as config.json has them.
    done: environment steps or samples that each seed has learned from; None
      for a run that is not begun, with the conditions of its evaluation.
  """
  names = _SETTINGS
  if settings.get("init_from") is None:
    names = (*names, *_WARM_START)
  if done is None:
    names = (*names, *_EVALUATION)
  found = {name: settings[name] for name in names if name in settings}
  if "files" in found:
    found |= _describe_files(found)
  length = plan_length(settings)
  # A run's last update may not fill what is asked for.
  if done is not None and length - done >= _count_update(settings):
    length = done
  return {_LENGTH: length} | found


def _describe_files(found: Mapping) -> dict[str, object]:
  """Describes files by their hashes: paths may be written in several ways."""
  hashes = found["files"]
  described = {
    name: hashes.get(found[name], found[name])
    for name in ("data", "validation", "test")
    if name in found
  }
  if "rewards" in found:  # Their names and weights.
    specs = found["rewards"].split(",")
    described["rewards"] = ",".join(spec.rpartition("/")[2] for spec in specs)
  return {"files": sorted(hashes.values())} | described


def plan_length(settings: Mapping) -> int:
  """Computes the environment steps or samples of a seed in a whole run."""
  if "total_steps" in settings:
    return settings["total_steps"]
  if settings.get("algorithm") == "sft":
    names = ("warm_start_updates", "warm_start_prompts")
  else:
    names = ("num_updates", "num_prompts", "num_samples")
  return math.prod(settings[name] for name in names)


def _count_update(settings: Mapping) -> int:
  """Counts the environment steps or samples of an update of a seed."""
  if "num_envs" in settings:
    return settings["num_envs"] * settings["num_steps"]
  return 1


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
  if isinstance(value, list):  # Hashes of files, or lengths.
    return "+".join(str(own)[:8] for own in value)
  return f"{value:,}" if type(value) is int else str(value)
