"""Language tasks by name: NAME, or NAME:SIZE,... to set the difficulty."""

import inspect
from collections.abc import Callable

from lco_jax.tasks import (
  arithmetic,
  base,
  countdown,
  reasoning_gym_arrays,
  sequences,
)
from lco_jax.tasks.base import (
  END,
  PADDING,
  SPLITS,
  Problem,
  Task,
  agreement,
  check_splits,
  draw_from,
)
from lco_jax.tasks.reasoning_gym_texts import (
  EXTRACTIONS,
  TextTask,
  find_split,
  make_text_task,
)

TASKS: dict[str, Callable[..., Task]] = {
  "addition": arithmetic.addition,
  "multiplication": arithmetic.multiplication,
  "modular_sum": arithmetic.modular_sum,
  "sorting": sequences.sorting,
  "reversal": sequences.reversal,
  "parity": sequences.parity,
  "brackets": sequences.brackets,
  "countdown": countdown.countdown,
}

__all__ = [
  "END",
  "EXTRACTIONS",
  "PADDING",
  "SPLITS",
  "TASKS",
  "Problem",
  "Task",
  "TextTask",
  "agreement",
  "check_splits",
  "draw_from",
  "find_split",
  "make",
  "make_text_task",
]


def make(name: str) -> Task:
  """Makes a task by its name.

  Args:
    name: a key of TASKS, optionally with sizes, like `addition`, `addition:3`
      or `modular_sum:3,7`; or `reasoning_gym:NAME`.

  Raises:
    ValueError: if there is no such task, or it has too few problems.
  """
  if name.startswith(reasoning_gym_arrays.PREFIX):
    task = reasoning_gym_arrays.make(
      name.removeprefix(reasoning_gym_arrays.PREFIX)
    )
    base.check_splits(task)
    return task
  kind, _, sizes = name.partition(":")
  if kind not in TASKS:
    raise ValueError(
      f"task: unknown {name!r}; known: {', '.join(TASKS)},"
      f" {reasoning_gym_arrays.PREFIX}NAME"
    )
  parameters = list(inspect.signature(TASKS[kind]).parameters)
  numbers = sizes.split(",") if sizes else []
  if not all(n.isdecimal() for n in numbers) or len(numbers) > len(parameters):
    raise ValueError(
      f"task: {kind} takes {kind}:{','.join(parameters).upper()}, got {name!r}"
    )
  task = TASKS[kind](*map(int, numbers))
  base.check_splits(task)
  return task
