"""What a language task is: data, and two pure functions.

A task draws problems (a prompt and a right answer) and verifies completions.
Both are pure functions in the graph, one problem at a time. Problems belong to
the train, validation or test split by a hash of their prompt, so the splits are
disjoint whatever is drawn.
"""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lco_jax import types

Array = jax.Array

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
  """One problem.

  Attributes:
    prompt: int32[P], padded on the left.
    padding: int32[], how many of its slots hold no token.
    answer: int32[C], a right answer and END, padded on the right.
    difficulty: int32[], what accuracy is reported by.
    facts: pytree of arrays that the verifier needs beside these.
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
    name: that it was made by.
    characters: those that it uses; their tokens are their places here plus 2.
    prompt_length: P.
    completion_length: C, END included.
    draw: key → Problem.
    verify: (Problem, completion int32[C], mask bool[C]) → bool[], whether the
      completion solves it.
  """

  name: str
  characters: str
  prompt_length: int
  completion_length: int
  draw: Callable[[types.PRNGKey], Problem]
  verify: Callable[[Problem, Array, Array], Array]

  @property
  def one_answer(self) -> bool:
    """Whether nothing but the answer of a problem solves it."""
    return self.verify is exact_match

  @property
  def vocab_size(self) -> int:
    """V: the characters, PADDING and END."""
    return len(self.characters) + SPECIAL

  def text(self, tokens: np.ndarray) -> str:
    """Characters of tokens, up to END."""
    out = ""
    for token in np.asarray(tokens).tolist():
      if token == END:
        break
      out += "" if token == PADDING else self.characters[token - SPECIAL]
    return out


def encode(characters: str, text: str) -> list[int]:
  """Tokens of a text.

  Raises:
    ValueError: if it holds another character.
  """
  for character in text:
    if character not in characters:
      raise ValueError(f"no token for {character!r}")
  return [characters.index(character) + SPECIAL for character in text]


def make_problem(
  prompt: Array, answer: Array, difficulty: Array, facts: Any = ()
) -> Problem:
  """A Problem of tokens with gaps.

  Args:
    prompt: int32[P], PADDING anywhere; what is left moves to the right.
    answer: int32[C − 1], PADDING anywhere; what is left moves to the left and
      is followed by END.
    difficulty: int32[].
    facts: for the verifier.
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
  """Share of the answer's tokens that a completion has in their place: [0, 1].

  A reward that is shaped: 1 for the answer itself, something for being near.
  """
  expected = problem.answer != PADDING
  same = expected & mask & (completion == problem.answer)
  return jnp.sum(same) / jnp.maximum(jnp.sum(expected | mask), 1)


def split_of(problem: Problem) -> Array:
  """In [0, 100): a hash of the prompt, which decides the split."""
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
  """Draws problems of one split: draws until one belongs to it.

  Args:
    task: the task.
    split: a key of SPLITS.

  Returns:
    key → Problem.
  """
  wanted = SPLITS[split]

  def draw(key):
    def outside(carry):
      count, problem = carry
      number = split_of(problem)
      inside = (number >= wanted.start) & (number < wanted.stop)
      return (count == 0) | (~inside & (count < _TRIES))

    def attempt(carry):
      count, _ = carry
      return count + 1, task.draw(jax.random.fold_in(key, count))

    # Drawn in the loop alone: a second copy would be compiled, too.
    blank = jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
      jax.eval_shape(task.draw, key),
    )
    return jax.lax.while_loop(outside, attempt, (jnp.int32(0), blank))[1]

  return draw


def check_splits(task: Task) -> None:
  """Checks that every split has problems.

  Raises:
    ValueError: if the task has too few to be divided.
  """
  keys = jax.random.split(jax.random.key(zlib.crc32(task.name.encode())), 2048)
  numbers = np.asarray(
    jax.jit(jax.vmap(lambda k: split_of(task.draw(k))))(keys)
  )
  for name, numbers_of in SPLITS.items():
    if not np.isin(numbers, numbers_of).any():
      raise ValueError(f"task {task.name}: too few problems for a {name} split")
