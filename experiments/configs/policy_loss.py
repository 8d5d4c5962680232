"""Options of the algorithms' policy losses, shared by all configurations."""

import ml_collections
from ml_collections import config_dict


def add_options(config: ml_collections.ConfigDict) -> None:
  """Adds all options as None, which stands for the algorithm's default."""
  config.anchor = config_dict.placeholder(str)  # lco_*: old, current
  config.support = config_dict.placeholder(str)  # lco_mse, _lch: full, sampled
  config.centred = config_dict.placeholder(bool)  # lco_mse, lco_lch
  config.clip = config_dict.placeholder(float)  # lco_*
  config.max_importance_weight = config_dict.placeholder(float)  # lco_kld
  config.clip_low = config_dict.placeholder(float)  # ppo, grpo, dapo, gspo
  config.clip_high = config_dict.placeholder(float)  # the same, and cispo
  config.divergence_coefficient = config_dict.placeholder(float)  # mdpo, ...
  config.max_weight = config_dict.placeholder(float)  # awr
  config.regularizer_coefficient = config_dict.placeholder(float)  # cmpo, vmpo
