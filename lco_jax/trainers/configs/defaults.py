"""Settings that configs take from the options of the library, and meanings."""

import dataclasses
import inspect
import math
import re
import typing
from collections.abc import Collection
from typing import Any

import ml_collections
from ml_collections import config_dict

from lco_jax import algorithms
from lco_jax.trainers.configs import meanings

# {setting: what it means}; configs add what they take from options.
_MEANINGS = dict(meanings.MEANINGS)


def add_options(
  config: ml_collections.ConfigDict,
  options: type,
  without: Collection[str] = (),
) -> None:
  """Adds the settings of options, with their defaults.

  Args:
    config: to add them to.
    options: a dataclass whose fields are made by `checks.setting`.
    without: names of those that are not settings of this config.

  Raises:
    ValueError: naming a setting that the config has already.
  """
  hints = typing.get_type_hints(options)
  for field in dataclasses.fields(options):
    _MEANINGS[field.name] = _describe(field)  # Others are set by the config.
    if field.name not in without:
      _check_new(config, field.name)
      config[field.name] = _default(field.default, hints[field.name])


def add_unset_options(
  config: ml_collections.ConfigDict, options: type, names: Collection[str]
) -> None:
  """Adds some settings of options, unset: their own defaults hold.

  Arguments are those of `add_options`, and the names.

  Raises:
    ValueError: naming a setting that the config has already.
  """
  hints = typing.get_type_hints(options)
  for field in dataclasses.fields(options):
    _MEANINGS[field.name] = _describe(field)
    if field.name in names:
      _check_new(config, field.name)
      config[field.name] = _default(None, hints[field.name])


def add_algorithm_options(config: ml_collections.ConfigDict) -> None:
  """Adds the options of all policy losses to a configuration.

  They are None: each loss has defaults of its own. Algorithms may share an
  option.

  Raises:
    ValueError: naming an option that is called like another setting.
  """
  kinds, takers = {}, {}
  for algorithm, row in algorithms.ALGORITHMS.items():
    own = algorithms.option_types(row.policy_loss)
    kinds |= own
    for name in own:
      takers.setdefault(name, []).append(algorithm)
  for name, kind in kinds.items():
    _check_new(config, name)
    config[name] = config_dict.placeholder(kind)
    _MEANINGS[name] = _describe_option(name, takers[name])


def meaning(name: str) -> str:
  """Returns the meaning of a setting, once its config is made; or nothing."""
  return _MEANINGS.get(name, "")


def _describe(field: dataclasses.Field) -> str:
  """The meaning of a field of options, with the values that it may have."""
  signs = {"at_least": "≥", "above": ">", "at_most": "≤", "below": "<"}
  limits = [
    f"{signs[name]} {bound:g}"
    if isinstance(bound, float)
    else f"{signs[name]} {bound}"
    for name, bound in field.metadata["bounds"].items()
    if math.isfinite(bound)
  ]
  choices = field.metadata["choices"]
  allowed = " or ".join(choices) if choices else ", ".join(limits)
  return field.metadata["meaning"] + (f" ({allowed})" if allowed else "")


def _describe_option(name: str, takers: list[str]) -> str:
  """The meaning of an option of algorithms, from the first one's docstring."""
  first = algorithms.ALGORITHMS[takers[0]].policy_loss
  text = inspect.getdoc(first) or ""
  found = re.search(rf"^  {name}: ((?:.|\n    )*)", text, re.MULTILINE)
  meaning = " ".join(found[1].split()).rstrip(".") if found else ""
  return f"{', '.join(takers)}{meaning and ': '}{meaning}"


def _check_new(config: ml_collections.ConfigDict, name: str) -> None:
  """All settings of a config share one space of names."""
  # Configs and runs add the last three themselves.
  if name in config or name in ("tuned", "plugins", "files"):
    raise ValueError(f"{name}: two settings have this name")


def _default(value: Any, hint: Any) -> Any:
  """The value, or for None a placeholder of the type in `type | None`."""
  if value is not None:
    return value
  return config_dict.placeholder((typing.get_args(hint) or (hint,))[0])
