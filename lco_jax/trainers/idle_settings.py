"""Settings that have no effect beside a run's other settings."""

from collections.abc import Collection, Mapping

from lco_jax import algorithms
from lco_jax.language import signals

_RATES = "policy_learning_rates"
_WARM_START = ("warm_start_prompts", "warm_start_learning_rate")
# Of a value network in language; control always has one.
_OF_VALUES = (
  "discount",
  "gae_lambda",
  "value_clip",
  "value_learning_rate",
  "value_max_gradient_norm",
)


def find_idle(settings: Mapping, names: Collection[str] = ()) -> list[str]:
  """Finds settings without effect; a line for each says why.

  Args:
    settings: of a run.
    names: settings to look at; all, if there are none.
  """
  row = algorithms.ALGORITHMS.get(settings.get("algorithm"))
  found = {}
  if settings.get(_RATES):
    found["policy_learning_rate"] = f"{_RATES} are given"
  if "warm_start_updates" in settings:
    found |= _find_idle_warm_start(settings)
  if settings.get("algorithm") == "sft":
    found["num_updates"] = "sft trains for warm_start_updates"
  if row is not None:
    # Of two reasons the first is said.
    found = _find_idle_betas(settings, row) | found
    found = _find_idle_signals(settings, row) | found
    found |= _find_idle_clips(settings) | _find_idle_options(settings)
  wanted = names or settings
  return [
    f"{name}: {reason}"
    for name, reason in found.items()
    if name in wanted and name in settings
  ]


def _find_idle_warm_start(settings: Mapping) -> dict[str, str]:
  if settings["algorithm"] == "sft":
    return {}
  if settings.get("init_from") is not None:
    names = ("warm_start_updates", *_WARM_START)
    return dict.fromkeys(names, "the policy of init_from is the start")
  if not settings["warm_start_updates"]:
    return dict.fromkeys(_WARM_START, "warm_start_updates is 0")
  return {}


def _find_idle_clips(settings: Mapping) -> dict[str, str]:
  one_step = settings["num_epochs"] * settings["num_minibatches"] == 1
  if not one_step or settings["staleness"]:
    return {}
  takes = algorithms.list_options(settings["algorithm"])
  clips = [n for n in ("clip_low", "clip_high", "dual_clip") if n in takes]
  clips += ["clip"] * (settings["clip"] is not None)
  found = dict.fromkeys(clips, "no ratio leaves 1 in one on-policy step")
  if settings["anchor"] == "current":
    found["anchor"] = "old and current are one in one on-policy step"
  return found


def _find_idle_betas(
  settings: Mapping, row: algorithms.Algorithm
) -> dict[str, str]:
  found = {}
  if settings["beta_rule"] == "variance":
    found["beta"] = "beta_rule 'variance' chooses it"
  if settings["beta_rule"] == "fixed":
    found["kl_budget"] = "beta_rule is fixed"
  if not row.has_target:
    multiples = ("nonpositive_beta_multiple", "agreement_beta_multiple")
    names = ["beta", *(n for n in multiples if settings.get(n, 1) != 1)]
    found |= dict.fromkeys(
      names, f"{settings['algorithm']} has no optimal target"
    )
  if row.weights != "vmpo":
    found["dual_bound"] = f"{settings['algorithm']} takes no weights of V-MPO"
  if settings["stale_correction"] == "none":
    found["stale_ratio"] = "stale_correction is none"
  if not settings["staleness"]:
    found["stale_correction"] = found["stale_ratio"] = "staleness is 0"
  return found


def _find_idle_signals(
  settings: Mapping, row: algorithms.Algorithm
) -> dict[str, str]:
  """Settings of advantage signals, which language runs choose."""
  if "advantage" not in settings:
    return {}
  advantage, found = settings["advantage"] or row.advantage, {}
  if advantage not in signals.FROM_VERIFIERS:
    names = ["num_known"]
    if settings.get("agreement_beta_multiple", 1) != 1:
      names.append("agreement_beta_multiple")
    found |= dict.fromkeys(names, f"{advantage} advantages ask no verifier")
  if advantage != "learned":
    found |= dict.fromkeys(_OF_VALUES, f"{advantage} advantages need no values")
  return found


def _find_idle_options(settings: Mapping) -> dict[str, str]:
  """Settings beside another that switches them off."""
  found = {}
  if settings.get("reference_coefficient") == 0:
    names = ("reference_kl", "reference_kl_in")
    found |= dict.fromkeys(names, "reference_coefficient is 0")
  if settings.get("lora_rank") == 0:
    found["lora_alpha"] = "lora_rank is 0, all parameters are trained"
  return found
