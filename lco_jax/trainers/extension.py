"""Runs that go on beyond the length that they began with.

An extended run is trained at the learning rates of the longer schedule from the
extension on. It is not the run that this length would have given from the
start; `extended_from` in its settings says so, with the lengths before.
"""

from collections.abc import Mapping

from lco_jax import checks
from lco_jax.training import optimizers

_EARLIER = "extended_from"


def name_length(settings: Mapping) -> str:
  """Returns the name of the setting that says how long a run is."""
  if "total_steps" in settings:
    return "total_steps"
  supervised = settings["algorithm"] == "sft"
  return "warm_start_updates" if supervised else "num_updates"


def extend(settings: Mapping, length: int) -> Mapping:
  """Makes the settings of a run that goes on to another length.

  Args:
    settings: of the run; if they have this length already, they are returned.
    length: environment steps of each seed in control; else updates.

  Raises:
    ValueError: if the run is longer already.
  """
  checks.check_number("--extend_to", length, at_least=1)
  name = name_length(settings)
  if length == settings[name]:
    return settings
  if length < settings[name]:
    raise ValueError(
      f"--extend_to {length}: the run has {name} {settings[name]} already"
    )
  if name == "total_steps":
    update = settings["num_envs"] * settings["num_steps"]
    if length // update == settings[name] // update:
      raise ValueError(
        f"--extend_to {length}: no update more than total_steps"
        f" {settings[name]} has; an update takes {update} steps"
      )
  before = [*settings.get(_EARLIER, []), settings[name]]
  return settings | {name: length, _EARLIER: before}


def list_earlier(settings: Mapping) -> list[dict]:
  """Lists the settings of a run before each of its extensions, oldest first."""
  lengths = settings.get(_EARLIER, [])
  name, earlier = name_length(settings), []
  for index, length in enumerate(lengths):
    own = {key: v for key, v in settings.items() if key != _EARLIER}
    own[name] = length
    earlier.append(own | ({_EARLIER: lengths[:index]} if index else {}))
  return earlier


def find_original(settings: Mapping) -> dict:
  """Returns the settings that a run began with."""
  return [*list_earlier(settings), dict(settings)][0]


def describe_extension(settings: Mapping) -> str:
  """Says in a line what an extension does to the learning rate.

  Args:
    settings: of the extended run, which had come to its end before.
  """
  name = name_length(settings)
  before, after = settings[_EARLIER][-1], settings[name]
  line = f"{name}: {before:,} extended to {after:,}"
  schedule = settings["learning_rate_schedule"]
  if schedule == "constant":
    return line + "; the learning rate stays constant"
  # The warm-up is short beside the run, and over.
  share = float(optimizers.make_schedule(schedule, 1.0, after)(before))
  return (
    f"{line}; the learning rate, 0 at the end of the {schedule} schedule, jumps"
    f" to {share:.2g} of its largest value and decays again: this is not the"
    f" run of {after:,} from the start"
  )
