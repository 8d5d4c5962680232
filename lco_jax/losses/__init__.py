"""Loss functions: pure, unreduced, one value per state or token.

All raise AssertionError at trace time if shapes or dtypes do not match.
"""

from lco_jax.losses.fisher import (
  lco_fisher_dense_loss,
  lco_fisher_loss,
  lco_proximal_kl_dense_loss,
  lco_proximal_kl_loss,
  lco_residual_lch_dense_loss,
  lco_residual_lch_loss,
  lco_residual_mse_loss,
  lco_weighted_loss,
  lco_weights,
)
from lco_jax.losses.lco import (
  centred_logits,
  importance_weight,
  lco_kld_loss,
  lco_lch_loss,
  lco_mse_loss,
)
from lco_jax.losses.mirror_descent import (
  apa_loss,
  awr_loss,
  cmpo_loss,
  mdpo_loss,
  vmpo_loss,
  vmpo_weights,
)
from lco_jax.losses.policy_gradient import (
  cispo_loss,
  ppo_clip_dense_loss,
  ppo_clip_loss,
  reinforce_dense_loss,
  reinforce_loss,
  sequence_log_prob_ratio,
  stale_weight,
)
from lco_jax.losses.preference import dpo_loss, qrm_loss, rebel_loss
from lco_jax.losses.regularizers import (
  entropy,
  kl_divergence,
  kl_estimate_k1,
  kl_estimate_k2,
  kl_estimate_k3,
  kl_penalty,
)
from lco_jax.losses.value import clipped_value_loss, squared_value_loss

__all__ = [
  "apa_loss",
  "awr_loss",
  "centred_logits",
  "cispo_loss",
  "clipped_value_loss",
  "cmpo_loss",
  "dpo_loss",
  "entropy",
  "importance_weight",
  "kl_divergence",
  "kl_estimate_k1",
  "kl_estimate_k2",
  "kl_estimate_k3",
  "kl_penalty",
  "lco_fisher_dense_loss",
  "lco_fisher_loss",
  "lco_kld_loss",
  "lco_lch_loss",
  "lco_mse_loss",
  "lco_proximal_kl_dense_loss",
  "lco_proximal_kl_loss",
  "lco_residual_lch_dense_loss",
  "lco_residual_lch_loss",
  "lco_residual_mse_loss",
  "lco_weighted_loss",
  "lco_weights",
  "mdpo_loss",
  "ppo_clip_dense_loss",
  "ppo_clip_loss",
  "qrm_loss",
  "rebel_loss",
  "reinforce_dense_loss",
  "reinforce_loss",
  "sequence_log_prob_ratio",
  "squared_value_loss",
  "stale_weight",
  "vmpo_loss",
  "vmpo_weights",
]
