"""A control run from its settings: what the scripts share.

Settings are plain values, from `command_line.read_settings`.
"""

import math
import pathlib

from lco_jax import (
  checkpointing,
  control,
  environments,
  networks,
  objectives,
  optimizers,
)

_COUNTS = (
  "num_seeds",
  "total_steps",
  "eval_episodes",
  "num_envs",
  "num_steps",
  "num_epochs",
  "num_minibatches",
  "keep_checkpoints",
)
_RATES = ("policy_learning_rate", "value_learning_rate")
_NORMS = ("policy_max_gradient_norm", "value_max_gradient_norm")
# Every name that is an option of some algorithm.
_OPTIONS = sorted(
  {
    option
    for algorithm in objectives.POLICY_LOSSES
    for option in objectives.options_of(algorithm)
  }
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


def build(settings: dict):
  """Builds the environment, its networks, the training and its length.

  Args:
    settings: plain values, from `command_line.read_settings`.

  Returns:
    (Environment, ActorCritic, Training, number of updates).

  Raises:
    ValueError: naming the setting that is wrong.
  """
  policy_loss = objectives.make_policy_loss(
    settings["algorithm"],
    **{k: settings[k] for k in _OPTIONS if settings[k] is not None},
  )
  for name in _COUNTS:
    if settings[name] < 1:
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
  for name in _RATES:
    if not 0 < settings[name] < math.inf:
      raise ValueError(
        f"{name} must be positive and finite, got {settings[name]}"
      )
  for name in _NORMS:
    if not 0 <= settings[name] < math.inf:
      raise ValueError(f"{name} must be ≥ 0 and finite, got {settings[name]}")
  steps_per_update = settings["num_envs"] * settings["num_steps"]
  num_updates = settings["total_steps"] // steps_per_update
  if num_updates < 1:
    raise ValueError(
      f"total_steps {settings['total_steps']} is less than one update of"
      f" num_envs × num_steps = {steps_per_update}"
    )
  environment = environments.make(settings["environment"])
  actor_critic = networks.make_actor_critic(
    environment.observation_shape,
    environment.num_actions,
    settings["hidden_sizes"],
    settings["activation"],
  )
  objective = objectives.make_objective(
    actor_critic.policy,
    actor_critic.value,
    policy_loss,
    settings["entropy_coefficient"],
    settings["value_clip"],
  )
  optimizer_steps = (
    num_updates * settings["num_epochs"] * settings["num_minibatches"]
  )
  task = control.make_training(
    environment,
    actor_critic,
    objective,
    {
      part: optimizers.make_optimizer(
        settings["optimizer"],
        optimizers.make_schedule(
          settings["learning_rate_schedule"],
          settings[f"{part}_learning_rate"],
          optimizer_steps,
        ),
        settings[f"{part}_max_gradient_norm"] or None,
        **parse_options(settings["optimizer_options"]),
      )
      for part in ("policy", "value")
    },
    **{
      name: settings[name]
      for name in (
        "num_envs",
        "num_steps",
        "num_epochs",
        "num_minibatches",
        "discount",
        "gae_lambda",
        "beta",
        "nonpositive_beta_multiple",
        "normalize_advantages",
      )
    },
  )
  return environment, actor_critic, task, num_updates


def checkpoints(
  workdir: pathlib.Path, settings: dict
) -> checkpointing.Checkpoints:
  """Where a run saves its state."""
  return checkpointing.Checkpoints(
    workdir / "checkpoints",
    checkpointing.fingerprint(settings),
    settings["keep_checkpoints"],
  )


def fault_checkpoints(
  workdir: pathlib.Path, settings: dict
) -> checkpointing.Checkpoints:
  """Where a run saves an update that is not finite."""
  return checkpointing.Checkpoints(
    workdir / "fault", checkpointing.fingerprint(settings), keep=1
  )
