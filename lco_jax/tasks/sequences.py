"""Sorting, reversing and counting short sequences."""

import jax
import jax.numpy as jnp

from lco_jax.tasks import base as base_lib
from lco_jax.tasks import digits as digits_lib

_BRACKETS = "([{)]}"


def sorting(length: int = 6) -> base_lib.Task:
  """Digits in ascending order: 5392> to 2359; 2 to `length` of them."""

  def answer(digits, used):
    # What is not used sorts behind everything.
    return jnp.sort(jnp.where(used, digits, 10))

  return _digits("sorting", length, answer)


def reversal(length: int = 6) -> base_lib.Task:
  """Digits back to front: 5392> to 2935; 2 to `length` of them."""

  def answer(digits, used):
    count = jnp.sum(used)
    return digits[(count - 1 - jnp.arange(length)) % length]

  return _digits("reversal", length, answer)


def parity(length: int = 8) -> base_lib.Task:
  """Whether the number of ones is odd: 1011> to 1; 2 to `length` bits."""
  _check_length("parity", length)
  characters = "01>"
  zero, end_of_prompt = base_lib.encode(characters, "0>")

  def draw(key):
    bits, used = _draw_digits(key, length, 2)
    odd = jnp.sum(jnp.where(used, bits, 0)) % 2
    return base_lib.make_problem(
      _shown(bits, used, zero, end_of_prompt), odd[None] + zero, jnp.sum(used)
    )

  return base_lib.Task(
    f"parity:{length}", characters, length + 1, 2, draw, base_lib.exact_match
  )


def brackets(length: int = 8) -> base_lib.Task:
  """Closes what is open: ([{}> to ]), of `length` brackets."""
  _check_length("brackets", length)
  characters = _BRACKETS + ">"
  first, end_of_prompt = base_lib.encode(characters, "(>")

  def draw(key):
    def step(carry, choice):
      stack, depth = carry
      opens = (depth == 0) | (choice < 4)  # Of 0 to 5: two thirds open.
      kind = jnp.where(opens, choice % 3, stack[depth - 1])
      stack = jnp.where(opens, stack.at[depth].set(kind), stack)
      shown = first + kind + jnp.where(opens, 0, 3)
      return (stack, depth + jnp.where(opens, 1, -1)), shown

    choices = jax.random.randint(key, (length,), 0, 6)
    start = (jnp.zeros(length, jnp.int32), jnp.int32(0))
    (stack, depth), shown = jax.lax.scan(step, start, choices)
    place = depth - 1 - jnp.arange(length)
    closing = jnp.where(place >= 0, first + 3 + stack[place], base_lib.PADDING)
    prompt = jnp.concatenate([shown, jnp.array([end_of_prompt])])
    return base_lib.make_problem(prompt, closing, depth)

  return base_lib.Task(
    f"brackets:{length}",
    characters,
    length + 1,
    length + 1,
    draw,
    base_lib.exact_match,
  )


def _digits(name, length, answer_of) -> base_lib.Task:
  """A task from up to `length` digits to as many."""
  _check_length(name, length)
  characters = digits_lib.DIGITS + ">"
  zero, end_of_prompt = base_lib.encode(characters, "0>")

  def draw(key):
    digits, used = _draw_digits(key, length, 10)
    answer = jnp.where(used, answer_of(digits, used) + zero, base_lib.PADDING)
    return base_lib.make_problem(
      _shown(digits, used, zero, end_of_prompt), answer, jnp.sum(used)
    )

  return base_lib.Task(
    f"{name}:{length}",
    characters,
    length + 1,
    length + 1,
    draw,
    base_lib.exact_match,
  )


def _draw_digits(key, length, base):
  """(int32[length], bool[length]): the first 2 to `length` count."""
  count_key, digit_key = jax.random.split(key)
  count = jax.random.randint(count_key, (), 2, length + 1)
  digits = jax.random.randint(digit_key, (length,), 0, base)
  return digits, jnp.arange(length) < count


def _shown(digits, used, zero, end_of_prompt):
  shown = jnp.where(used, digits + zero, base_lib.PADDING)
  return jnp.concatenate([shown, jnp.array([end_of_prompt])])


def _check_length(name: str, length: int) -> None:
  if not 2 <= length <= 64:
    raise ValueError(f"{name}: length must be in [2, 64], got {length}")
