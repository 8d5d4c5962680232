"""The authors' recipe: --config=experiments/configs/authors.py:chain_sum.

As in their public code for rewards of rules: every token of a completion has
the advantage +1 or −1, without a group's baseline; β is 2, and 100 times that
for negative samples; LCO-MSE regresses the sampled token's raw logit onto the
current logit plus A/β. All samples are drawn once, and each is used for one
Adam step: many steps on data that grow old.

The theory asks for the old policy's logits as the anchor, which is the default
elsewhere: with the current anchor the gradient is the constant −A/β, without a
fixed point.
"""

import ml_collections

from lco_jax.trainers.configs import llm

_RECIPE = {
  "algorithm": "lco_mse",
  "anchor": "current",
  "support": "sampled",
  "centred": False,
  "advantage": "reward",
  "reward_scale": 2.0,
  "reward_offset": -1.0,
  "beta": 2.0,
  "nonpositive_beta_multiple": 100.0,
  "policy_learning_rate": 1e-5,
  "optimizer_options": "",
  "learning_rate_warmup": 0,
  "learning_rate_schedule": "constant",
  # One batch of all samples: minibatches divide the samples of a prompt.
  "num_updates": 1,
  "num_prompts": 256,
  "num_samples": 16,
  "num_minibatches": 16,
  "num_microbatches": 16,
  "max_visits": 1,
}


def get_config(task: str = "chain_sum") -> ml_collections.ConfigDict:
  """Settings of a run.

  Args:
    task: reasoning-gym's name of the task.
  """
  config = llm.get_config(task)
  config.update(_RECIPE)
  return config
