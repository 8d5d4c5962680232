"""The setup of a language training: its settings, models and sampler."""

import dataclasses
from collections.abc import Mapping

from lco_jax import algorithms, checks, networks, types
from lco_jax.algorithms import policy_losses
from lco_jax.checks import setting
from lco_jax.language import reading, samplers, signals
from lco_jax.training import memory
from lco_jax.training import options as options_lib

# The part of the parameters that adapters adapt.
BASE = "base"


@dataclasses.dataclass(frozen=True)
class BatchOptions:
  """Settings of the batches that are learned from."""

  num_prompts: int = setting(
    32, "prompts of an update, N, over all devices", at_least=1
  )
  num_samples: int = setting(8, "samples of a prompt, G", at_least=1)
  num_epochs: int = setting(1, "passes over each batch", at_least=1)
  num_minibatches: int = setting(
    1, "minibatches of a pass, a divisor of num_samples", at_least=1
  )
  chunk_tokens: int | None = setting(
    None,
    "tokens whose logits are held at a time; 0 for all, None chooses",
    at_least=0,
  )

  def __post_init__(self):
    checks.check_settings(self)


@dataclasses.dataclass(frozen=True)
class Options(options_lib.PolicyOptions, BatchOptions):
  """Settings of learning from rewards."""

  num_microbatches: int = setting(
    1,
    "gradient accumulation steps, a divisor of a device's prompts",
    at_least=1,
  )
  agreement_beta_multiple: float = setting(
    1.0,
    "factor on β where policy and verifier are sure of the token",
    above=0.0,
  )
  advantage: str | None = setting(
    None,
    "advantage signal; None for the algorithm's own",
    choices=signals.NAMES,
  )
  discount: float = setting(
    1.0, "γ of learned advantages, of a token", at_least=0.0, at_most=1.0
  )
  gae_lambda: float = setting(
    1.0, "λ of learned advantages", at_least=0.0, at_most=1.0
  )
  num_known: int = setting(
    5, "likeliest tokens that a verifier is asked about", at_least=1
  )
  reference_coefficient: float = setting(
    0.0, "weight of the KL to the policy at the start", at_least=0.0
  )
  reference_kl: str = setting(
    "k3",
    "how the KL to the policy at the start is measured",
    choices=("k1", "k2", "k3", "exact"),
  )
  reference_kl_in: str = setting(
    "loss",
    "whether that KL is a term of the loss, or subtracted from rewards",
    choices=("loss", "reward"),
  )
  loss_temperature: float = setting(
    1.0,
    "temperature of the logits that losses read; the sampling temperature"
    " makes them the losses of the policy that sampled",
    above=0.0,
  )
  reward_scale: float = setting(1.0, "factor on rewards", above=0.0)
  reward_offset: float = setting(
    0.0, "added to scaled rewards; scale 2 and offset −1 turn 0 and 1 into ±1"
  )
  value_clip: float | None = setting(
    None,
    "largest move of a token's value, in units of return; None for any",
    above=0.0,
  )
  mask_truncated: bool = setting(
    False, "whether completions that were cut off are left out of the loss"
  )
  length_penalty_tokens: int = setting(
    0,
    "tokens before the longest completion over which a penalty rises to 1",
    at_least=0,
  )
  lora_rank: int = setting(
    0,
    "rank of adapters trained in place of all parameters; 0 for none",
    at_least=0,
  )
  lora_alpha: float = setting(
    16.0, "α of adapters, which count α / rank", above=0.0
  )

  def __post_init__(self):
    super().__post_init__()
    if self.beta_rule == "variance" and self.agreement_beta_multiple != 1.0:
      raise ValueError(
        "agreement_beta_multiple: beta_rule 'variance' chooses β for all tokens"
      )
    if self.num_prompts % self.num_microbatches:
      raise ValueError(
        f"num_microbatches {self.num_microbatches} does not divide num_prompts"
        f" {self.num_prompts}"
      )


