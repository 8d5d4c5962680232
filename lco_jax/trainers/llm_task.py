"""The task of a run on a pretrained model: its files, its rewards.

Settings are plain values, from `settings.resolve`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lco_jax import checks, tasks, user_files
from lco_jax.tasks import rewards, rows

REWARDS = ("exact", "score")
# The task whose problems are rows of files.
DATA = "data"
COMBINATIONS = ("sum", "standardised")
# Stands for any task where questions come from elsewhere: a trained policy is
# read without its rows and without importing its rewards.
NO_TASK = tasks.RowTask(
  "none",
  {split: ({"question": "?"},) for split in tasks.SPLITS},
  rewards.Grader(()),
  "",
)
# How far from 0 a group's standard deviation is kept.
_EPSILON = 1e-4
# {split: the setting that names its file}.
_FILE_SETTINGS = {"train": "data", "validation": "validation", "test": "test"}


def make_task(settings: Mapping) -> tasks.TextTask | tasks.RowTask:
  """Makes the task that the settings name."""
  if settings["task"] != DATA:
    checks.check_choice("reward", settings["reward"], REWARDS)
    return tasks.make_text_task(
      settings["task"],
      parse_options(settings["task_options"]),
      settings["extraction"],
    )
  files = find_data_files(settings)
  if "train" not in files:
    raise ValueError("data: must be set, a file of rows to train on")
  return rows.make_row_task(
    DATA,
    {
      split: rows.read(path, _FILE_SETTINGS[split])
      for split, path in files.items()
    },
    rewards.parse(settings["rewards"]),
    rows.Fields(settings["question_field"], settings["answer_field"]),
  )


def find_data_files(settings: Mapping) -> dict[str, str]:
  """Finds the files of rows that a run reads, {split: path}."""
  return {
    split: settings[name]
    for split, name in _FILE_SETTINGS.items()
    if settings[name] is not None
  }


def identify_files(settings: Mapping) -> Mapping:
  """Adds the hashes of all files of rows and rewards to a run's settings.

  Args:
    settings: of the run; those of one to resume have the hashes already.

  Raises:
    ValueError: naming a file that cannot be read, or has changed.
  """
  if settings["task"] != DATA:
    return settings
  # Without an import: a file that has changed is not run.
  files = [
    (_FILE_SETTINGS[split], path)
    for split, path in find_data_files(settings).items()
  ]
  files += [("rewards", p) for p in rewards.list_files(settings["rewards"])]
  found = {}
  for name, path in files:
    try:
      found[path] = user_files.hash_file(path)
    except OSError as error:
      raise ValueError(f"{name}: {path}: {error.strerror}") from None
  for registered in rewards.list_registered(settings["rewards"]):
    found |= rewards.identify([registered])
  check_files(settings.get("files", found), found)
  return settings | {"files": found}


def check_files(before: Mapping[str, str], found: Mapping[str, str]) -> None:
  """Checks that a run goes on with the rows and rewards that it began with.

  Args:
    before: hashes at the beginning.
    found: hashes now.

  Raises:
    ValueError: naming what has changed.
  """
  for name, digest in before.items():
    if name not in found:
      raise ValueError(
        f"{name}: the run began with it, in a call of lco_jax.train_llm;"
        " resume it with the same call"
      )
    if found[name] != digest:
      raise ValueError(
        f"{name} has changed since the run began; restore it, or begin a new"
        " run"
      )


def make_reward(
  settings: Mapping, task: tasks.TextTask | tasks.RowTask
) -> Callable[[np.ndarray], np.ndarray]:
  """Makes the function of an `Asking` from scores to rewards."""
  if not isinstance(task, tasks.RowTask):
    checks.check_choice("reward", settings["reward"], REWARDS)
    exact = settings["reward"] == "exact"
    return lambda scores: (
      np.where(scores[..., 0] >= 1, 1.0, 0.0) if exact else scores[..., 0]
    )
  if task is NO_TASK:
    return lambda scores: scores[..., 0]
  weights = np.array([reward.weight for reward in task.grader.rewards])
  checks.check_choice(
    "reward_combination", settings["reward_combination"], COMBINATIONS
  )
  if settings["reward_combination"] == "sum":
    return lambda scores: scores @ weights
  return lambda scores: standardize_groups(scores) @ weights


def standardize_groups(scores: np.ndarray) -> np.ndarray:
  """Standardises each reward over the samples of a prompt, as GDPO does.

  A reward that is the same for all samples becomes 0.

  Args:
    scores: float[S, G, N, K], K rewards of G samples.

  Returns:
    float[S, G, N, K].
  """
  centred = scores - scores.mean(axis=1, keepdims=True)
  return centred / (scores.std(axis=1, keepdims=True) + _EPSILON)


def parse_options(text: str) -> dict[str, Any]:
  """Options of a task from "name=value,...": numbers, true, false, or words.

  Raises:
    ValueError: if the text is not of that form.
  """
  found = {}
  for item in filter(None, text.split(",")):
    name, equals, value = (part.strip() for part in item.partition("="))
    if not (name and equals and value):
      raise ValueError(f'task_options: want "name=value,...", got {text!r}')
    found[name] = _value(value)
  return found


def _value(text: str) -> Any:
  if text in ("true", "false"):
    return text == "true"
  for kind in (int, float):
    try:
      return kind(text)
    except ValueError:
      continue
  return text
