"""Rewards that come with the library, by name."""

import importlib
import json
import re
from collections.abc import Callable

from lco_jax.tasks import numbers

# (completion, row) → reward.
Function = Callable[[str, dict], float]

# An option by its letter, in the order in which they count: said to be the
# answer; chosen; marked; or alone. "I" and "A" may be words.
_LETTER = r"[\s:*$(\[\"']*(?:\\text\{)?([A-Z])\b(?!')"
_CHOICES = (
  re.compile(
    r"(?i:answer|(?:correct|right|best|final)\s+(?:option|choice))"
    rf"(?i:\s+is|:)?{_LETTER}"
    r"|\b([A-Z])\b[)\]*]*\s+is\s+(?:the\s+)?(?:right|correct)\b"
  ),
  re.compile(rf"(?i:option|choice)(?i:\s+is|:)?{_LETTER}"),
  re.compile(
    r"[(\[*]([A-Z])[)\]*.:]|(?:^|\n)[ \t]*([A-Z])(?:[).:]|[ \t]*(?:\n|$))"
  ),
  re.compile(r"\b([B-HJ-Z]|[AI](?!['’]?\s*[a-z]))\b"),
)


def exact(completion: str, row: dict) -> float:
  """1 if the completion is the answer, white space around both left out."""
  return float(completion.strip() == str(row["answer"]).strip())


def contains(completion: str, row: dict) -> float:
  """1 if the answer is a part of the completion."""
  return float(str(row["answer"]).strip() in completion)


def numeric(completion: str, row: dict) -> float:
  """1 if the completion's last number equals the answer's last number.

  `numbers` says how both are read and when they are equal.
  """
  found = numbers.find_last(completion)
  wanted = numbers.find_last(str(row["answer"]))
  if found is None or wanted is None:
    return 0.0
  return float(numbers.are_equal(found, wanted))


def regex(completion: str, row: dict) -> float:
  """1 if the row's regular expression `pattern` is found in the completion."""
  return float(re.search(str(row["pattern"]), completion) is not None)


def choice(completion: str, row: dict) -> float:
  r"""1 if the option that the completion chooses is the answer, a letter.

  Chosen is the letter in \boxed{...}, else the last that is said to be the
  answer, else the last that is marked, as (B), or alone on a line, else the
  last capital letter that is a word.
  """
  wanted = str(row["answer"]).strip().strip("().")
  return float(_find_choice(completion) == wanted)


def is_json(completion: str, row: dict) -> float:
  """1 if the completion is a JSON object or array."""
  del row
  try:
    return float(isinstance(json.loads(completion), dict | list))
  except (ValueError, RecursionError):
    return 0.0


def math_verify(completion: str, row: dict) -> float:
  """1 if math-verify finds the completion equal to the answer.

  Needs pip install math-verify; the extra `math` has it.
  """
  package = importlib.import_module("math_verify")
  # Its own time limits are signals, which only main threads get; the process
  # that scores has one anyway.
  wanted = package.parse(str(row["answer"]), parsing_timeout=None)
  found = package.parse(completion, parsing_timeout=None)
  return float(package.verify(wanted, found, timeout_seconds=None))


def _find_choice(text: str) -> str | None:
  boxed = numbers.find_boxed(text)
  text = text if boxed is None else boxed
  for pattern in _CHOICES:
    found = pattern.findall(text)
    if found:
      return "".join(found[-1])
  return None


BUILT_IN: dict[str, Function] = {
  "exact": exact,
  "contains": contains,
  "numeric": numeric,
  "regex": regex,
  "choice": choice,
  "json": is_json,
  "math_verify": math_verify,
}