@dataclasses.dataclass(frozen=True)
class Setup:
  """All that the steps of a language training depend on.

  Attributes:
    model: the policy's.
    algorithm: a row of `algorithms.ALGORITHMS`.
    policy_loss: the algorithm's, with its options.
    sampler: source of prompts, samples and rewards.
    options: settings of learning.
    value_model: for learned advantages; begins with the policy's body.
    verifier_model: of the parts "verifier" and "verifier_reference"; None for
      the policy's.
    keeps_reference: whether the policy at the start is kept, as the part
      "reference", to log the KL from it where it costs nothing.

  Raises:
    ValueError: if settings do not go together.
  """

  model: networks.LanguageModel
  algorithm: algorithms.Algorithm
  policy_loss: policy_losses.PolicyLoss
  sampler: samplers.Sampler
  options: Options
  value_model: networks.LanguageModel | None = None
  verifier_model: networks.LanguageModel | None = None
  keeps_reference: bool = True

  def __post_init__(self):
    options, advantage = self.options, self.advantage
    by_default = "" if options.advantage else ", the algorithm's default,"
    if advantage == "learned" and self.value_model is None:
      others = (*signals.FROM_REWARDS, *signals.FROM_VERIFIERS)
      raise ValueError(
        f"advantage: {advantage!r}{by_default} needs a value network; without"
        f" one: {', '.join(others)}"
      )
    if advantage == "oracle" and not self.sampler.one_answer:
      raise ValueError(
        f"advantage: {advantage!r} needs a task with one right answer to each"
        " problem"
      )
    if options.beta_rule == "variance" and self.knows_sampled_only:
      raise ValueError(
        "beta_rule: 'variance' needs the advantages of all tokens; the signal"
        f" {advantage!r} knows the sampled token's alone"
      )
    self._check_rewards()
    if options.beta_rule != "fixed" and not self.algorithm.has_target:
      raise ValueError("beta_rule: the algorithm has no optimal target")
    if options.value_clip is not None and not self.uses_value:
      raise ValueError(
        f"value_clip: the signal {advantage!r} has no value network"
      )
    in_loss = options.reference_kl_in == "loss"
    if (
      options.reference_coefficient
      and in_loss
      and (options.reference_kl == "k1")
    ):
      raise ValueError(
        "reference_kl: 'k1' has no gradient on average as a term of the loss;"
        " set reference_kl_in to reward, or take k2, k3 or exact"
      )
    grouped = advantage in signals.IN_GROUPS or self.algorithm.drops_even_groups
    if options.num_samples < 2 and grouped:
      raise ValueError(
        f"num_samples must be ≥ 2 for {advantage} advantages in groups, got"
        f" {options.num_samples}"
      )
    if options.diagnostics and self.algorithm.of_sequences:
      raise ValueError(
        "diagnostics: the algorithm's loss is of sequences, not of tokens"
      )

  def _check_rewards(self) -> None:
    """Refuses changes of rewards that nothing would read."""
    options = self.options
    longest = self.sampler.completion_length
    if options.length_penalty_tokens > longest:
      raise ValueError(
        f"length_penalty_tokens {options.length_penalty_tokens} is more than a"
        f" completion's {longest} tokens"
      )
    changes = {
      "reward_scale": options.reward_scale != 1.0,
      "reward_offset": options.reward_offset != 0.0,
      "length_penalty_tokens": options.length_penalty_tokens > 0,
      "reference_kl_in": bool(options.reference_coefficient)
      and options.reference_kl_in == "reward",
    }
    for name, changed in changes.items():
      if changed and not self.knows_sampled_only:
        raise ValueError(
          f"{name}: the signal {self.advantage!r} does not read rewards"
        )

  @property
  def advantage(self) -> str:
    """Name of the advantage signal."""
    return self.options.advantage or self.algorithm.advantage

  @property
  def chunk_tokens(self) -> int:
    """Tokens whose logits are held at a time; 0 for all."""
    return reading.resolve_chunk(
      self.options.chunk_tokens, self.model.vocab_size
    )

  @property
  def on_policy(self) -> bool:
    """Whether each batch gets one step, of the policy that sampled it.

    The policy's own logits are then the behaviour policy's.
    """
    options = self.options
    steps = options.num_epochs * options.num_minibatches
    return steps == 1 and not options.staleness

  @property
  def knows_sampled_only(self) -> bool:
    """Whether the signal knows no advantage but the sampled token's."""
    return self.advantage in (*signals.FROM_REWARDS, "learned")

  @property
  def reads_reference_logits(self) -> bool:
    """Whether the objective reads the reference's logits of all tokens."""
    options = self.options
    return bool(options.reference_coefficient) and (
      (options.reference_kl, options.reference_kl_in) == ("exact", "loss")
    )

  @property
  def uses_value(self) -> bool:
    """Whether a value network is trained."""
    return self.advantage == "learned"

  def policy_params(self, params: Mapping[str, types.Params]) -> types.Params:
    """The policy's parameters as its model takes them."""
    if not self.options.lora_rank:
      return params["policy"]
    scale = self.options.lora_alpha / self.options.lora_rank
    return networks.adapt(params[BASE], params["policy"], scale)

  def anchor_params(self, params: Mapping[str, types.Params]) -> types.Params:
    """Parameters of the policy that targets and ratios begin from.

    Args:
      params: by part, at the beginning of the update.
    """
    if not self.options.corrects_stale:
      params = memory.acting(params)
    return self.policy_params(params)

  def reference_params(
    self, params: Mapping[str, types.Params]
  ) -> types.Params:
    """The parameters of the policy at the start."""
    return params[BASE if self.options.lora_rank else "reference"]

  def model_params(
    self, params: Mapping[str, types.Params]
  ) -> dict[str, types.Params]:
    """Parts of the parameters, each as a model takes them."""
    parts = dict(params) | {"policy": self.policy_params(params)}
    if self.options.lora_rank:
      parts["reference"] = self.reference_params(params)
    return parts
