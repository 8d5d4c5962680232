"""Countdown: form a target from given numbers; several answers are right."""

import jax
import jax.numpy as jnp

from lco_jax.tasks import base, digits

_SIGNS = "+-*"


def countdown(count: int = 3) -> base.Task:
  """Makes the task: 357=26 asks for an expression with value 26, like 3*7+5.

  Every number is used once. Expressions, also in the verifier, are evaluated
  from left to right without precedence.

  Args:
    count: how many numbers (digits from 1 to 9) a problem has, in [2, 4].
  """
  if not 2 <= count <= 4:
    raise ValueError(f"countdown: count must be in [2, 4], got {count}")
  characters = digits.DIGITS + _SIGNS + "="
  (zero, plus, equals) = base.encode(characters, "0+=")
  target_digits = count  # The largest target is 9^count.

  def evaluate(numbers, signs):
    value = numbers[0]
    for sign, operand in zip(signs, numbers[1:], strict=True):
      outcomes = jnp.stack([value + operand, value - operand, value * operand])
      value = outcomes[sign]
    return value

  def draw(key):
    number_key, sign_key = jax.random.split(key)
    numbers = jax.random.randint(number_key, (count,), 1, 10)
    signs = jax.random.randint(sign_key, (count - 1,), 0, len(_SIGNS))
    # Negative targets cannot be written; replace them by the sum.
    signs = jnp.where(evaluate(numbers, signs) < 0, 0, signs)
    target = evaluate(numbers, signs)
    prompt = jnp.concatenate(
      [
        jnp.sort(numbers) + zero,
        jnp.array([equals]),
        digits.write_number(target, target_digits, zero),
        jnp.array([equals]),
      ]
    )
    pairs = jnp.stack([signs + plus, numbers[1:] + zero], axis=-1)
    answer = jnp.concatenate([numbers[:1] + zero, pairs.reshape(-1)])
    facts = {"numbers": jnp.sort(numbers), "target": target}
    return base.make_problem(prompt, answer, jnp.sum(signs == 2), facts)

  def verify(problem, completion, mask):
    tokens = jnp.where(mask, completion, base.PADDING)
    numbers, signs = tokens[0:-1:2] - zero, tokens[1:-1:2] - plus
    well_formed = (
      jnp.all((numbers >= 0) & (numbers <= 9))
      & jnp.all((signs >= 0) & (signs < len(_SIGNS)))
      & (tokens[-1] == base.END)
    )
    same = jnp.all(jnp.sort(numbers) == problem.facts["numbers"])
    value = evaluate(numbers, jnp.clip(signs, 0, len(_SIGNS) - 1))
    return well_formed & same & (value == problem.facts["target"])

  return base.Task(
    f"countdown:{count}",
    characters,
    count + 2 + target_digits,
    2 * count,
    draw,
    verify,
  )
