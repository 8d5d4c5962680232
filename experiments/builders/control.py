"""A control run from its settings, shared by the scripts.

Settings are plain values, from `command_line.read_settings`.
"""

from experiments.common import settings as settings_lib
from lco_jax import algorithms, environments, networks
from lco_jax.control import training


def build(settings: dict):
  """Builds a run; a ValueError names the setting that is wrong.

  Returns:
    (Setup, Training, number of updates).
  """
  policy_options = settings_lib.options(
    settings, algorithms.options_by_name(algorithms.CONTROL)
  )
  settings_lib.check_all_actions(policy_options, True, "GAE")
  row = algorithms.CONTROL[settings["algorithm"]]
  settings_lib.check(settings, ("total_steps", "eval_episodes"))
  options = settings_lib.take(settings, training.Options)
  steps_per_update = options.num_envs * options.num_steps
  num_updates = settings["total_steps"] // steps_per_update
  if num_updates < 1:
    raise ValueError(
      f"total_steps {settings['total_steps']} is less than one update of"
      f" num_envs × num_steps = {steps_per_update}"
    )
  environment = environments.make(
    settings["environment"],
    settings_lib.take(settings, environments.Options).action_bins,
  )
  actor_critic = networks.make_actor_critic(
    environment.observation_shape,
    environments.logits_shape(environment),
    settings["hidden_sizes"],
    settings["activation"],
    environments.legal_actions(environment),
  )
  setup = training.Setup(
    environment, actor_critic, row, row.policy_loss(**policy_options), options
  )
  optimizer_steps = num_updates * options.num_epochs * options.num_minibatches
  own = training.make_training(
    setup,
    {
      part: settings_lib.make_optimizer(settings, part, optimizer_steps)
      for part in ("policy", "value")
    },
  )
  return setup, own, num_updates
