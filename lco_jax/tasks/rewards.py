"""Rewards of texts: functions of a completion and the row that it answers.

A reward is a function (completion: str, row: dict) → float. Several add up to
the reward that is learned from, each with a weight. Rewards run in processes of
their own, so they are named by something that another process can find: a
built-in name, a file with a function, or a function that a module defines.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import math
import pathlib
import re
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from lco_jax import checks, user_files
from lco_jax.tasks.built_in_rewards import BUILT_IN, Function

# Of files of rewards in sys.modules; it must hide no other module.
_PREFIX = "lco_jax_rewards_"


class RewardError(Exception):
  """A user's reward raised, or returned no finite number."""


@dataclasses.dataclass(frozen=True)
class Reward:
  """A reward and its weight.

  Attributes:
    name: of its metrics.
    function: can be pickled.
    weight: factor in the sum; 0 for a reward that is only logged.
    built_in: whether it is one of BUILT_IN, whose failures score 0. A failure
      of a user's reward ends the run.
  """

  name: str
  function: Function
  weight: float = 1.0
  built_in: bool = False

  @property
  def text(self) -> str:
    """The reward as `parse` reads it; a function is its name alone."""
    spec = self.name
    if isinstance(self.function, FileFunction):
      spec = f"{self.function.path}:{self.name}"
    return f"{spec}*{self.weight}"


@dataclasses.dataclass(frozen=True)
class FileFunction:
  """A function of a Python file, found in any process.

  Attributes:
    path: of the file, absolute.
    name: of the function.
  """

  path: str
  name: str

  def __call__(self, completion: str, row: dict) -> float:
    """Calls the function."""
    return self.load()(completion, row)

  def load(self) -> Function:
    """Imports the file, once in a process, and finds the function.

    Raises:
      ValueError: naming the file, if it cannot be imported or has no such
        function.
    """
    found = getattr(_import_file(self.path), self.name, None)
    if not callable(found):
      raise ValueError(f"rewards: {self.path} has no function {self.name}")
    return found


@dataclasses.dataclass(frozen=True)
class RegisteredFunction:
  """A function that a plug-in registered, found in any process.

  Attributes:
    name: that it is registered by.
    module: name of the plug-in's module.
    path: its file.
  """

  name: str
  module: str
  path: str

  def __call__(self, completion: str, row: dict) -> float:
    """Calls the function."""
    return self.load()(completion, row)

  def load(self) -> Function:
    """Imports the plug-in, once in a process, and finds the function."""
    if self.name not in _REGISTERED:  # In a new process.
      _import_file(self.path, self.module)
    return _REGISTERED[self.name]


@dataclasses.dataclass(frozen=True)
class Grader:
  """All rewards of a run, as the processes that score get them.

  Attributes:
    rewards: in the order of their values.
  """

  rewards: tuple[Reward, ...]

  @property
  def num_values(self) -> int:
    """Values of a completion."""
    return len(self.rewards)

  @property
  def stops(self) -> bool:
    """Whether a completion that takes too long ends the run."""
    return not all(reward.built_in for reward in self.rewards)

  def load(self) -> None:
    """Imports what the rewards need, which takes no completion's time."""
    for reward in self.rewards:
      if isinstance(reward.function, FileFunction | RegisteredFunction):
        reward.function.load()

  def score(self, problem: Mapping[str, Any], completion: str) -> list[float]:
    """Computes all rewards of a completion; NaN where a built-in one fails.

    Args:
      problem: has "row", and "place", where the row is from.
      completion: text.

    Raises:
      RewardError: if a user's reward raises or returns no finite number.
    """
    return [_call(reward, problem, completion) for reward in self.rewards]

  def describe(self, problem: Mapping[str, Any]) -> str:
    """Names the rewards and the row, for errors about both."""
    names = ", ".join(reward.name for reward in self.rewards)
    return f"rewards {names}: {problem['place']}"


def check_row(
  rewards: Sequence[Reward], row: Mapping[str, Any], place: str
) -> None:
  """Checks that a row has what built-in rewards read.

  Raises:
    ValueError: naming the row, the column and the reward.
  """
  for reward in rewards:
    if not reward.built_in or reward.name == "json":
      continue
    column = "pattern" if reward.name == "regex" else "answer"
    if row.get(column) is None or not str(row[column]).strip():
      raise ValueError(
        f"data: {place}: nothing in the column {column!r}, which the reward"
        f" {reward.name} reads"
      )
    if column == "pattern":
      try:
        re.compile(str(row[column]))
      except re.error as error:
        raise ValueError(f"data: {place}: pattern: {error}") from None


# {name: function} of plug-ins.
_REGISTERED: dict[str, Function] = {}


def register(name: str) -> Callable[[Function], Function]:
  """Registers a reward of your own, for --config.rewards.

      @lco_jax.register_reward("brief")
      def brief(completion: str, row: dict) -> float:
        return 1.0 / (1 + len(completion))

  Args:
    name: of the reward, without a colon, and of its metrics.

  Raises:
    ValueError: if the name is taken, or cannot be an id.
  """

  def add(function: Function) -> Function:
    checks.check_new_name("register_reward", name, {**BUILT_IN, **_REGISTERED})
    _REGISTERED[name] = function
    return function

  return add


def parse(text: str) -> tuple[Reward, ...]:
  """Reads rewards from "NAME*WEIGHT,FILE.py:FUNCTION*WEIGHT,...".

  Args:
    text: names are those of BUILT_IN or registered ones; a weight of 1 may be
      left out.

  Raises:
    ValueError: naming the reward or file that is wrong.
  """
  return check_rewards(
    [_parse_one(part.strip()) for part in text.split(",") if part.strip()]
  )


