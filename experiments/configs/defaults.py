"""Settings that configs take from the options of the library."""

import dataclasses
import typing
from collections.abc import Collection
from typing import Any

import ml_collections
from ml_collections import config_dict

from lco_jax import algorithms


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
    if field.name not in without:
      _check_new(config, field.name)
      config[field.name] = _default(field.default, hints[field.name])


def add_algorithm_options(config: ml_collections.ConfigDict) -> None:
  """Adds the options of all policy losses, unset: their own defaults hold.

  Algorithms may share an option.

  Raises:
    ValueError: naming an option that is called like another setting.
  """
  kinds = {}
  for row in algorithms.ALGORITHMS.values():
    kinds |= algorithms.option_types(row.policy_loss)
  for name, kind in kinds.items():
    _check_new(config, name)
    config[name] = config_dict.placeholder(kind)


def _check_new(config: ml_collections.ConfigDict, name: str) -> None:
  """All settings of a config share one space of names."""
  if name in config:
    raise ValueError(f"{name}: two settings have this name")


def _default(value: Any, hint: Any) -> Any:
  """The value, or for None a placeholder of the type in `type | None`."""
  if value is not None:
    return value
  return config_dict.placeholder((typing.get_args(hint) or (hint,))[0])
