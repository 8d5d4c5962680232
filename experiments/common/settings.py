"""Settings that several kinds of runs have in common, checked and used.

Settings are plain values, from `command_line.read_settings`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import optax

from lco_jax import checks
from lco_jax.training import optimizers

_COUNTS = (
  "num_seeds",
  "num_epochs",
  "num_minibatches",
  "keep_checkpoints",
)
_RATES = "policy_learning_rates"
_Options = TypeVar("_Options")


def check(settings: Mapping, counts: Sequence[str]) -> None:
  """Checks what every run has.

  Args:
    settings: of the run.
    counts: names of settings beside the common ones that must be ≥ 1.

  Raises:
    ValueError: naming the setting that is out of range.
  """
  for name in (*_COUNTS, *counts):
    if settings.get(name, 1) < 1:
      raise ValueError(f"{name} must be ≥ 1, got {settings[name]}")
  if not settings["checkpoint_seconds"] >= 0:
    raise ValueError(
      f"checkpoint_seconds must be ≥ 0, got {settings['checkpoint_seconds']}"
    )
  updates_per_chunk = settings["updates_per_chunk"]
  if updates_per_chunk is not None and updates_per_chunk < 1:
    raise ValueError(f"updates_per_chunk must be ≥ 1, got {updates_per_chunk}")
  if not 0 <= settings["seed"] < 2**31:
    raise ValueError(f"seed must be in [0, 2³¹), got {settings['seed']}")
  for part in ("policy", "value"):
    name = f"{part}_learning_rate"
    if name not in settings:
      continue
    if not 0 < settings[name] < math.inf:
      raise ValueError(
        f"{name} must be positive and finite, got {settings[name]}"
      )
    name = f"{part}_max_gradient_norm"
    if not 0 <= settings[name] < math.inf:
      raise ValueError(f"{name} must be ≥ 0 and finite, got {settings[name]}")
  rates = settings[_RATES]
  for rate in rates:
    if not (isinstance(rate, int | float) and 0 < rate < math.inf):
      raise ValueError(f"{_RATES} must be positive and finite, got {rate!r}")
  if len({f"{rate:g}" for rate in rates}) < len(rates):  # As directories are.
    raise ValueError(f"{_RATES} has one twice: {rates}")
  if rates and settings["wandb_project"]:
    raise ValueError("wandb_project takes a run at one policy_learning_rate")


def take(settings: Mapping, options: type[_Options], **changes) -> _Options:
  """Options of a class, from the settings of the same names.

  Args:
    settings: of the run; one that is missing has the option's default.
    options: a dataclass whose fields are made by `checks.setting`.
    **changes: fields that are not settings, or differ from them.

  Raises:
    ValueError: naming the setting that is out of range.
  """
  found = {
    field.name: settings[field.name]
    for field in dataclasses.fields(options)
    if field.name in settings
  }
  return options(**(found | changes))


def make_optimizer(
  settings: Mapping,
  part: str,
  num_steps: int,
  learning_rate: float | None = None,
) -> optax.GradientTransformation:
  """The optimizer of a part of the parameters.

  Where the run has several rates, the policy's optimizer leaves the rate to its
  state: the schedule is relative.

  Args:
    settings: of the run.
    part: `policy` or `value`.
    num_steps: optimizer steps of the run.
    learning_rate: other than the part's own; None for that.

  Raises:
    ValueError: naming the setting that is wrong.
  """
  if learning_rate is None and part == "policy" and settings[_RATES]:
    relative = make_optimizer(settings, part, num_steps, 1.0)
    return optimizers.make_own_rate(relative)
  return optimizers.make_optimizer(
    settings["optimizer"],
    optimizers.make_schedule(
      settings["learning_rate_schedule"],
      settings[f"{part}_learning_rate"]
      if learning_rate is None
      else learning_rate,
      num_steps,
      settings["learning_rate_warmup"],
    ),
    settings[f"{part}_max_gradient_norm"] or None,
    **parse_options(settings["optimizer_options"]),
  )


def parse_options(text: str) -> dict[str, float]:
  """Keyword arguments of an optimizer from "name=number,name=number".

  Raises:
    ValueError: if the text is not of that form.
  """
  try:
    pairs = [item.split("=") for item in text.split(",") if item]
    return {name.strip(): float(value) for name, value in pairs}
  except ValueError:
    raise ValueError(
      f'optimizer_options: want "name=number,...", got {text!r}'
    ) from None


def options(settings: Mapping, taken: Mapping[str, Sequence[str]]) -> dict:
  """Those options of algorithms that are set.

  Args:
    settings: of the run; an option of some algorithm may be None, not set.
    taken: {algorithm: names of the options that it takes}.

  Raises:
    ValueError: if one is set that the run's own algorithm does not take, or if
      that is none of them.
  """
  checks.check_choice("algorithm", settings["algorithm"], taken)
  known = taken[settings["algorithm"]]
  every = sorted({option for options in taken.values() for option in options})
  chosen = {k: settings[k] for k in every if settings[k] is not None}
  for name in chosen:
    if name not in known:
      takes = ", ".join(known) or "no options"
      raise ValueError(f"{name}: {settings['algorithm']} takes {takes}")
  return chosen