def make_reward(given: Function | str | tuple) -> Reward:
  """Makes a reward from what a call of `train_llm` is given.

  Args:
    given: a function of a module, a name or FILE.py:FUNCTION as of `parse`, or
      a pair of either and a weight.

  Raises:
    ValueError: if it is none of them.
  """
  is_pair = isinstance(given, tuple) and len(given) == 2
  function, weight = given if is_pair else (given, None)
  if is_pair and not isinstance(weight, int | float):
    raise ValueError(f"rewards: want a number as weight, got {weight!r}")
  if isinstance(function, str):
    reward = _parse_one(function)
  elif callable(function) and "<" not in getattr(function, "__qualname__", "<"):
    reward = Reward(function.__name__, function)
  else:
    raise ValueError(
      "rewards: want functions defined at the top of a module, so that other"
      f" processes find them; got {function!r}"
    )
  if weight is None:
    return reward
  return dataclasses.replace(reward, weight=float(weight))


def check_rewards(rewards: Sequence[Reward]) -> tuple[Reward, ...]:
  """Checks that rewards go together.

  Raises:
    ValueError: if there are none, two have one name, or a weight is wrong.
  """
  names = [reward.name for reward in rewards]
  if not rewards:
    raise ValueError(
      "rewards: want at least one, such as exact or my_rewards.py:correct;"
      f" built in: {', '.join(BUILT_IN)}"
    )
  for reward in rewards:
    if names.count(reward.name) > 1:
      raise ValueError(f"rewards: two are called {reward.name}")
    if not math.isfinite(reward.weight):
      raise ValueError(f"rewards: {reward.name} has weight {reward.weight}")
  if not any(reward.weight for reward in rewards):
    raise ValueError("rewards: all weights are 0, so nothing would be learned")
  return tuple(rewards)


def list_files(text: str) -> list[str]:
  """Lists the files that rewards are read from, without importing them.

  Args:
    text: as of `parse`.
  """
  specs = [part.partition("*")[0].strip() for part in text.split(",")]
  files = [spec.rpartition(":")[0] for spec in specs if ":" in spec]
  return [str(pathlib.Path(file).resolve()) for file in files]


def list_registered(text: str) -> list[Reward]:
  """Lists the rewards that plug-ins have registered.

  Args:
    text: as of `parse`.
  """
  specs = [part.partition("*")[0].strip() for part in text.split(",")]
  return [_parse_one(spec) for spec in specs if spec in _REGISTERED]


def identify(rewards: Sequence[Reward]) -> dict[str, str]:
  """Hashes what users' rewards are made of, {file or function: SHA-256}."""
  found = {}
  for reward in rewards:
    function = reward.function
    if reward.built_in:
      continue
    if isinstance(function, FileFunction | RegisteredFunction):
      found[function.path] = user_files.hash_file(function.path)
      continue
    try:  # Of the function alone: a script may change around it.
      source = inspect.getsource(function)
    except (OSError, TypeError):
      continue  # Of a terminal: nothing to compare with.
    digest = hashlib.sha256(source.encode()).hexdigest()
    found[f"reward {reward.name}"] = digest
  return found


def _parse_one(text: str) -> Reward:
  spec, star, number = text.partition("*")
  spec = spec.strip()
  try:
    weight = float(number) if star else 1.0
  except ValueError:
    raise ValueError(
      f"rewards: the weight of {spec} must be a number, got {number!r}"
    ) from None
  file, colon, name = spec.rpartition(":")
  if colon:
    if not file.endswith(".py"):
      raise ValueError(f"rewards: want FILE.py:FUNCTION, got {spec!r}")
    function = FileFunction(str(pathlib.Path(file).resolve()), name)
    _import_file.cache_clear()  # In a notebook the file may have changed.
    function.load()
    return Reward(name, function, weight)
  if spec in _REGISTERED:
    module = sys.modules[_REGISTERED[spec].__module__]
    function = RegisteredFunction(
      spec, module.__name__, str(pathlib.Path(module.__file__).resolve())
    )
    return Reward(spec, function, weight)
  if spec not in BUILT_IN:
    known = [*BUILT_IN, *_REGISTERED]
    raise ValueError(
      f"rewards: unknown {spec!r}{checks.suggest(spec, known)}; known:"
      f" {', '.join(known)}, FILE.py:FUNCTION"
    )
  if spec == "math_verify" and importlib.util.find_spec("math_verify") is None:
    raise ValueError("rewards: math_verify needs pip install math-verify")
  return Reward(spec, BUILT_IN[spec], weight, built_in=True)


def _call(reward: Reward, problem: Mapping[str, Any], completion: str) -> float:
  """One reward of a completion; NaN if a built-in one fails on it.

  Raises:
    RewardError: if a user's reward raises or returns no finite number.
  """
  place = f"reward {reward.name}: {problem['place']}"
  try:
    value = reward.function(completion, dict(problem["row"]))
    array = np.asarray(value)
    is_number = array.ndim == 0 and array.dtype.kind in "biuf"
    number = float(array) if is_number else math.nan
  except (Exception, SystemExit) as error:  # The user's code may raise any.
    if reward.built_in:
      return math.nan
    line = next(iter(str(error).splitlines()), "")
    raise RewardError(f"{place}: {type(error).__name__}: {line}") from error
  if not math.isfinite(number):
    shown = reprlib.repr(value)
    raise RewardError(f"{place}: want a finite number, got {shown}")
  return number


@functools.cache
def _import_file(path: str, name: str | None = None) -> ModuleType:
  """Imports a file once in a process, under a name of its own by default."""
  name = name or _PREFIX + hashlib.sha256(path.encode()).hexdigest()[:8]
  return user_files.import_file(pathlib.Path(path), name, "rewards")
