"""Cost of a program: its matrix products and collectives."""

import math
import re
from collections.abc import Mapping
from typing import Any

_KINDS = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-permute",
  "reduce-scatter",
)
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|called_computations"
  r"|true_computation|false_computation|branch_computations)"
  r"=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r" [su]32\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OPERATION = re.compile(rf" = (.*?) ({'|'.join(_KINDS)})(?:-start)?\(")


def count_flops(jaxpr: Any, trips: int) -> float:
  """Counts floating-point operations of all matrix products of a program.

  Those that the backward pass computes again are counted again.

  Args:
    jaxpr: of the program.
    trips: turns of each `while` loop, which a program does not tell.
  """
  total = 0.0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
      total += _count_product(equation)
    times = {"scan": params.get("length", 1), "while": trips}.get(name, 1)
    if name == "shard_map":
      # The inner program is one device's share along these axes.
      sizes, named = params["mesh"].shape, params["newly_manual_axes"]
      times = math.prod(sizes[axis] for axis in named)
    inner = [count_flops(own, trips) for own in _list_inner(params)]
    total += times * (max(inner, default=0.0) if name == "cond" else sum(inner))
  return total


def _count_product(equation: Any) -> float:
  ((contracted, _), _) = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  result = math.prod(equation.outvars[0].aval.shape)
  return 2.0 * result * math.prod(left[axis] for axis in contracted)


def _list_inner(params: Mapping[str, Any]) -> list[Any]:
  """Lists the programs inside an operation."""
  found = []
  for value in params.values():
    for own in value if isinstance(value, tuple | list) else (value,):
      own = getattr(own, "jaxpr", own)
      if hasattr(own, "eqns"):
        found.append(own)
  return found


def count_collectives(text: str, trips: int) -> dict[str, dict[str, float]]:
  """Counts a compiled program's collectives and the bytes that they return.

  Args:
    text: of the program, as `jax.stages.Compiled.as_text` gives it.
    trips: of each loop that does not tell.

  Returns:
    {kind: {"count", "bytes"}}, of one device, loops counted as often as they
    turn.
  """
  entry, bodies = _split_computations(text)
  # One collective may be spread over several fusions, with one channel.
  found: dict[tuple[str, str], tuple[float, float]] = {}

  def visit(name, times, fused):
    for line in bodies.get(name, ()):
      match = _OPERATION.search(line)
      if match is not None:
        channel = _CHANNEL.search(line)
        key = match[2], channel[1] if fused and channel else f"{name} {line}"
        own = times, times * _count_bytes(match[1], match[2], line)
        found[key] = max(found.get(key, own), own)
      inner = times
      if " while(" in line:
        inner = times * _find_trips(line, bodies, trips)
      for group in _CALLED.findall(line):
        for called in group.strip("{}").replace("%", "").split(", "):
          visit(called, inner, fused or " fusion(" in line)

  visit(entry, 1, fused=False)
  totals: dict[str, dict[str, float]] = {}
  for (kind, _), (times, size) in found.items():
    own = totals.setdefault(kind, {"count": 0.0, "bytes": 0.0})
    own["count"] += times
    own["bytes"] += size
  return totals


def _find_trips(line: str, bodies: Mapping[str, list[str]], trips: int) -> int:
  """Finds how often a loop turns: told, or the bound in its condition."""
  told = _TRIPS.search(line)
  if told is not None:
    return int(told[1])
  condition = _CONDITION.search(line)
  bounds = [
    int(number)
    for own in bodies.get(condition[1] if condition else "", ())
    for number in _CONSTANT.findall(own)
  ]
  return max(bounds, default=trips)


def _count_bytes(shapes: str, kind: str, line: str) -> float:
  """Bytes that a collective returns; one that starts has its operand, too."""
  sizes = [
    _BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(",") if n)
    for dtype, shape in _ARRAY.findall(shapes)
  ]
  if f"{kind}-start(" in line and kind != "all-reduce":
    sizes = sizes[len(sizes) // 2 :]
  return float(sum(sizes))


def _split_computations(text: str) -> tuple[str, dict[str, list[str]]]:
  """(name of the first computation to run, lines of each)."""
  bodies: dict[str, list[str]] = {}
  entry = current = ""
  for line in text.splitlines():
    match = _COMPUTATION.match(line)
    if match is not None:
      current = match[1]
      bodies[current] = []
      if line.startswith("ENTRY"):
        entry = current
    elif current:
      bodies[current].append(line)
  return entry, bodies
