"""The text of --help: a script, its flags, the settings of its config."""

import sys
import textwrap

import ml_collections
from absl import flags

from lco_jax.trainers.configs import defaults

_WIDTH = 80
# Where the column of meanings begins.
_INDENT = 38


def is_requested(argv: list[str]) -> bool:
  """Whether the command line asks for help."""
  return any(word in ("-h", "-help", "--help") for word in argv[1:])


def show(
  values: flags.FlagValues,
  config: ml_collections.ConfigDict | None,
  script: str,
) -> None:
  """Prints the help of a script.

  Args:
    values: its flags.
    config: settings, if --config names some.
    script: docstring of the script.
  """
  print(script.strip() or sys.argv[0])
  print("\nFlags:")
  for flag in _own_flags(values):
    _print_row(f"--{flag.name}", f"{flag.help}{_default_of(flag)}")
  if "config" in values and config is None:
    print("\nWith --config=FILE:NAME as well, --help lists its settings.")
  if config is None:
    return
  tuned = config.get("tuned", {}).get(config.get("algorithm"), {})
  print("\nSettings, with their defaults:")
  for name in config:
    if name == "tuned":
      continue
    text = defaults.meaning(name)
    if config[name] is None and name in tuned:
      text += f"; {tuned[name]} for {config.algorithm}"
    _print_row(f"--config.{name}={config[name]!r}", text)


def _own_flags(values: flags.FlagValues) -> list[flags.Flag]:
  """Flags that the script and this project define, in alphabetical order."""
  found = {
    flag.name: flag
    for module, own in values.flags_by_module_dict().items()
    if module == sys.argv[0] or module.startswith("experiments.")
    for flag in own
    if "." not in flag.name
  }
  return [found[name] for name in sorted(found)]


def _default_of(flag: flags.Flag) -> str:
  is_plain = isinstance(flag.default, str | int | float)
  return f" Default: {flag.default}." if flag.default and is_plain else ""


def _print_row(name: str, meaning: str) -> None:
  """Prints a name and, in a column beside it, what it means."""
  lines = textwrap.wrap(meaning, _WIDTH - _INDENT) or [""]
  first = f"  {name}"
  if len(first) >= _INDENT:
    print(first)
    first = ""
  print(f"{first:<{_INDENT}}{lines[0]}".rstrip())
  for line in lines[1:]:
    print(" " * _INDENT + line)
