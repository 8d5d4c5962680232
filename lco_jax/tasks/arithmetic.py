"""Addition, multiplication and modular sums of whole numbers."""

import functools

import jax
import jax.numpy as jnp

from lco_jax.tasks import base
from lco_jax.tasks import digits as digits_lib


def addition(digits: int = 3) -> base.Task:
  """a+b= with numbers of up to `digits` digits, in [1, 4]."""
  return _make_binary("addition", "+", jnp.add, digits, digits + 1)


def multiplication(digits: int = 2) -> base.Task:
  """a*b= with numbers of up to `digits` digits, in [1, 4]."""
  return _make_binary("multiplication", "*", jnp.multiply, digits, 2 * digits)


def modular_sum(terms: int = 3, modulus: int = 7) -> base.Task:
  """a+b+c%m=, the sum of 2 to `terms` digits modulo m."""
  if not 2 <= terms <= 20 or not 2 <= modulus <= 10:
    raise ValueError(
      "modular_sum: terms must be in [2, 20], modulus in [2, 10]"
    )
  characters = digits_lib.DIGITS + "+%="
  token = functools.partial(base.encode, characters)
  (zero,) = token("0")
  tail = jnp.array(token(f"%{modulus}="))

  def draw(key):
    count_key, digit_key = jax.random.split(key)
    count = jax.random.randint(count_key, (), 2, terms + 1)
    digits = jax.random.randint(digit_key, (terms,), 0, 10)
    used = jnp.arange(terms) < count
    signs = jnp.where(jnp.arange(terms) == 0, base.PADDING, *token("+"))
    pairs = jnp.stack([signs, digits + zero], axis=-1)
    pairs = jnp.where(used[:, None], pairs, base.PADDING)
    rest = jnp.sum(jnp.where(used, digits, 0)) % modulus
    return base.make_problem(
      jnp.concatenate([pairs.reshape(-1), tail]), rest[None] + zero, count
    )

  return base.Task(
    f"modular_sum:{terms},{modulus}",
    characters,
    2 * terms + len(tail),
    2,
    draw,
    base.exact_match,
  )


def _make_binary(name, sign, operate, digits, answer_digits) -> base.Task:
  if not 1 <= digits <= 4:
    raise ValueError(f"{name}: digits must be in [1, 4], got {digits}")
  characters = digits_lib.DIGITS + sign + "="
  (zero,), (sign_token,), (equals,) = (
    base.encode(characters, c) for c in f"0{sign}="
  )

  def draw(key):
    (a, a_digits), (b, b_digits) = (
      digits_lib.draw_number(part, digits) for part in jax.random.split(key)
    )
    prompt = jnp.concatenate(
      [
        digits_lib.write_number(a, digits, zero),
        jnp.array([sign_token]),
        digits_lib.write_number(b, digits, zero),
        jnp.array([equals]),
      ]
    )
    answer = digits_lib.write_number(operate(a, b), answer_digits, zero)
    return base.make_problem(prompt, answer, jnp.maximum(a_digits, b_digits))

  return base.Task(
    f"{name}:{digits}",
    characters,
    2 * digits + 2,
    answer_digits + 1,
    draw,
    base.exact_match,
  )
