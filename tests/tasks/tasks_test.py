"""Every task: its answers are right, others are not, splits are disjoint."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import tasks
from lco_jax.tasks import base

_NAMES = [
  "addition",
  "addition:1",
  "addition:4",
  "multiplication",
  "modular_sum",
  "modular_sum:5,10",
  "sorting",
  "reversal",
  "parity",
  "brackets",
  "countdown",
  "countdown:2",
]
_COUNT = 400


@functools.cache
def _drawn(name, split="train"):
  """A task and problems of it, as NumPy arrays."""
  task = tasks.make(name)
  draw = jax.jit(jax.vmap(tasks.draw_from(task, split)))
  keys = jax.random.split(jax.random.key(3), _COUNT)
  return task, jax.tree.map(np.asarray, draw(keys))


def _texts(name):
  task, problems = _drawn(name)
  return [
    (task.text(prompt), task.text(answer))
    for prompt, answer in zip(problems.prompt, problems.answer, strict=True)
  ]


def _left_to_right(expression):
  first, *rest = re.findall(r"\d+|[+*-]", expression)
  value = int(first)
  for sign, operand in zip(rest[::2], rest[1::2], strict=True):
    number = int(operand)
    value = {"+": value + number, "-": value - number, "*": value * number}[
      sign
    ]
  return value


def _closing(text):
  stack = []
  for character in text:
    if character in "([{":
      stack.append(")]}"["([{".index(character)])
    else:
      assert stack.pop() == character
  return "".join(reversed(stack))


def _right(name, prompt, answer):
  """Solves a problem independently of the task."""
  kind = name.partition(":")[0]
  asked = prompt.rstrip(">=")
  if kind in ("addition", "multiplication"):
    return answer == str(_left_to_right(asked))
  if kind == "modular_sum":
    total, modulus = asked.split("%")
    return answer == str(sum(map(int, total.split("+"))) % int(modulus))
  if kind == "sorting":
    return answer == "".join(sorted(asked))
  if kind == "reversal":
    return answer == asked[::-1]
  if kind == "parity":
    return answer == str(asked.count("1") % 2)
  if kind == "brackets":
    return answer == _closing(asked)
  numbers, target = asked.split("=")
  used = sorted(re.findall(r"\d", answer))
  return used == list(numbers) and _left_to_right(answer) == int(target)


@pytest.mark.parametrize("name", _NAMES)
def test_answers_are_right(name):
  task, problems = _drawn(name)
  assert task.vocab_size == len(task.characters) + 2
  for prompt, answer in _texts(name):
    assert _right(name, prompt, answer), (prompt, answer)
  assert problems.prompt.shape == (_COUNT, task.prompt_length)
  assert problems.answer.shape == (_COUNT, task.completion_length)
  lengths = (problems.prompt != tasks.PADDING).sum(axis=1)
  np.testing.assert_array_equal(task.prompt_length - lengths, problems.padding)
  for prompt, padding in zip(problems.prompt, problems.padding, strict=True):
    assert (prompt[:padding] == tasks.PADDING).all()
    assert (prompt[padding:] > tasks.END).all()
  assert len(set(_texts(name))) > 20 and len(set(problems.difficulty)) >= 1


@pytest.mark.parametrize("name", _NAMES)
def test_only_right_answers_are_rewarded(name):
  """The answer, the answer cut short, and with each token changed."""
  task, problems = _drawn(name)
  verify = jax.jit(jax.vmap(task.verify))
  answers = problems.answer
  mask = answers != tasks.PADDING
  assert verify(problems, answers, mask).all()
  last = mask.sum(axis=1) - 1
  cut = mask & (np.arange(mask.shape[1]) < last[:, None])
  assert not verify(problems, answers, cut).any()
  for place in range(answers.shape[1]):
    changed = answers.copy()
    changed[:, place] = (answers[:, place] - 1) % (task.vocab_size - 2) + 2
    rewarded = np.asarray(verify(problems, changed, mask | (changed > 0)))
    for row in np.flatnonzero(rewarded):  # Then it is another right answer.
      text = task.text(np.where(mask, changed, 0)[row])
      assert name.startswith("countdown"), text
      assert _right(name, task.text(problems.prompt[row]), text)


def test_another_right_answer_is_rewarded():
  task, _ = _drawn("countdown")
  asked = base.make_problem(
    jnp.array(base.encode(task.characters, "357=26=") + [0]),
    jnp.array(base.encode(task.characters, "3*7+5")),
    1,
    {"numbers": jnp.array([3, 5, 7]), "target": jnp.int32(26)},
  )
  for text, right in [
    ("3*7+5", True),
    ("7*3+5", True),
    ("5+3*7", False),  # From left to right, 56.
    ("5*7-3", False),
    ("7*3+7", False),
  ]:
    tokens = jnp.array([*base.encode(task.characters, text), tasks.END])
    assert task.verify(asked, tokens, tokens > 0) == right, text


@pytest.mark.parametrize("name", _NAMES)
def test_splits_are_disjoint(name):
  prompts = {}
  for split, numbers in tasks.SPLITS.items():
    task, problems = _drawn(name, split)
    prompts[split] = {task.text(prompt) for prompt in problems.prompt}
    found = jax.vmap(base.hash_prompt)(problems)
    assert np.isin(found, numbers).all()
  assert not prompts["train"] & prompts["test"]
  assert not prompts["train"] & prompts["validation"]
  assert not prompts["validation"] & prompts["test"]


def test_shares_of_the_splits():
  keys = jax.random.split(jax.random.key(0), 20_000)
  task = tasks.make("addition:4")
  found = np.asarray(jax.vmap(lambda k: base.hash_prompt(task.draw(k)))(keys))
  shares = [np.isin(found, n).mean() for n in tasks.SPLITS.values()]
  np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.01)


def test_agreement_is_between_nothing_and_all():
  answer = jnp.array([5, 6, tasks.END, 0])
  asked = base.Problem(answer, 0, answer, 0)
  for tokens, share in [
    ([5, 6, tasks.END, 0], 1.0),
    ([5, 7, tasks.END, 0], 2 / 3),
    ([5, 6, 6, tasks.END], 2 / 4),
    ([tasks.END, 0, 0, 0], 0.0),
  ]:
    completion = jnp.array(tokens)
    found = tasks.agreement(asked, completion, completion > 0)
    np.testing.assert_allclose(found, share, rtol=1e-6)


@pytest.mark.parametrize(
  ("name", "line"),
  [
    ("nothing", "task: unknown 'nothing'; known: addition"),
    ("addition:x", "task: addition takes addition:DIGITS"),
    ("addition:1,2", "task: addition takes"),
    ("addition:9", "addition: digits must be in"),
    ("sorting:1", "sorting: length must be in"),
    ("countdown:7", "countdown: count must be in"),
    ("parity:2", "too few problems"),
  ],
)
def test_tasks_that_cannot_be(name, line):
  with pytest.raises(ValueError, match=line):
    tasks.make(name)
