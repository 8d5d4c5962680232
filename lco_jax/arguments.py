"""Errors of public functions that name the argument, and what it should be.

The docstrings of public functions give the type and the shape of every array,
such as `float[..., A]`. When a function's own check of its arrays fails, the
error is built from them; shapes are compared with the first argument's.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

_Function = TypeVar("_Function", bound=Callable)
_KINDS = {"float": np.floating, "int": np.integer, "bool": np.bool_}


def explain_errors(function: _Function) -> _Function:
  """Makes a function's failed checks of arrays name its argument.

  An AssertionError that the function raises becomes one whose message is, for
  example, "lco_fisher_loss: advantages must be float[...], here [2], got
  float32[2, 3] (of the sampled actions, in units of return)".

  Args:
    function: has a docstring whose `Args` begin with types and shapes. A size
      that occurs twice is the same; `...` are the same axes everywhere.
  """

  @functools.wraps(function)
  def explained(*args, **kwargs):
    try:
      return function(*args, **kwargs)
    except AssertionError as error:
      bound = inspect.signature(function).bind(*args, **kwargs)
      faults = [
        f"{name} {fault}" for name, fault in _faults(function, bound.arguments)
      ]
      found = "; ".join(faults) or _describe_all(error, bound.arguments)
      raise AssertionError(f"{function.__name__}: {found}") from error

  return explained


def _faults(
  function: Callable, arguments: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
  """Yields (argument, what is wrong with it) by the function's docstring."""
  sizes = {}
  for name, kind, axes, meaning in _documented(function):
    value = arguments.get(name)
    try:
      value = jnp.asarray(value)
    except (TypeError, ValueError):  # None, or no array.
      continue
    shape, dtype = value.shape, value.dtype
    expected = _unify(axes, shape, sizes)
    is_kind = jnp.issubdtype(dtype, _KINDS[kind])
    if expected is None and is_kind:
      continue
    here = "" if expected is None else f", here {expected}"
    about = f" ({meaning})" if meaning else ""
    yield (
      name,
      f"must be {kind}[{', '.join(axes)}]{here}, got {dtype}{_format(shape)}"
      f"{about}",
    )


def _documented(
  function: Callable,
) -> Iterator[tuple[str, str, list[str], str]]:
  """Yields (argument, kind, axes, meaning) of the docstring's arrays."""
  text = inspect.getdoc(function) or ""
  text = text.partition("\nArgs:\n")[2].partition("\n\n")[0]
  for entry in re.split(r"\n  (?=\w)", "\n" + text.replace("\n    ", " ")):
    found = re.match(
      r"\*?(\w+): (float|int|bool)(?:32)?\[([^]]*)\](.*?)(?:\.(?: |$)|$)",
      entry.strip(),
    )
    if found:
      axes = [axis.strip() for axis in found[3].split(",") if axis.strip()]
      yield found[1], found[2], axes, found[4].strip(" ,")


def _unify(
  axes: list[str], shape: tuple[int, ...], sizes: dict[str, Any]
) -> str | None:
  """Compares a shape with axes, and notes sizes that occur first here.

  Args:
    axes: names, numbers, `...`.
    shape: of the array.
    sizes: {axis: its size}, that of `...` a tuple; new ones are added.

  Returns:
    The shape that was expected; None if this one fits.
  """
  before = axes.index("...") if "..." in axes else len(axes)
  behind = max(len(axes) - before - 1, 0)
  if "..." in axes and len(shape) >= before + behind:
    sizes.setdefault("...", shape[before : len(shape) - behind])
  if "..." not in axes or "..." in sizes:
    lead = [str(size) for size in sizes.get("...", ())]
    flat = [*axes[:before], *lead, *axes[before + 1 :]]
    if len(flat) == len(shape):
      for axis, size in zip(flat, shape, strict=True):
        if axis.isidentifier():
          sizes.setdefault(axis, size)
    expected = [str(sizes.get(axis, axis)) for axis in flat]
  else:
    expected = axes
  return (
    None if expected == [str(size) for size in shape] else _format(expected)
  )


def _describe_all(error: AssertionError, arguments: Mapping[str, Any]) -> str:
  """Describes a failed check and all arrays, if none alone is wrong."""
  reason = re.sub(r"^\[Chex\] Assertion \w+ failed: +", "", str(error))
  arrays = [
    f"{name} {value.dtype}{_format(value.shape)}"
    for name, value in arguments.items()
    if hasattr(value, "shape")
  ]
  return f"{reason.rstrip('. ')}; got {', '.join(arrays)}"


def _format(shape: Iterable[int | str]) -> str:
  return f"[{', '.join(map(str, shape))}]"
