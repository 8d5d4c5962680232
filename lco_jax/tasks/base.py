"""Interface of language tasks: data and two pure functions.

A task draws problems (a prompt and a right answer) and verifies completions.
Both functions run in the graph on one problem at a time. A hash of its prompt
assigns each problem to the train, validation or test split, so the splits are
always disjoint.
"""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lco_jax import types

PADDING = 0
END = 1
SPECIAL = 2  # Tokens before the first character.
# Shares of the splits in percent, in this order.
SPLITS = {
  "train": range(80),
  "validation": range(80, 90),
  "test": range(90, 100),
}
_TRIES = 10_000


class Problem(NamedTuple):
  """One problem of a task.

  Attributes:
    prompt: int32[P], padded on the left.
    padding: int32[], number of padded slots in the prompt.
    answer: int32[C], a right answer and END, padded on the right.
    difficulty: int32[], level by which reports group accuracy.
    facts: pytree of further arrays for the verifier.
  """

  prompt: Array
  padding: Array
  answer: Array
  difficulty: Array
  facts: Any = ()


@dataclasses.dataclass(frozen=True)
class Task:
  """A verifiable task on characters.

  Attributes:
    name: name of the task, sizes included.
    characters: its alphabet; a character's token is its index plus 2.
    prompt_length: P.
    completion_length: C, END included.
    draw: key → Problem.
    verify: (Problem, completion int32[C], mask bool[C]) → bool[], whether the
      completion solves the problem.
  """

  name: str
  characters: str
  prompt_length: int
  completion_length: int
  draw: Callable[[types.PRNGKey], Problem]
  verify: Callable[[Problem, Array, Array], Array]

  @property
  def one_answer(self) -> bool:
    """Whether each problem has only one right answer."""
    return self.verify is exact_match

  @property
  def vocab_size(self) -> int:
    """V: the characters, PADDING and END."""
    return len(self.characters) + SPECIAL

  def text(self, tokens: np.ndarray) -> str:
    """Decodes tokens up to END."""
    out = ""
    for token in np.asarray(tokens).tolist():
      if token == END:
        break
      out += "" if token == PADDING else self.characters[token - SPECIAL]
    return out


def encode(characters: str, text: str) -> list[int]:
  """Encodes a text as tokens.

  Raises:
    ValueError: if the text has a character outside `characters`.
  """
  for character in text:
    if character not in characters:
      raise ValueError(f"no token for {character!r}")
  return [characters.index(character) + SPECIAL for character in text]


def make_problem(
  prompt: Array, answer: Array, difficulty: Array, facts: Any = ()
) -> Problem:
  """Makes a Problem from tokens with PADDING at any place.

  Args:
    prompt: int32[P]; its tokens move to the right.
    answer: int32[C − 1]; its tokens move to the left, and END follows them.
    difficulty: int32[].
    facts: further arrays for the verifier.
  """
  prompt, answer = prompt.astype(jnp.int32), answer.astype(jnp.int32)
  order = jnp.argsort(prompt != PADDING, stable=True)
  length = jnp.sum(answer != PADDING)
  packed = answer[jnp.argsort(answer == PADDING, stable=True)]
  packed = (
    jnp.concatenate([packed, jnp.zeros(1, jnp.int32)]).at[length].set(END)
  )
  return Problem(
    prompt=prompt[order],
    padding=jnp.sum(prompt == PADDING).astype(jnp.int32),
    answer=packed,
    difficulty=jnp.asarray(difficulty, jnp.int32),
    facts=facts,
  )


def exact_match(problem: Problem, completion: Array, mask: Array) -> Array:
  """Whether a completion is the answer, END included: bool[]."""
  return jnp.all(jnp.where(mask, completion, PADDING) == problem.answer)


def agreement(problem: Problem, completion: Array, mask: Array) -> Array:
  """Share of tokens at which the completion matches the answer, in [0, 1].

  Serves as a shaped reward: 1 for the exact answer, less for similar answers.
  """
  expected = problem.answer != PADDING
  same = expected & mask & (completion == problem.answer)
  return jnp.sum(same) / jnp.maximum(jnp.sum(expected | mask), 1)


def hash_prompt(problem: Problem) -> Array:
  """Hashes the prompt to [0, 100), which determines the split."""
  # Powers of an odd number, as of a linear congruential generator.
  powers = [pow(1664525, i + 1, 2**32) for i in range(problem.prompt.shape[0])]
  value = jnp.sum(
    problem.prompt.astype(jnp.uint32) * np.array(powers, np.uint32),
    dtype=jnp.uint32,
  )
  value = value ^ (value >> 15)
  value = (value * jnp.uint32(0x85EBCA6B)) ^ (value >> 13)
  return (value % jnp.uint32(100)).astype(jnp.int32)


def draw_from(task: Task, split: str) -> Callable[[types.PRNGKey], Problem]:
  """Makes a function that draws problems of one split, by rejection.

  Args:
    task: the task.
    split: a key of SPLITS.

  Returns:
    key → Problem.
  """
  wanted = SPLITS[split]

  def draw(key):
    def is_outside(carry):
      count, problem = carry
      number = hash_prompt(problem)
      inside = (number >= wanted.start) & (number < wanted.stop)
      return (count == 0) | (~inside & (count < _TRIES))

    def draw_again(carry):
      count, _ = carry
      return count + 1, task.draw(jax.random.fold_in(key, count))

    # Call `draw` only inside the loop, because each copy of it is compiled.
    blank = jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
      jax.eval_shape(task.draw, key),
    )
    return jax.lax.while_loop(is_outside, draw_again, (jnp.int32(0), blank))[1]

  return draw


def check_splits(task: Task) -> None:
  """Checks that every split has problems.

  Raises:
    ValueError: if the task has too few problems to divide.
  """
  keys = jax.random.split(jax.random.key(zlib.crc32(task.name.encode())), 2048)
  numbers = np.asarray(
    jax.jit(jax.vmap(lambda k: hash_prompt(task.draw(k))))(keys)
  )
  for name, wanted in SPLITS.items():
    if not np.isin(numbers, wanted).any():
      raise ValueError(f"task {task.name}: too few problems for a {name} split")
