"""Settings that control and language share."""

import dataclasses

from lco_jax import checks
from lco_jax.checks import setting


@dataclasses.dataclass(frozen=True)
class PolicyOptions:
  """Settings of a policy's objective."""

  beta: float = setting(1.0, "KL strength of the optimal target", above=0.0)
  nonpositive_beta_multiple: float = setting(
    1.0, "factor on β where the advantage is ≤ 0", above=0.0
  )
  dual_bound: float = setting(
    0.1, "vmpo: KL of its weights from uniform, nats", above=0.0
  )
  entropy_coefficient: float = setting(
    0.0, "weight of the entropy bonus", at_least=0.0
  )
  max_kl: float | None = setting(
    None,
    "KL of a minibatch, nats, that ends the policy's epochs; None for no limit",
    above=0.0,
  )
  diagnostics: bool = setting(
    False, "whether curvature, direction and noise of the loss are logged"
  )

  def __post_init__(self):
    checks.check_settings(self)
