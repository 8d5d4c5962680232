"""reasoning-gym tasks as texts, scored on the host by their own verifiers.

A problem is generated from its number, so a run keeps no data set in memory and
any process can regenerate it. A hash of the question determines its split, so
no test question is ever a training question.

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

from lco_jax.tasks import base, numbers

_SIZE = 2**31
# First seed of each split's data set, far enough from the others' that no two
# problems share a seed.
_SEEDS = {name: i * 2 * _SIZE for i, name in enumerate(base.SPLITS)}
_TRIES = 10_000


def _last_number(text: str, answer: str) -> str:
  """The last number; if it equals the answer, as the answer is written."""
  found, wanted = numbers.find_last(text), numbers.find_last(answer)
  if found is None:
    return ""
  if wanted is not None and numbers.are_equal(found, wanted):
    return answer
  return found.text


def _answer_tag(text: str, answer: str) -> str:
  del answer
  found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
  return found[-1].strip() if found else ""


def _last_line(text: str, answer: str) -> str:
  del answer
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  return lines[-1] if lines else ""


# (completion, right answer) → the completion's answer.
EXTRACTIONS: dict[str, Callable[[str, str], str]] = {
  "last_number": _last_number,
  "last_line": _last_line,
  "answer_tag": _answer_tag,
  "whole": lambda text, answer: text.strip(),
}
# Default extractions of tasks; the default for all others is `whole`.
_EXTRACTION_BY_TASK = {
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
    name: reasoning-gym's name.
    options: reasoning-gym's options of the task, ((name, value), ...).
    extraction: a key of EXTRACTIONS.
  """

  name: str
  options: tuple[tuple[str, Any], ...]
  extraction: str

  @property
  def grader(self) -> "TextTask":
    """Scores completions: the task itself."""
    return self

  def load(self) -> None:
    """Imports the task's package, which takes seconds the first time."""
    _load_dataset(self.name, self.options, _SEEDS["train"])

  def problem(self, split: str, number: int) -> dict[str, Any]:
    """Generates {"question": text, "answer": text, "metadata": ...}.

    Args:
      split: a key of `tasks.SPLITS`.
      number: ≥ 0, identifies the problem within the split.

    Raises:
      ValueError: if the task has too few questions for the split.
    """
    data = _load_dataset(self.name, self.options, _SEEDS[split])
    places = np.random.default_rng([_SEEDS[split] >> 16, number])
    for _ in range(_TRIES):
      entry = data[int(places.integers(_SIZE))]
      if find_split(entry["question"]) == split:
        return entry
    raise ValueError(f"task {self.name}: too few questions for a {split} split")

  def score(self, entry: Mapping[str, Any], completion: str) -> float:
    """Scores a completion with the task's own verifier, in [0, 1]."""
    extract = EXTRACTIONS[self.extraction]
    answer = extract(completion, str(entry["answer"]))
    data = _load_dataset(self.name, self.options, _SEEDS["train"])
    return float(data.score_answer(answer or None, entry))


def make_text_task(
  name: str,
  options: Mapping[str, Any] | None = None,
  extraction: str | None = None,
) -> TextTask:
  """Makes a text task.

  Args:
    name: reasoning-gym's name, such as `chain_sum`.
    options: reasoning-gym's options of the task.
    extraction: a key of EXTRACTIONS; None for the task's default.

  Raises:
    ValueError: if the package is not installed or has no such task, the task
      has no such option, or the extraction is unknown.
  """
  if importlib.util.find_spec("reasoning_gym") is None:
    raise ValueError(f"task: {name} needs pip install reasoning-gym")
  extraction = extraction or _EXTRACTION_BY_TASK.get(name, "whole")
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


def find_split(question: str) -> str:
  """Finds a question's split from a hash of its text."""
  digest = hashlib.sha256(question.encode()).digest()
  place = int.from_bytes(digest[:8], "big") % 100
  return next(name for name, own in base.SPLITS.items() if place in own)


@functools.lru_cache(maxsize=8)
def _load_dataset(name: str, options: tuple[tuple[str, Any], ...], seed: int):
  package = importlib.import_module("reasoning_gym")
  factory = importlib.import_module("reasoning_gym.factory")
  if name not in factory.DATASETS:
    raise ValueError(f"task: reasoning-gym has no {name!r}")
  return package.create_dataset(name, seed=seed, size=_SIZE, **dict(options))
