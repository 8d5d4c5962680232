"""Rows of data: read line by line, never in two splits."""

import json

import pytest

from lco_jax import tasks
from lco_jax.tasks import rewards, rows

_REWARDS = rewards.parse("json")  # It reads no column.


def _ask(count, copies=1):
  return [
    {"question": f"{n} + 1 =", "answer": n + 1, "level": n % 3}
    for n in range(count)
    for _ in range(copies)
  ]


def _split(task):
  return {
    split: [task.problem(split, n) for n in range(task.count(split))]
    for split in tasks.SPLITS
  }


@pytest.mark.parametrize(
  ("count", "held_out"), [(3, 1), (30, 10), (60, 20), (500, 50)]
)
def test_rows_are_divided_by_their_question(count, held_out):
  """At least 20 questions are held out, but at most a third."""
  found = _split(
    rows.make_row_task("data", {"train": _ask(count, 2)}, _REWARDS)
  )
  asked = {
    split: {own["question"] for own in problems}
    for split, problems in found.items()
  }
  assert len(asked["test"]) == len(asked["validation"]) == held_out
  assert sum(map(len, asked.values())) == count
  assert len(set.union(*asked.values())) == count
  # Both copies of a question are in its split.
  assert all(
    len(found[split]) == 2 * len(asked[split]) for split in tasks.SPLITS
  )


def test_the_division_does_not_depend_on_other_columns_or_order():
  first = _split(rows.make_row_task("data", {"train": _ask(90)}, _REWARDS))
  changed = [own | {"level": 9} for own in reversed(_ask(90))]
  second = _split(rows.make_row_task("data", {"train": changed}, _REWARDS))
  for split in tasks.SPLITS:
    assert {own["question"] for own in first[split]} == {
      own["question"] for own in second[split]
    }


def test_what_is_tested_on_is_not_trained_on():
  given = {"train": _ask(40), "test": _ask(10), "validation": _ask(12)[10:]}
  task = rows.make_row_task("data", given, _REWARDS)
  assert [task.count(split) for split in tasks.SPLITS] == [28, 2, 10]
  assert "12 left out of training" in task.note
  trained = {own["question"] for own in _split(task)["train"]}
  assert not trained & {own["question"] for own in given["test"]}


def test_problems_repeat_and_keep_their_columns():
  task = rows.make_row_task("data", {"train": _ask(60)}, _REWARDS)
  problem = task.problem("test", 0)
  assert task.problem("test", task.count("test")) is problem
  number = int(problem["question"].split()[0])
  assert problem["row"]["level"] == number % 3
  assert problem["answer"] == str(number + 1)


def test_messages_and_other_names_of_columns():
  chat = [
    {"role": "system", "content": "Add."},
    {"role": "user", "content": "1 + 1 ="},
  ]
  given = [
    {"messages": [chat[0], chat[1] | {"content": f"{n} + 1 ="}], "solution": n}
    for n in range(9)
  ]
  fields = rows.Fields("prompt", "solution")
  task = rows.make_row_task("data", {"train": given}, _REWARDS, fields)
  problem = task.problem("train", 0)
  assert problem["messages"][0] == chat[0]
  assert problem["question"] == problem["messages"][-1]["content"]
  assert problem["row"]["answer"] == problem["row"]["solution"]
  asked = [{"prompt": f"{n}?", "solution": n} for n in range(9)]
  task = rows.make_row_task("data", {"train": asked}, _REWARDS, fields)
  assert task.problem("train", 0)["question"].endswith("?")


