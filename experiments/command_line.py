"""What the scripts share: flags in, one clear line out when they are wrong."""

import sys
from collections.abc import Callable, Sequence

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

# What absl, ml_collections and a config file raise for a wrong command line.
_WRONG_FLAGS = (
  flags.Error,
  AttributeError,
  ImportError,
  KeyError,
  SyntaxError,
  TypeError,
  ValueError,
)


class ScriptError(Exception):
  """Something went wrong that one line explains: no trace is shown."""


def define_config() -> flags.FlagHolder:
  """Defines --config and --workdir."""
  flags.DEFINE_string("workdir", None, "New or empty directory of the run.")
  flags.mark_flag_as_required("workdir")
  config = config_flags.DEFINE_config_file(
    "config", None, "FILE:ENVIRONMENT; then --config.NAME=VALUE to change it."
  )
  flags.mark_flag_as_required("config")
  return config


def run(main: Callable[[], None]) -> None:
  """Runs a script; what the user can fix ends with one line and status 2.

  Args:
    main: the script, called once flags are parsed. A ScriptError that it raises
      is shown as one line; any other error is a defect and keeps its trace.
  """

  def parse(argv: Sequence[str]) -> list[str]:
    try:
      rest = flags.FLAGS(argv)
    except _WRONG_FLAGS as error:
      fail(error)
    if len(rest) > 1:
      fail(f"unexpected argument {rest[1]!r}")
    if flags.FLAGS["verbosity"].using_default_value:
      # As information, jax tells of every accelerator that it did not find.
      flags.FLAGS.verbosity = logging.WARNING
    return rest

  def guarded(_):
    try:
      main()
    except ScriptError as error:
      fail(error)

  app.run(guarded, flags_parser=parse)


def fail(error: Exception | str) -> None:
  """Prints one line on standard error and exits with status 2."""
  message = str(error.args[0] if isinstance(error, KeyError) else error)
  lines = [line.strip() for line in message.splitlines() if line.strip()]
  print(f"error: {lines[-1] if lines else 'unknown'}", file=sys.stderr)
  sys.exit(2)


def resolve(config: ml_collections.ConfigDict) -> dict:
  """Plain settings of a run: what is unset takes the algorithm's tuned value.

  Args:
    config: has `environment`, `algorithm`, and `tuned` {"environment": ID,
      algorithm: {name: value}}.

  Returns:
    {name: value}, without `tuned`.

  Raises:
    ValueError: if the tuned values are those of another environment.
  """
  settings = config.to_dict()
  tuned = settings.pop("tuned")
  if settings["environment"] != tuned["environment"]:
    raise ValueError(
      "environment: choose it with --config=FILE:"
      f"{settings['environment']}, so that its own defaults are taken"
    )
  for name, value in tuned.get(settings["algorithm"], {}).items():
    if settings[name] is None:
      settings[name] = value
  return settings
