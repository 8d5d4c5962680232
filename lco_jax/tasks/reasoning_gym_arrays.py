"""reasoning-gym tasks on characters, with problems generated once into arrays.

Supports tasks whose answers can be checked by comparing text. The comparison
ignores case and spaces.

Source: Stojanovski et al. 2025, arXiv:2505.24760; pip install reasoning-gym.
"""

import importlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from lco_jax.tasks import base

PREFIX = "reasoning_gym:"
# Number of problems generated for a task, before the division into splits.
_SIZE = 5000
_SEED = 0
# Tasks that give partial credit or accept other spellings, but have only one
# right answer.
_EXACT = ("chain_sum", "number_sorting", "spell_backward")


def make(name: str) -> base.Task:
  """Makes a reasoning-gym task.

  Args:
    name: reasoning-gym's name, such as `chain_sum`.

  Raises:
    ValueError: if the package is not installed, has no such task, or the task's
      answers cannot be checked by comparing text.
  """
  questions, answers, levels = _generate(name)
  characters = "".join(sorted(set("".join(questions + answers))))
  prompts = _encode_all(characters, questions)
  right = _encode_all(characters, answers)
  normalize = _make_normalizer(characters)
  data = {
    "prompt": prompts,
    "answer": right,
    "difficulty": np.asarray(levels, np.int32),
  }

  def draw(key):
    index = jax.random.randint(key, (), 0, len(questions))
    row = {k: jnp.asarray(v)[index] for k, v in data.items()}
    return base.make_problem(**row)

  def verify(problem, completion, mask):
    said = jnp.where(mask, completion, base.PADDING)
    ended = jnp.any(said == base.END)
    return ended & jnp.all(normalize(said) == normalize(problem.answer))

  return base.Task(
    PREFIX + name,
    characters,
    prompts.shape[1],
    right.shape[1] + 1,
    draw,
    verify,
  )


def _generate(name: str) -> tuple[list[str], list[str], list[int]]:
  """Generates questions, answers and answer lengths, used as difficulty."""
  if importlib.util.find_spec("reasoning_gym") is None:
    raise ValueError(f"task: {PREFIX}{name} needs pip install reasoning-gym")
  package = importlib.import_module("reasoning_gym")
  factory = importlib.import_module("reasoning_gym.factory")
  if name not in factory.DATASETS:
    raise ValueError(f"task: reasoning-gym has no {name!r}")
  try:
    dataset = package.create_dataset(name, seed=_SEED, size=_SIZE)
  except (AssertionError, TypeError, ValueError) as error:
    raise ValueError(
      f"task: {PREFIX}{name} cannot be made without settings: {error}"
    ) from error
  compares = (
    type(dataset).score_answer is factory.ProceduralDataset.score_answer
  )
  entries = (
    [dataset[i] for i in range(_SIZE)] if compares or name in _EXACT else []
  )
  if not entries or not all(
    isinstance(e["answer"], str) and e["answer"].strip() for e in entries
  ):
    raise ValueError(
      f"task: {PREFIX}{name} has no answers that can be checked by exact match"
    )
  answers = [" ".join(entry["answer"].split()) for entry in entries]
  return (
    [entry["question"].strip() for entry in entries],
    answers,
    [len(answer) for answer in answers],
  )


def _encode_all(characters: str, texts: list[str]) -> np.ndarray:
  """Encodes texts as int[texts, longest], padded on the right."""
  tokens = [base.encode(characters, text) for text in texts]
  out = np.zeros((len(texts), max(map(len, tokens))), np.int32)
  for row, own in zip(out, tokens, strict=True):
    row[: len(own)] = own
  return out


def _make_normalizer(characters: str):
  """Makes a function that lowers case and removes spaces in tokens [C]."""
  table = np.arange(len(characters) + base.SPECIAL, dtype=np.int32)
  table[base.END] = base.PADDING
  for place, character in enumerate(characters):
    lower = characters.find(character.lower())
    if character.isspace():
      table[place + base.SPECIAL] = base.PADDING
    elif lower >= 0:
      table[place + base.SPECIAL] = lower + base.SPECIAL
  table = jnp.asarray(table)

  def normalize(tokens):
    mapped = table[tokens]
    return mapped[jnp.argsort(mapped == base.PADDING, stable=True)]

  return normalize
