"""Language models of large vocabularies: the functions that make a `Training`.

As in `language`, a stream is a prompt and its steps are G samples. What differs
is where things are: the host asks, scores and decodes, and nothing over the
vocabulary is kept, but the hidden states that make it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lco_jax import (
  algorithms,
  checks,
  diagnostics,
  networks,
  numerics,
  targets,
  types,
)
from lco_jax.algorithms import policy_losses
from lco_jax.language import between as between_lib
from lco_jax.language import (
  counting,
  data,
  lean_objectives,
  lean_signals,
  objectives,
  prompt_repeats,
  signals,
)
from lco_jax.language import metrics as language_metrics
from lco_jax.training import program, update

Array = jax.Array

# The part of the parameters that adapters adapt.
BASE = "base"


def make_training(
  model: networks.LanguageModel,
  algorithm: algorithms.Algorithm,
  policy_loss: policy_losses.PolicyLoss,
  optimizer: optax.GradientTransformation,
  *,
  num_prompts: int,
  num_samples: int,
  completion_length: int,
  num_epochs: int = 1,
  num_minibatches: int = 1,
  num_microbatches: int = 1,
  max_visits: int = 1,
  chunk_tokens: int | None = None,
  beta: float = 1.0,
  nonpositive_beta_multiple: float = 1.0,
  agreement_beta_multiple: float = 1.0,
  advantage: str | None = None,
  verifier_model: networks.LanguageModel | None = None,
  num_known: int = 5,
  between: between_lib.Between = between_lib.ALONE,
  dual_bound: float = 0.1,
  entropy_coefficient: float = 0.0,
  reference_coefficient: float = 0.0,
  max_kl: float | None = None,
  lora_rank: int = 0,
  lora_alpha: float = 16.0,
) -> program.Training:
  """Builds the training of a policy on rewards that the host gives.

  Args:
    model: the policy; the parameters that training begins with are given.
    algorithm: from `table.ALGORITHMS`.
    policy_loss: the algorithm's, with its options.
    optimizer: of the policy.
    num_prompts: N over all devices.
    num_samples: G.
    completion_length: tokens of a completion at most; batches may be shorter.
    num_epochs: passes over each batch.
    num_minibatches: minibatches of each pass, a divisor of G.
    num_microbatches: parts that the gradient of a minibatch is added up of, a
      divisor of the prompts of a device.
    max_visits: updates that a prompt is met in at most, see `visits`.
    chunk_tokens: tokens whose logits are held at a time; 0 for all, None for
      `lean_objectives.default_chunk`.
    beta: KL strength of the optimal target, positive and finite.
    nonpositive_beta_multiple: factor on β where the advantage is ≤ 0.
    agreement_beta_multiple: factor on β where policy and verifier are both all
      but sure of the sampled token; for advantages of verifiers.
    advantage: a key of `signals.FROM_REWARDS`, or one of
      `signals.OF_VERIFIERS`; None for the algorithm's own.
    verifier_model: of the parts "verifier" and "verifier_reference", for
      advantages of verifiers; None for the policy's.
    num_known: of a verifier's advantages, tokens that it is asked about.
    between: what prompts count beside each other; nothing where advantages
      are not of groups.
    dual_bound: ε of V-MPO's weights, > 0, nats, where they are taken.
    entropy_coefficient: weight of the entropy bonus, ≥ 0.
    reference_coefficient: weight of the KL to the policy at the start, ≥ 0.
    max_kl: KL of a minibatch at which the policy's epochs stop, > 0, nats; None
      for none.
    lora_rank: of the adapters that are trained in place of all parameters; 0
      for none. The part "policy" is them, the part BASE what they adapt.
    lora_alpha: α, positive; adapters count α / rank.

  Raises:
    ValueError: if a number or a name is out of range.
  """
  known = (*signals.FROM_REWARDS, *signals.OF_VERIFIERS)
  chosen = "" if advantage else ", which the algorithm takes by default,"
  advantage = advantage or algorithm.advantage
  if advantage not in known:
    raise ValueError(
      f"advantage: {advantage!r}{chosen} is not among {', '.join(known)}"
    )
  between.check()
  prompt_repeats.check(max_visits)
  counting.check_groups(algorithm, advantage, num_samples)
  for name, number in (
    ("beta", beta),
    ("nonpositive_beta_multiple", nonpositive_beta_multiple),
    ("agreement_beta_multiple", agreement_beta_multiple),
    ("dual_bound", dual_bound),
    ("lora_alpha", lora_alpha),
  ):
    checks.check_number(name, number, above=0.0)
  if num_known < 1:
    raise ValueError(f"num_known must be ≥ 1, got {num_known}")
  if lora_rank < 0:
    raise ValueError(f"lora_rank must be ≥ 0, got {lora_rank}")
  chunk_tokens = lean_objectives.chunk_of(chunk_tokens, model.vocab_size)
  if num_microbatches < 1 or num_prompts % num_microbatches:
    raise ValueError(
      f"num_microbatches {num_microbatches} does not divide num_prompts"
      f" {num_prompts}"
    )
  on_policy = num_epochs * num_minibatches == 1
  whole_policy = policy_of(lora_rank, lora_alpha)

  def whole(params):
    """Parts as they are read: each the parameters of a model."""
    policy = {"policy": whole_policy(params)}
    if lora_rank and reference_coefficient:
      return params | policy | {"reference": params[BASE]}
    return params | policy

  def prepare(params, samples, completed):
    params = whole(params)
    signal = lean_signals.estimate(
      advantage,
      model,
      verifier_model or model,
      params,
      samples,
      num_known,
      chunk_tokens,
      between.weight(completed) if between.coefficient else None,
    )
    counted = counting.of_batch(
      algorithm, samples, signal.advantage, dual_bound
    )
    reference_log_prob = jnp.zeros_like(samples.log_prob)
    if reference_coefficient:
      reference_log_prob = lean_objectives.of_completions(
        model, params["reference"], samples, chunk_tokens
      ).log_prob
    weight, share = objectives.token_weights(
      counted.mask, algorithm.weighting, completion_length
    )
    own_beta = targets.sign_dependent_beta(
      signal.advantage, beta, nonpositive_beta_multiple
    )[..., 0]
    batch = data.LeanBatch(
      prompt=samples.prompt,
      padding=samples.padding,
      action=samples.action,
      mask=counted.mask,
      sampled=samples.mask,
      weight=weight,
      share=share,
      advantage=counted.advantage,
      old_log_prob=samples.log_prob,
      reference_log_prob=reference_log_prob,
      old_hidden=samples.hidden,
      beta=jnp.where(
        signal.agreed, own_beta * agreement_beta_multiple, own_beta
      ),
      known=signal.known,
      known_advantage=signal.known_advantage,
      rest_advantage=signal.rest_advantage,
    )
    metrics = language_metrics.of_samples(samples, counted.even)
    metrics |= numerics.across_devices(
      {
        "counted_tokens": numerics.average(
          counted.mask.astype(jnp.float32), samples.mask
        ),
        "scoring_failed": numerics.average(samples.failed.astype(jnp.float32)),
      }
    )
    metrics |= prompt_repeats.metrics_of(samples)
    return batch, metrics

  def assess(before, params, batch):
    before, params = whole(before), whole(params)
    some = language_metrics.looked_at(batch)
    now = lean_objectives.of_completions(
      model,
      params["policy"],
      some,
      chunk_tokens,
      behaviour=networks.head_of(before["policy"]),
    )
    metrics = diagnostics.ratio_quantiles(
      now.log_prob - some.old_log_prob, some.sampled, numerics.DEVICE_AXIS
    )
    return metrics | numerics.across_devices(
      {"kl_old_new": numerics.average(now.kl, some.sampled)}
    )

  objective = lean_objectives.make_objective(
    model,
    policy_loss,
    num_samples=num_samples // num_minibatches,
    chunk_tokens=chunk_tokens,
    on_policy=on_policy,
    of_sequences=algorithm.of_sequences,
    entropy_coefficient=entropy_coefficient,
    reference_coefficient=reference_coefficient,
    measures_kl=max_kl is not None,
  )

  def init_params(key, given):
    given = dict(given)
    if lora_rank:
      own = networks.init_adapters(key, given["policy"], lora_rank)
      return given | {BASE: given["policy"], "policy": own}
    parts = ["reference"] if reference_coefficient else []
    return given | dict.fromkeys(parts, given["policy"])

  return program.Training(
    init_params=init_params,
    init_actor=prompt_repeats.first,
    collect=None,
    prepare=prepare,
    update=update.make_update(
      lambda params, batch: objective(whole(params), batch),
      {"policy": optimizer},
      split=_by_prompts(num_samples // num_minibatches, num_microbatches),
    ),
    assess=assess,
    optimizers={"policy": optimizer},
    headline="correct",
    num_streams=num_prompts,
    num_steps=num_samples,
    num_epochs=num_epochs,
    num_minibatches=num_minibatches,
    follow=lambda drawn, samples, completed: prompt_repeats.following(
      drawn, samples.correct, completed, max_visits
    ),
    max_kl=max_kl,
    long_reductions=True,
    counts=prompt_repeats.COUNTS,
    hold=None if on_policy else lambda params: _behaviour(whole(params)),
  )


def policy_of(
  lora_rank: int, lora_alpha: float
) -> Callable[[Mapping[str, types.Params]], types.Params]:
  """Parts of the parameters → the policy's, as its model takes them.

  Args:
    lora_rank: as of `make_training`.
    lora_alpha: as there.
  """
  if not lora_rank:
    return lambda params: params["policy"]
  scale = lora_alpha / lora_rank
  return lambda params: networks.adapted(params[BASE], params["policy"], scale)


def _behaviour(params: Mapping[str, Any]) -> dict[str, Any]:
  """What the epochs need of the policy that sampled."""
  return {lean_objectives.BEHAVIOUR: networks.head_of(params["policy"])}


def _by_prompts(
  num_samples: int, num_parts: int
) -> Callable[[Any], Any] | None:
  """Divides batches [samples · prompts, ...]: [parts, samples · fewer, ...].

  All samples of a prompt stay together: they are read with it.
  """
  if num_parts == 1:
    return None

  def split(leaf):
    apart = leaf.reshape(num_samples, num_parts, -1, *leaf.shape[1:])
    return jnp.moveaxis(apart, 1, 0).reshape(num_parts, -1, *leaf.shape[1:])

  return lambda batch: jax.tree.map(split, batch)
