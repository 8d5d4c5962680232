"""Language tasks by name: NAME, or NAME:SIZE,... to set the difficulty."""

import inspect
from collections.abc import Callable

from lco_jax import checks
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
from lco_jax.tasks.rows import RowTask

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


def register(name: str) -> Callable[[Callable[..., Task]], Callable[..., Task]]:
  """Registers a language task of your own.

      @lco_jax.register_task("copy")
      def make_copy(length: int = 4) -> lco_jax.tasks.Task:
        ...

  The decorated function returns a `Task`. Its parameters are whole numbers with
  defaults, the sizes in `copy:LENGTH`.

  Args:
    name: id of the task, without a colon.

  Raises:
    ValueError: if the name is taken, or cannot be an id.
  """

  def add(make_one: Callable[..., Task]) -> Callable[..., Task]:
    checks.check_new_name("register_task", name, TASKS)
    TASKS[name] = make_one
    return make_one

  return add


__all__ = [
  "END",
  "EXTRACTIONS",
  "PADDING",
  "SPLITS",
  "TASKS",
  "Problem",
  "RowTask",
  "Task",
  "TextTask",
  "agreement",
  "check_splits",
  "draw_from",
  "find_split",
  "make",
  "make_text_task",
  "register",
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
      f"task: unknown {name!r}{checks.suggest(kind, TASKS)}; known:"
      f" {', '.join(TASKS)},"
      f" {reasoning_gym_arrays.PREFIX}NAME"
    )
  parameters = list(inspect.signature(TASKS[kind]).parameters)
  numbers = sizes.split(",") if sizes else []
  if not all(n.isdecimal() for n in numbers) or len(numbers) > len(parameters):
    raise ValueError(
      f"task: {kind} takes {kind}:{','.join(parameters).upper()}, got {name!r}"
    )
  try:
    task = TASKS[kind](*map(int, numbers))
  except ValueError:
    raise
  except Exception as error:  # A task of a user's own may raise any exception.
    raise ValueError(
      f"task {kind!r}: {type(error).__name__}: {error}"
    ) from error
  if not isinstance(task, Task):
    raise ValueError(f"task {kind!r}: want a Task, got {type(task).__name__}")
  base.check_splits(task)
  return task
