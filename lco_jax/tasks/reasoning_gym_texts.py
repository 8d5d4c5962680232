"""Tasks of reasoning-gym as texts, scored by their own verifiers on the host.

A problem is made from its number, so a run needs no data set in memory, and any
process can make it again. Which split a question belongs to is a hash of it: no
question of a test was trained on, however it comes about.

Source: Stojanovski et al. 2025, arXiv:2505.24760; pip install reasoning-gym.
"""

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lco_jax.tasks import base

_SIZE = 2**31
# What each split's problems are drawn from begins at a seed of its own, so far
# from the others' that they share no problem's seed either.
_SEEDS = {name: i * 2 * _SIZE for i, name in enumerate(base.SPLITS)}
_TRIES = 10_000


def _last_number(text: str) -> str:
  # Behind a digit a minus is an operator: 0-4 does not end with -4.
  found = re.findall(r"(?<!\d)-?\d+(?:\.\d+)?", text)
  return found[-1] if found else ""


def _tagged(text: str) -> str:
  found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
  return found[-1].strip() if found else ""


def _last_line(text: str) -> str:
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  return lines[-1] if lines else ""


# Completion → the part of it that is the answer.
EXTRACTIONS: dict[str, Callable[[str], str]] = {
  "last_number": _last_number,
  "last_line": _last_line,
  "answer_tag": _tagged,
  "whole": str.strip,
}
# Of tasks whose answers are not the whole completion.
_OF_TASK = {
  "basic_arithmetic": "last_number",
  "chain_sum": "last_number",
  "fraction_simplification": "last_line",
  "gcd": "last_number",
  "lcm": "last_number",
  "leg_counting": "last_number",
  "letter_counting": "last_number",
  "prime_factorization": "last_line",
  "products": "last_number",
  "spell_backward": "last_line",
}


@dataclasses.dataclass(frozen=True)
class TextTask:
  """A task whose problems are texts.

  Attributes:
    name: as reasoning-gym has it.
    options: of the task there, ((name, value), ...).
    extraction: key of EXTRACTIONS.
  """

  name: str
  options: tuple[tuple[str, Any], ...]
  extraction: str

  def load(self) -> None:
    """Imports the task's package, which takes seconds the first time."""
    _dataset(self.name, self.options, _SEEDS["train"])

  def problem(self, split: str, number: int) -> dict[str, Any]:
    """A problem: {"question": text, "answer": text, "metadata": ...}.

    Args:
      split: a key of `problem.SPLITS`.
      number: ≥ 0; the same number is the same problem.

    Raises:
      ValueError: if the task has too few questions for such a split.
    """
    data = _dataset(self.name, self.options, _SEEDS[split])
    places = np.random.default_rng([_SEEDS[split] >> 16, number])
    for _ in range(_TRIES):
      entry = data[int(places.integers(_SIZE))]
      if split_of(entry["question"]) == split:
        return entry
    raise ValueError(f"task {self.name}: too few questions for a {split} split")

  def score(self, entry: Mapping[str, Any], completion: str) -> float:
    """What the task's own verifier gives a completion, in [0, 1]."""
    answer = EXTRACTIONS[self.extraction](completion)
    data = _dataset(self.name, self.options, _SEEDS["train"])
    return float(data.score_answer(answer or None, entry))


def make_text_task(
  name: str,
  options: Mapping[str, Any] | None = None,
  extraction: str | None = None,
) -> TextTask:
  """Makes a task.

  Args:
    name: as reasoning-gym has it, such as `chain_sum`.
    options: of the task there.
    extraction: key of EXTRACTIONS; None for the task's own.

  Raises:
    ValueError: if the package is not installed, has no such task, the task does
      not take an option, or the extraction is unknown.
  """
  if importlib.util.find_spec("reasoning_gym") is None:
    raise ValueError(f"task: {name} needs pip install reasoning-gym")
  extraction = extraction or _OF_TASK.get(name, "whole")
  if extraction not in EXTRACTIONS:
    raise ValueError(
      f"extraction: unknown {extraction!r}; known: {', '.join(EXTRACTIONS)}"
    )
  task = TextTask(name, tuple(sorted((options or {}).items())), extraction)
  try:
    for split in base.SPLITS:
      task.problem(split, 0)
  except (AssertionError, TypeError, AttributeError) as error:
    raise ValueError(f"task: {name} cannot be made: {error}") from error
  return task


def split_of(question: str) -> str:
  """The split that a question belongs to, by a hash of its text."""
  digest = hashlib.sha256(question.encode()).digest()
  place = int.from_bytes(digest[:8], "big") % 100
  return next(name for name, own in base.SPLITS.items() if place in own)


@functools.lru_cache(maxsize=8)
def _dataset(name: str, options: tuple[tuple[str, Any], ...], seed: int):
  package = importlib.import_module("reasoning_gym")
  factory = importlib.import_module("reasoning_gym.factory")
  if name not in factory.DATASETS:
    raise ValueError(f"task: reasoning-gym has no {name!r}")
  return package.create_dataset(name, seed=seed, size=_SIZE, **dict(options))
