"""Settings that several kinds of runs have in common, checked and used.

Settings are plain values, from `resolve`.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import ml_collections
import optax

from lco_jax import checks
from lco_jax.checks import setting
from lco_jax.training import optimizers

_RATES = "policy_learning_rates"
_Options = TypeVar("_Options")


@dataclasses.dataclass(frozen=True)
class RunOptions:
  """Settings of every run: its seeds, its optimizers, and the host's side."""

  seed: int = setting(0, "first seed", at_least=0, below=2**31)
  num_seeds: int = setting(8, "seeds, side by side", at_least=1)
  optimizer: str = setting("adam", "name of any optax optimizer")
  optimizer_options: str = setting(
    "", 'options of the optimizer, e.g. "b1=0.8,eps=1e-5"'
  )
  learning_rate_schedule: str = setting(
    "linear", "decay to 0, or constant", choices=optimizers.SCHEDULES
  )
  learning_rate_warmup: int = setting(
    0, "optimizer steps of a linear rise", at_least=0
  )
  policy_learning_rate: float | None = setting(
    None, "largest rate; None for the tuned one", above=0.0
  )
  policy_learning_rates: tuple = setting(
    (), "several: every seed at each of them, side by side in one program"
  )
  value_learning_rate: float = setting(
    1e-3, "largest rate of the value network", above=0.0
  )
  policy_max_gradient_norm: float = setting(
    0.5, "global norm to clip at; 0 for no clipping", at_least=0.0
  )
  value_max_gradient_norm: float = setting(
    0.5, "the same of the value network", at_least=0.0
  )
  updates_per_chunk: int | None = setting(
    None, "updates of a compiled chunk; None chooses", at_least=1
  )
  checkpoint_seconds: float = setting(
    30.0, "seconds between checkpoints", at_least=0.0
  )
  keep_checkpoints: int = setting(
    3, "number of newest checkpoints to keep", at_least=1
  )
  wandb_project: str | None = setting(
    None, "Weights & Biases project to log to, too"
  )

  def __post_init__(self):
    checks.check_settings(self)
    rates = self.policy_learning_rates
    for rate in rates:
      if not (isinstance(rate, int | float) and 0 < rate < math.inf):
        raise ValueError(f"{_RATES} must be positive and finite, got {rate!r}")
    # As directories are named.
    if len({f"{rate:g}" for rate in rates}) < len(rates):
      raise ValueError(f"{_RATES} has one twice: {list(rates)}")
    if rates and self.wandb_project:
      raise ValueError("wandb_project takes a run at one policy_learning_rate")


def check(
  settings: Mapping, counts: Sequence[str], without: Collection[str] = ()
) -> None:
  """Checks the settings of every run, and some that must be ≥ 1.

  Args:
    settings: of the run.
    counts: names of the latter.
    without: those of every run that this one has not.

  Raises:
    ValueError: naming the setting that is out of range.
  """
  take(settings, RunOptions, without)
  for name in counts:
    checks.check_number(name, settings[name], at_least=1)


def take(
  settings: Mapping,
  options: type[_Options],
  without: Collection[str] = (),
  **changes,
) -> _Options:
  """Fills a class of options with a run's settings.

  Each field takes the setting that has its name.

  Args:
    settings: of the run.
    options: a dataclass whose fields are made by `checks.setting`.
    without: fields that keep their defaults.
    **changes: values of fields that do not come from the settings.

  Raises:
    ValueError: naming the setting that is out of range.
  """
  found = {
    field.name: settings[field.name]
    for field in dataclasses.fields(options)
    if field.name not in (*without, *changes)
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
  """Collects the options of algorithms that are set.

  Args:
    settings: of the run; an option may be None, not set, or missing, if its
      algorithm was registered later.
    taken: {algorithm: names of the options that it takes}.

  Raises:
    ValueError: if one is set that the run's own algorithm does not take, or if
      that is none of them.
  """
  checks.check_choice("algorithm", settings["algorithm"], taken)
  known = taken[settings["algorithm"]]
  every = sorted({option for options in taken.values() for option in options})
  chosen = {k: settings[k] for k in every if settings.get(k) is not None}
  for name in chosen:
    if name not in known:
      takes = ", ".join(known) or "no options"
      raise ValueError(f"{name}: {settings['algorithm']} takes {takes}")
  return chosen


def check_all_actions(chosen: Mapping, sampled_only: bool, signal: str) -> None:
  """Refuses losses of all actions where not all advantages are known.

  Args:
    chosen: options of the run's algorithm that are set.
    sampled_only: whether only the sampled action's advantage is known.
    signal: name of the advantage signal.

  Raises:
    ValueError: if they do not go together.
  """
  if chosen.get("all_actions") and sampled_only:
    raise ValueError(
      f"all_actions: the advantage {signal!r} is known for the sampled action"
      " alone"
    )


def check_algorithm(algorithm: str, tuned: Mapping) -> None:
  """Checks the name of an algorithm; `tuned` is that of a config.

  Raises:
    ValueError: if the config does not know the algorithm.
  """
  known = [name for name in tuned if name != "chosen"]
  checks.check_choice("algorithm", algorithm, known)


def resolve(config: ml_collections.ConfigDict) -> dict:
  """Plain settings of a run: what is unset takes the algorithm's tuned value.

  Args:
    config: has `algorithm`, and `tuned` {"chosen": (setting, value) of what was
      chosen behind the config's colon, algorithm: {name: value}}.

  Returns:
    {name: value}, without `tuned`.

  Raises:
    ValueError: if the tuned values are those of another environment or task, or
      there are none for the algorithm.
  """
  settings = config.to_dict()
  tuned = settings.pop("tuned")
  name, chosen = tuned["chosen"]
  if settings[name] != chosen:
    raise ValueError(
      f"{name}: choose it with --config=FILE:{settings[name]}, so that its own"
      " defaults are taken"
    )
  check_algorithm(settings["algorithm"], tuned)
  for name, value in tuned[settings["algorithm"]].items():
    if settings[name] is None:
      settings[name] = value
      if name == "learning_rate_warmup":
        settings[name] = min(value, _fewest_steps(settings) // 2)
  return settings


def _fewest_steps(settings: Mapping) -> int:
  """Counts the optimizer steps of a language run, or of its warm start."""
  steps = math.prod(
    settings.get(name, 1)
    for name in ("num_updates", "num_epochs", "num_minibatches")
  )
  warm = settings.get("warm_start_updates", 0)
  if settings["algorithm"] == "sft":
    return max(0, warm)
  has_warm_start = warm > 0 and settings.get("init_from") is None
  return max(0, min(steps, warm) if has_warm_start else steps)
