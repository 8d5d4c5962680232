"""A control run from its settings: what the scripts share.

Settings are plain values, from `command_line.read_settings`.
"""

from experiments.common import settings as settings_lib
from lco_jax import algorithms, environments, networks
from lco_jax.control import objectives, training


def build(settings: dict):
  """Builds the environment, its networks, the training and its length.

  Args:
    settings: plain values, from `command_line.read_settings`.

  Returns:
    (Environment, ActorCritic, Training, number of updates).

  Raises:
    ValueError: naming the setting that is wrong.
  """
  policy_loss = algorithms.make_policy_loss(
    settings["algorithm"],
    **settings_lib.options(
      settings, algorithms.options_by_name(algorithms.CONTROL)
    ),
  )
  settings_lib.check(
    settings, ("total_steps", "eval_episodes", "num_envs", "num_steps")
  )
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
    measures_kl=settings["max_kl"] is not None,
  )
  optimizer_steps = (
    num_updates * settings["num_epochs"] * settings["num_minibatches"]
  )
  task = training.make_training(
    environment,
    actor_critic,
    objective,
    {
      part: settings_lib.make_optimizer(settings, part, optimizer_steps)
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
        "reward_noise",
        "max_kl",
      )
    },
    dual_bound=(
      settings["dual_bound"]
      if algorithms.ALGORITHMS[settings["algorithm"]].takes_weights
      else None
    ),
    looked_at=policy_loss if settings["diagnostics"] else None,
  )
  return environment, actor_critic, task, num_updates
