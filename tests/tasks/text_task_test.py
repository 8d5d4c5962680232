"""Text tasks, with a stand-in for reasoning-gym."""

import pathlib
import sys

import pytest

from lco_jax import tasks
from lco_jax.tasks import reasoning_gym_texts

_STAND_INS = pathlib.Path(__file__).parent.parent / "stand_ins"


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
  for name in [m for m in sys.modules if m.split(".")[0] == "reasoning_gym"]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.syspath_prepend(str(_STAND_INS))
  reasoning_gym_texts._load_dataset.cache_clear()
  yield
  reasoning_gym_texts._load_dataset.cache_clear()
  for name in ("reasoning_gym", "reasoning_gym.factory"):
    sys.modules.pop(name, None)


def test_a_number_is_a_problem():
  """A number always gives the same problem; other numbers give others."""
  task = tasks.make_text_task("chain_sum")
  first = [task.problem("train", n)["question"] for n in range(50)]
  again = tasks.make_text_task("chain_sum")
  assert first == [again.problem("train", n)["question"] for n in range(50)]
  assert len(set(first)) > 20


def test_splits_share_no_question():
  task = tasks.make_text_task("chain_sum")
  found = {
    split: {task.problem(split, n)["question"] for n in range(300)}
    for split in tasks.SPLITS
  }
  assert all(len(questions) > 3 for questions in found.values())
  assert not found["train"] & found["test"]
  assert not found["train"] & found["validation"]
  assert not found["validation"] & found["test"]


def test_the_answer_is_a_part_of_the_completion():
  task = tasks.make_text_task("chain_sum")
  entry = {"question": "4 + 8 =", "answer": "12"}
  for completion, score in (
    ("12", 1.0),
    ("4 + 8 = 12.", 1.0),
    ("12, that is 4 + 8", 0.5),
    ("It is 13.", 0.0),
    ("", 0.0),
    ("none", 0.0),
  ):
    assert task.score(entry, completion) == score, completion


@pytest.mark.parametrize(
  ("name", "text", "answer"),
  [
    ("last_number", "1, then -2.5 and 3.", "3"),
    ("last_number", "0-4 = -4", "-4"),
    ("last_number", "so 0-4", "4"),
    ("last_number", "no", ""),
    ("last_line", "a\n b \n\n", "b"),
    ("last_line", "", ""),
    ("answer_tag", "<answer> 4 </answer> 5", "4"),
    ("answer_tag", "4", ""),
    ("whole", " a b ", "a b"),
  ],
)
def test_extractions(name, text, answer):
  assert tasks.EXTRACTIONS[name](text, "the answer") == answer


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (("none",), "has no 'none'"),
    (("chain_sum", {"terms": 1}), "cannot be made"),
    (("chain_sum", {}, "x"), "extraction: unknown 'x'"),
  ],
)
def test_tasks_that_cannot_be(arguments, says):
  with pytest.raises(ValueError, match=says):
    tasks.make_text_task(*arguments)
