"""Tasks of a user's own data: rows of files, each with a question.

A row is a JSON object, or a row of a Parquet file. It has a question, a text,
or `messages`, the beginning of a chat; its other columns are for rewards. Rows
with the same question are never in two splits.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lco_jax.tasks import base, rewards

# In rows that were read: where one is from. Not a column of the user's.
_PLACE = "\0place"
# Questions to test on, if the data has enough.
_FEWEST = 20
# Largest share of all questions in a split that is not for training.
_LARGEST_SHARE = 1 / 3


@dataclasses.dataclass(frozen=True)
class Fields:
  """Names of the columns that have a meaning.

  Attributes:
    question: column of the question.
    answer: column of the answer, if rows have one.
  """

  question: str = "question"
  answer: str = "answer"


_USUAL_FIELDS = Fields()


@dataclasses.dataclass(frozen=True)
class RowTask:
  """A task whose problems are the rows of data.

  Attributes:
    name: of the task.
    problems: {split: problems}, as `problem` returns them.
    grader: computes the rewards.
    note: how the rows are divided, a sentence.
  """

  name: str
  problems: Mapping[str, tuple[dict[str, Any], ...]]
  grader: rewards.Grader
  note: str

  def problem(self, split: str, number: int) -> dict[str, Any]:
    """Returns a problem, {"question", "answer", "row", "place", ...}.

    Args:
      split: a key of `tasks.SPLITS`.
      number: ≥ 0; from the number of problems on they are repeated.
    """
    own = self.problems[split]
    return own[number % len(own)]

  def count(self, split: str) -> int:
    """Counts the problems of a split."""
    return len(self.problems[split])


def read(path: str, name: str = "data") -> list[dict[str, Any]]:
  """Reads rows from a file of JSON Lines, or from a Parquet file.

  Args:
    path: of the file; Parquet's ends with .parquet.
    name: of the setting that names it, for errors.

  Raises:
    ValueError: naming the file, and the line if it is at fault.
  """
  parquet = path.endswith(".parquet")
  rows = (_read_parquet if parquet else _read_json_lines)(path, name)
  if not rows:
    raise ValueError(f"{name}: {path} has no rows")
  return rows


def _read_json_lines(path: str, name: str) -> list[dict[str, Any]]:
  try:
    # Not splitlines: texts may have other ends of lines than files do.
    lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f"{name}: {path} cannot be read: {error}") from None
  rows = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise ValueError(
        f"{name}: {path}, line {number}: not JSON: {error}"
      ) from None
    if not isinstance(row, dict):
      raise ValueError(f"{name}: {path}, line {number}: not a JSON object")
    rows.append(row | {_PLACE: f"{path}, line {number}"})
  return rows


def make_row_task(
  name: str,
  rows: Mapping[str, Sequence[Mapping[str, Any]]],
  given_rewards: Sequence[rewards.Reward],
  fields: Fields = _USUAL_FIELDS,
) -> RowTask:
  """Makes a task of rows.

  Args:
    name: of the task.
    rows: {"train": rows}, and "validation" and "test" if they are given. What
      is not given is taken from the rows for training, by a hash of the
      question.
    given_rewards: from `rewards.parse` or `rewards.make_reward`.
    fields: names of columns.

  Raises:
    ValueError: if a row has no question, or a split would be empty.
  """
  problems = {
    split: [_make_problem(row, split, i, fields) for i, row in enumerate(own)]
    for split, own in rows.items()
  }
  for split, own in problems.items():
    if not own:
      raise ValueError(f"data: there are no rows for {split}")
  for own in problems.values():
    for problem in own:
      rewards.check_row(given_rewards, problem["row"], problem["place"])
  train = problems.pop("train")
  held_out = {_identify(own) for found in problems.values() for own in found}
  kept = [own for own in train if _identify(own) not in held_out]
  dropped = len(train) - len(kept)
  missing = [split for split in ("test", "validation") if split not in problems]
  problems |= _divide(kept, missing)
  counts = {split: len(problems[split]) for split in base.SPLITS}
  for split, count in counts.items():
    if not count:
      raise ValueError(
        f"data: {len(train)} rows leave none for {split}; give more rows with"
        " different questions, or other files for validation and test"
      )
  note = (
    f"{counts['train']} rows to train on, {counts['validation']} to validate,"
    f" {counts['test']} to test"
  )
  if dropped:
    note += f"; {dropped} left out of training: they are validated or tested on"
  return RowTask(
    name,
    {split: tuple(problems[split]) for split in base.SPLITS},
    rewards.Grader(rewards.check_rewards(given_rewards)),
    note,
  )


def _read_parquet(path: str, name: str) -> list[dict[str, Any]]:
  if importlib.util.find_spec("pyarrow") is None:
    raise ValueError(f"{name}: {path}: Parquet files need pip install pyarrow")
  parquet = importlib.import_module("pyarrow.parquet")
  try:
    rows = parquet.read_table(path).to_pylist()
  except Exception as error:  # pyarrow raises its own types and OSError.
    line = next(iter(str(error).splitlines()), "")
    raise ValueError(f"{name}: {path} cannot be read: {line}") from None
  return [
    row | {_PLACE: f"{path}, row {number}"} for number, row in enumerate(rows)
  ]


def _make_problem(
  row: Mapping[str, Any], split: str, number: int, fields: Fields
) -> dict[str, Any]:
  """Checks a row; the problem has its question, its answer, and itself."""
  if not isinstance(row, Mapping):
    raise ValueError(f"data: row {number} for {split} must be a dict: {row!r}")
  row = dict(row)
  place = row.pop(_PLACE, f"row {number} for {split}")
  problem = {"row": row, "place": place}
  if "messages" in row:
    messages = row["messages"]
    _check_messages(messages, place)
    problem["messages"] = messages
    problem["question"] = messages[-1]["content"]
  else:
    question = row.get(fields.question)
    if not isinstance(question, str) or not question.strip():
      raise ValueError(
        f"data: {place}: no text in the column {fields.question!r}, and no"
        " messages"
      )
    problem["question"] = question
  if fields.answer != Fields.answer:
    if fields.answer not in row:
      raise ValueError(f"data: {place}: no column {fields.answer!r}")
    row["answer"] = row[fields.answer]
  problem["answer"] = str(row.get("answer", ""))
  return problem


def _check_messages(messages: Any, place: str) -> None:
  """Raises a ValueError unless it is a chat that ends with a user's message."""
  fits = (
    isinstance(messages, list)
    and messages
    and all(
      isinstance(message, dict)
      and isinstance(message.get("role"), str)
      and isinstance(message.get("content"), str)
      for message in messages
    )
  )
  if not fits:
    raise ValueError(
      f"data: {place}: messages must be a list of"
      ' {"role": text, "content": text}'
    )
  if messages[-1]["role"] != "user":
    raise ValueError(
      f"data: {place}: the last message must be a user's, got"
      f" {messages[-1]['role']!r}"
    )


def _identify(problem: Mapping[str, Any]) -> str:
  """The text that is asked, by which equal problems are found."""
  alone = [{"role": "user", "content": problem["question"]}]
  asked = [
    (message["role"], message["content"].strip())
    for message in problem.get("messages", alone)
  ]
  return json.dumps(asked)


def _divide(
  problems: list[dict[str, Any]], missing: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
  """Divides problems into the missing splits, and the rest for training.

  Questions are sorted by a hash. Each missing split takes its share of
  `base.SPLITS`, but at least _FEWEST questions, and at most _LARGEST_SHARE.
  """
  asked = sorted({_identify(own) for own in problems}, key=_hash)
  places, begin = {}, 0
  for split in missing:
    wanted = max(_FEWEST, len(asked) * len(base.SPLITS[split]) // 100)
    size = min(wanted, int(len(asked) * _LARGEST_SHARE))
    places |= dict.fromkeys(asked[begin : begin + size], split)
    begin += size
  found = {split: [] for split in (*missing, "train")}
  for own in problems:
    found[places.get(_identify(own), "train")].append(own)
  return found


@functools.cache
def _hash(text: str) -> bytes:
  return hashlib.sha256(text.encode()).digest()
