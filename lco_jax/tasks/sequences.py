"""Sorting, reversal, parity and brackets of short sequences."""

import jax
import jax.numpy as jnp

from lco_jax.tasks import base as base_lib
from lco_jax.tasks import digits as digits_lib

_BRACKETS = "([{)]}"


def sorting(length: int = 6) -> base_lib.Task:
  """Sorts 2 to `length` digits in ascending order: 5392> to 2359."""

  def answer(digits, used):
    # Unused slots sort to the end.
    return jnp.sort(jnp.where(used, digits, 10))

  return _make_digit_task("sorting", length, answer)


def reversal(length: int = 6) -> base_lib.Task:
  """Reverses 2 to `length` digits: 5392> to 2935."""

  def answer(digits, used):
    count = jnp.sum(used)
    return digits[(count - 1 - jnp.arange(length)) % length]

  return _make_digit_task("reversal", length, answer)


def parity(length: int = 8) -> base_lib.Task:
  """Parity of 2 to `length` bits: 1011> to 1."""
  _check_length("parity", length)
  characters = "01>"
  zero, end_of_prompt = base_lib.encode(characters, "0>")

  def draw(key):
    bits, used = _draw_digits(key, length, 2)
    odd = jnp.sum(jnp.where(used, bits, 0)) % 2
    return base_lib.make_problem(
      _make_prompt(bits, used, zero, end_of_prompt),
      odd[None] + zero,
      jnp.sum(used),
    )

  return base_lib.Task(
    f"parity:{length}", characters, length + 1, 2, draw, base_lib.exact_match
  )


def brackets(length: int = 8) -> base_lib.Task:
  """The task of closing open brackets, the last one first: ([{}> has ])."""
  _check_length("brackets", length)
  characters = _BRACKETS + ">"
  first, end_of_prompt = base_lib.encode(characters, "(>")

  def draw(key):
    def step(carry, choice):
      stack, depth = carry
      opens = (depth == 0) | (choice < 4)  # Two thirds of the six choices.
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


def _make_digit_task(name, length, solve) -> base_lib.Task:
  """Makes a task that maps up to `length` digits to as many."""
  _check_length(name, length)
  characters = digits_lib.DIGITS + ">"
  zero, end_of_prompt = base_lib.encode(characters, "0>")

  def draw(key):
    digits, used = _draw_digits(key, length, 10)
    answer = jnp.where(used, solve(digits, used) + zero, base_lib.PADDING)
    return base_lib.make_problem(
      _make_prompt(digits, used, zero, end_of_prompt), answer, jnp.sum(used)
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
  """Draws (int32[length], bool[length]); the first 2 to `length` are used."""
  count_key, digit_key = jax.random.split(key)
  count = jax.random.randint(count_key, (), 2, length + 1)
  digits = jax.random.randint(digit_key, (length,), 0, base)
  return digits, jnp.arange(length) < count


def _make_prompt(digits, used, zero, end_of_prompt):
  shown = jnp.where(used, digits + zero, base_lib.PADDING)
  return jnp.concatenate([shown, jnp.array([end_of_prompt])])


def _check_length(name: str, length: int) -> None:
  if not 2 <= length <= 64:
    raise ValueError(f"{name}: length must be in [2, 64], got {length}")
