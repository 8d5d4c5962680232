"""Settings that control and language share."""

import dataclasses

from lco_jax import checks
from lco_jax.checks import setting

BETA_RULES = ("fixed", "variance", "feedback")
CORRECTIONS = ("none", "truncated", "masked")


@dataclasses.dataclass(frozen=True)
class PolicyOptions:
  """Settings of a policy's objective."""

  beta: float = setting(1.0, "KL strength of the optimal target", above=0.0)
  nonpositive_beta_multiple: float = setting(
    1.0, "factor on β where the advantage is ≤ 0", above=0.0
  )
  beta_rule: str = setting(
    "fixed",
    "how β is chosen: fixed; variance of the advantages and kl_budget; feedback"
    " of past updates' KL, beginning with beta",
    choices=BETA_RULES,
  )
  kl_budget: float = setting(
    0.02, "KL of an update, nats, that a β rule aims at", above=0.0
  )
  staleness: int = setting(
    0, "updates that the sampling policy is behind", at_least=0
  )
  stale_correction: str = setting(
    "none",
    "weights of stale samples: none; truncated or masked importance ratios",
    choices=CORRECTIONS,
  )
  stale_ratio: float = setting(
    2.0, "largest ratio of π to the sampling policy, or 1/ratio", above=1.0
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

  @property
  def corrects_stale(self) -> bool:
    """Whether samples of an older policy are weighted."""
    return self.staleness > 0 and self.stale_correction != "none"

  def __post_init__(self):
    checks.check_settings(self)
    if self.staleness and not self.corrects_stale:
      # KLs are then from the policy that sampled, over several updates.
      for name, used in (
        ("max_kl", self.max_kl is not None),
        ("beta_rule", self.beta_rule == "feedback"),
      ):
        if used:
          raise ValueError(
            f"{name}: needs the KL of one update; with staleness choose a"
            " stale_correction"
          )
    multiples = self.nonpositive_beta_multiple != 1.0
    if self.beta_rule == "variance" and multiples:
      raise ValueError(
        "nonpositive_beta_multiple: beta_rule 'variance' chooses β for all"
        " samples"
      )