def test_lines_are_read_and_named(tmp_path):
  path = tmp_path / "rows.jsonl"
  # A text may hold what other programs take for the end of a line.
  texts = ["a\u2028b", "c", "d"]
  lines = [json.dumps({"question": text}, ensure_ascii=False) for text in texts]
  path.write_text("\n".join([*lines[:1], "", *lines[1:]]) + "\n")
  found = rows.read(str(path))
  assert [row["question"] for row in found] == texts
  task = rows.make_row_task("data", {"train": found}, _REWARDS)
  places = {
    own["question"]: own["place"] for own in sum(_split(task).values(), [])
  }
  assert places["a\u2028b"] == f"{path}, line 1"
  assert places["d"] == f"{path}, line 4"
  assert all(
    set(own["row"]) == {"question"} for own in sum(_split(task).values(), [])
  )


@pytest.mark.parametrize(
  ("text", "line"),
  [
    ('{"question": "a"}\n{"question": ', "rows.jsonl, line 2: not JSON"),
    ('{"question": "a"}\n["b"]\n', "rows.jsonl, line 2: not a JSON object"),
    ('{"question": "a"}\n\n{"text": "b"}', "line 3: no text in the column"),
    ('{"question": 3}', "line 1: no text in the column 'question'"),
    ('{"messages": []}', "line 1: messages must be a list"),
    ('{"messages": [{"role": "user"}]}', "line 1: messages must be"),
    (
      '{"messages": [{"role": "assistant", "content": "b"}]}',
      "the last message must be a user's, got 'assistant'",
    ),
    ("", "rows.jsonl has no rows"),
    ('{"question": "a"}\n{"question": "b"}', "2 rows leave none for"),
  ],
)
def test_wrong_files_are_named(tmp_path, text, line):
  path = tmp_path / "rows.jsonl"
  path.write_text(text)
  with pytest.raises(ValueError, match=line):
    rows.make_row_task("data", {"train": rows.read(str(path))}, _REWARDS)


def test_files_that_cannot_be_read_are_named(tmp_path):
  with pytest.raises(ValueError, match="there are no rows for train"):
    rows.make_row_task("data", {"train": []}, _REWARDS)
  with pytest.raises(ValueError, match="nowhere.jsonl cannot be read"):
    rows.read(str(tmp_path / "nowhere.jsonl"))
  (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe")
  with pytest.raises(ValueError, match="rows.jsonl cannot be read"):
    rows.read(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
  ("name", "row", "line"),
  [
    ("exact", {}, "nothing in the column 'answer', which the reward exact"),
    ("numeric", {"answer": None}, "nothing in the column 'answer'"),
    ("contains", {"answer": " "}, "nothing in the column 'answer'"),
    ("regex", {"answer": "1"}, "nothing in the column 'pattern'"),
    ("regex", {"pattern": "("}, "pattern: missing"),
  ],
)
def test_built_in_rewards_need_their_columns(name, row, line):
  given = [{"question": f"{n}?", "answer": 1, "pattern": "1"} for n in range(9)]
  rows.make_row_task("data", {"train": given}, rewards.parse(name))
  given[4] = {"question": "4?"} | row
  with pytest.raises(ValueError, match=f"row 4 for train: {line}"):
    rows.make_row_task("data", {"train": given}, rewards.parse(name))


def test_the_named_column_is_the_answer():
  """A column called answer does not count then."""
  given = [
    {"question": f"{n}?", "answer": "because", "final": n} for n in range(9)
  ]
  fields = rows.Fields(answer="final")
  task = rows.make_row_task(
    "data", {"train": given}, rewards.parse("exact"), fields
  )
  problem = task.problem("train", 0)
  assert problem["answer"] == problem["question"][0]
  assert task.grader.score(problem, problem["question"][0]) == [1.0]
  del given[3]["final"]
  with pytest.raises(ValueError, match="row 3 for train: no column 'final'"):
    rows.make_row_task("data", {"train": given}, rewards.parse("exact"), fields)


def test_a_chat_of_one_message_is_a_question():
  """And is not in another split than the question."""
  given = {
    "train": [{"question": f"{n}?"} for n in range(30)],
    "test": [{"messages": [{"role": "user", "content": "7?"}]}],
  }
  task = rows.make_row_task("data", given, _REWARDS)
  assert "1 left out of training" in task.note
