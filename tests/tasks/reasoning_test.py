"""Tasks of reasoning-gym, with the package or with a stand-in for it."""

import importlib.util
import sys
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import tasks
from lco_jax.tasks import base

_INSTALLED = importlib.util.find_spec("reasoning_gym") is not None


class _Procedural:
  """The parts of a reasoning-gym data set that tasks read."""

  def __init__(self, seed, size):
    self._rng = np.random.default_rng(seed)
    words = ["a" + "".join(self._rng.choice([*"abC "], 4)) for _ in range(size)]
    self._rows = [
      {"question": f" Say {word}: ", "answer": word} for word in words
    ]

  def __getitem__(self, index):
    return self._rows[index]

  def score_answer(self, answer, entry):
    """Scores by exact match."""


class _Lenient(_Procedural):
  def score_answer(self, answer, entry):
    """Scores by the data set's own rule."""


class _Silent(_Procedural):
  def __getitem__(self, index):
    return {"question": "?", "answer": None}


@pytest.fixture
def stand_in(monkeypatch):
  """A package of three data sets."""
  package = python_types.ModuleType("reasoning_gym")
  factory = python_types.ModuleType("reasoning_gym.factory")
  factory.ProceduralDataset = _Procedural
  factory.DATASETS = {"say": _Procedural, "near": _Lenient, "mute": _Silent}
  package.create_dataset = lambda name, seed, size: factory.DATASETS[name](
    seed, size
  )
  package.__spec__ = python_types.SimpleNamespace()
  monkeypatch.setitem(sys.modules, "reasoning_gym", package)
  monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)


def _draw(task, count=50):
  keys = jax.random.split(jax.random.key(0), count)
  return jax.jit(jax.vmap(task.draw))(keys)


def _answer(task, text, length):
  tokens = [*base.encode(task.characters, text), base.END]
  return jnp.array(tokens + [0] * (length - len(tokens)), jnp.int32)


def test_text_is_as_it_was_generated(stand_in):
  task = tasks.make("reasoning_gym:say")
  drawn = _draw(task)
  for i in range(50):
    question = task.text(drawn.prompt[i]).split()
    said = task.text(drawn.answer[i]).split()
    assert question == ["Say", *said[:-1], f"{said[-1]}:"] or (
      question == ["Say", *said, ":"]  # A word that ends with a space.
    )
  assert len(np.unique(drawn.prompt, axis=0)) > 20
  again = _draw(tasks.make("reasoning_gym:say"))
  np.testing.assert_array_equal(drawn.prompt, again.prompt)


def test_case_and_spaces_do_not_matter(stand_in):
  task = tasks.make("reasoning_gym:say")
  length = task.completion_length + 2
  drawn = jax.tree.map(lambda x: x[0], _draw(task))
  drawn = drawn._replace(answer=_answer(task, "a bC", length))
  for text, right in (
    ("a bC", True),
    ("abC", True),
    (" a b C", True),
    ("aC b", False),
    ("a b", False),
    ("abCC", False),
  ):
    said = _answer(task, text, length)
    mask = jnp.arange(length) <= jnp.argmax(said == base.END)
    assert task.verify(drawn, said, mask) == right, text
  # Not ended: cut off.
  said = _answer(task, "a bC", length)
  assert not task.verify(drawn, said, said > base.END)
  # "c" is no character of the task, so C is compared as it is.
  assert not task.one_answer


@pytest.mark.parametrize(
  ("name", "what"),
  [("near", "exact match"), ("mute", "exact match"), ("nope", "no 'nope'")],
)
def test_others_are_refused(stand_in, name, what):
  with pytest.raises(ValueError, match=what):
    tasks.make(f"reasoning_gym:{name}")


def test_without_the_package(monkeypatch):
  monkeypatch.setitem(sys.modules, "reasoning_gym", None)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="pip install reasoning-gym"):
    tasks.make("reasoning_gym:chain_sum")


@pytest.mark.skipif(not _INSTALLED, reason="reasoning-gym is not installed")
@pytest.mark.parametrize(
  "name",
  [
    "chain_sum",
    "basic_arithmetic",
    "spell_backward",
    "letter_counting",
    "number_sorting",
    "simple_equations",
  ],
)
def test_answers_of_the_package_are_right(name):
  """The package's own score agrees on right and wrong answers."""
  import reasoning_gym

  task = tasks.make(f"reasoning_gym:{name}")
  dataset = reasoning_gym.create_dataset(name, seed=0, size=20)
  verify = jax.jit(task.verify)
  drawn = jax.tree.map(lambda x: x[0], _draw(task, 1))
  length = task.completion_length
  for entry, other in zip(list(dataset)[:10], list(dataset)[10:], strict=True):
    asked = drawn._replace(answer=_answer(task, entry["answer"], length))
    for answer in (entry["answer"], other["answer"]):
      said = _answer(task, answer, length)
      right = dataset.score_answer(answer, entry) == 1.0
      assert verify(asked, said, said != 0) == right, (entry, answer)
