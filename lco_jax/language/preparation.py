"""From samples to the batch that the objective reads.

    samples → reference, shaped rewards → signal → β → counted tokens → batch

All is computed once an update, before the epochs, without a gradient. Axes:
samples G, prompts N, tokens C.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from lco_jax import (
  algorithms,
  diagnostics,
  losses,
  numerics,
  targets,
  types,
)
from lco_jax.language import (
  data,
  objectives,
  prompt_repeats,
  reading,
  reward_shaping,
  sample_metrics,
  signals,
)
from lco_jax.language.setup import Options, Setup
from lco_jax.training import memory


class Counted(NamedTuple):
  """The tokens that enter an algorithm's loss.

  Attributes:
    mask: bool[G, N, C].
    advantage: float32[G, N, C], or weights in their place; 0 outside the mask.
    even: bool[G, N], samples of groups whose rewards are all equal.
  """

  mask: Array
  advantage: Array
  even: Array


def count_tokens(
  algorithm: algorithms.Algorithm,
  samples: data.Samples,
  advantage: Array,
  beta: Array,
  options: Options,
) -> Counted:
  """Selects the tokens that enter an algorithm's loss, and their weights.

  Args:
    algorithm: a row of `algorithms.ALGORITHMS`.
    samples: [G, N], this device's share.
    advantage: float32[G, N, C].
    beta: float32[G, N, C], KL strength of the targets.
    options: of the training; `dual_bound`, and whether completions that were
      cut off are left out.
  """
  reward = samples.reward
  even = jnp.ptp(reward, axis=0, keepdims=True) == 0
  even = jnp.broadcast_to(even, reward.shape)
  mask = samples.mask
  if algorithm.drops_even_groups:
    mask = mask & ~even[..., None]
  if options.mask_truncated:
    mask = mask & ~samples.truncated[..., None]
  advantage = algorithms.weigh_steps(
    algorithm, jnp.where(mask, advantage, 0.0), beta, options.dual_bound, mask
  )
  return Counted(mask, advantage, even)


def make_batch(
  samples: data.Samples,
  signal: signals.Signal,
  counted: Counted,
  algorithm: algorithms.Algorithm,
  longest: int,
  beta: Array,
  reference_log_prob: Array,
) -> data.TokenBatch:
  """Puts together what an objective needs of completions.

  Args:
    samples: [G, N].
    signal: their advantages.
    counted: the tokens that enter the loss.
    algorithm: a row of `algorithms.ALGORITHMS`.
    longest: tokens of a completion at most.
    beta: float[G, N, C], KL strength of the targets.
    reference_log_prob: float[G, N, C], of the reference policy.
  """
  weight, share = objectives.token_weights(
    counted.mask, algorithm.weighting, longest
  )
  return data.TokenBatch(
    prompt=samples.prompt,
    padding=samples.padding,
    action=samples.action,
    mask=counted.mask,
    sampled=samples.mask,
    weight=weight,
    share=share,
    advantage=counted.advantage,
    old_hidden=samples.hidden,
    old_log_prob=samples.log_prob,
    reference_log_prob=reference_log_prob,
    beta=beta,
    known=signal.known,
    known_advantage=signal.known_advantage,
    rest_advantage=signal.rest_advantage,
    value_target=signal.value_target,
    old_value=signal.value,
    packed_tokens=samples.packed_tokens,
  )


def prepare(
  setup: Setup,
  params: Mapping[str, types.Params],
  samples: data.Samples,
) -> tuple[data.TokenBatch, types.Metrics]:
  """Makes the batch that the objective reads from samples.

  Args:
    setup: of the training.
    params: by part, at the beginning of the update.
    samples: [G, N], this device's share.

  Returns:
    (TokenBatch [G, N], metrics over all devices).
  """
  options, algorithm = setup.options, setup.algorithm
  learner, params = params, setup.model_params(memory.acting(params))
  reference = _read_reference(setup, params, samples)
  shaped = _shape_rewards(setup, samples, reference)
  signal = signals.make_signal(
    setup.advantage,
    setup.model,
    value_model=setup.value_model,
    verifier_model=setup.verifier_model,
    discount=options.discount,
    gae_lambda=options.gae_lambda,
    num_known=options.num_known,
    chunk_tokens=setup.chunk_tokens,
  )(params, shaped)
  base_beta, beta = _choose_beta(setup, learner, params, samples, signal)
  counted = count_tokens(algorithm, samples, signal.advantage, beta, options)
  batch = make_batch(
    samples,
    signal,
    counted,
    algorithm,
    setup.sampler.completion_length,
    beta,
    reference.log_prob,
  )
  metrics = dict(reference.metrics)
  if setup.reads_reference_logits:
    batch = dataclasses.replace(batch, reference_hidden=reference.hidden)
  if options.beta_rule != "fixed":
    metrics["beta"] = base_beta
  if options.corrects_stale:
    batch = _correct_stale(setup, learner, samples, batch)
  metrics |= sample_metrics.summarize_samples(
    samples, counted.mask, counted.even
  )
  if samples.first_visit is not None:
    metrics |= prompt_repeats.summarize_first_visits(samples)
  if setup.uses_value:
    metrics["explained_variance"] = diagnostics.explained_variance(
      signal.value, signal.value_target, numerics.DATA_AXIS, samples.mask
    )
  if setup.sampler.one_answer:
    truth = signal
    if setup.advantage != "oracle":
      truth = signals.exact_signal(
        setup.model, params["policy"], samples, setup.chunk_tokens
      )
    metrics |= signals.compare_signals(signal, truth, samples)
  return batch, metrics


def _choose_beta(
  setup: Setup,
  learner: Mapping[str, types.Params],
  params: Mapping[str, types.Params],
  samples: data.Samples,
  signal: signals.Signal,
) -> tuple[Array | float, Array]:
  """β by the rule of the options, and β of each token.

  Args:
    setup: of the training.
    learner: parameters by part, at the beginning of the update.
    params: as models take them, of the policy that sampled.
    samples: [G, N].
    signal: of them.

  Returns:
    (β, float32[G, N, C]).
  """
  options = setup.options
  if options.beta_rule == "variance":
    variance = signals.measure_variance(
      setup.model,
      params["policy"],
      samples,
      signal,
      options.loss_temperature,
      setup.chunk_tokens,
    )
    base = targets.beta_of_variance(variance, options.kl_budget)
  else:
    base = memory.beta(options, learner)
  beta = targets.sign_dependent_beta(
    signal.advantage, base, options.nonpositive_beta_multiple
  )[..., 0]
  if signal.agreed is not None:
    agreement = options.agreement_beta_multiple
    beta = jnp.where(signal.agreed, beta * agreement, beta)
  return base, beta


def _correct_stale(
  setup: Setup,
  params: Mapping[str, types.Params],
  samples: data.Samples,
  batch: data.TokenBatch,
) -> data.TokenBatch:
  """Lets targets and ratios begin from the learner, and weighs the tokens.

  The weights turn tokens of the policy that sampled into the learner's own, so
  that no ratio is counted twice.

  Args:
    setup: of the training.
    params: by part, at the beginning of the update.
    samples: [G, N], of an older policy.
    batch: made of them.
  """
  options, model = setup.options, setup.model
  learner = setup.policy_params(params)
  sampler = setup.policy_params(memory.acting(params))
  hidden = reading.read_hidden(model, learner, samples)

  def read(rows):
    hidden, sampled_hidden, action = rows
    logits, sampled_logits = (
      model.head(learner, hidden),
      model.head(sampler, sampled_hidden),
    )
    tempered, sampled = (
      numerics.action_log_prob(x / options.loss_temperature, action)
      for x in (logits, sampled_logits)
    )
    return numerics.action_log_prob(logits, action), tempered - sampled

  log_prob, log_ratio = reading.map_tokens(
    read, (hidden, samples.hidden, samples.action), setup.chunk_tokens
  )
  mask = samples.mask
  return dataclasses.replace(
    batch,
    old_hidden=hidden,
    old_log_prob=jnp.where(mask, log_prob, 0.0),
    stale_weight=losses.stale_weight(
      jnp.where(mask, log_ratio, 0.0),
      options.stale_correction,
      options.stale_ratio,
    ),
  )


class _Reference(NamedTuple):
  """Completions as the reference policy reads them; None if nothing asks.

  Attributes:
    log_prob: float[G, N, C], log π of the tokens by it; 0 if nothing asks.
    hidden: float[G, N, C, W], its final hidden states.
    kl: float[G, N, C], KL(π ‖ reference), exact.
    metrics: KL of a quarter of the completions.
  """

  log_prob: Array
  hidden: Array | None
  kl: Array | None
  metrics: types.Metrics


def _read_reference(
  setup: Setup, params: Mapping[str, types.Params], samples: data.Samples
) -> _Reference:
  """Reads completions with the reference policy, if there is one."""
  model, asks = setup.model, bool(setup.options.reference_coefficient)
  blank = jnp.zeros_like(samples.log_prob)
  if not (setup.keeps_reference or asks):
    return _Reference(blank, None, None, {})

  def exact_kl(hidden, reference_hidden):
    return reading.map_tokens(
      lambda rows: losses.kl_divergence(
        model.head(params["policy"], rows[0]),
        model.head(params["reference"], rows[1]),
      ),
      (hidden, reference_hidden),
      setup.chunk_tokens,
    )

  some = sample_metrics.take_quarter(samples)
  if not asks:
    hidden = reading.read_hidden(model, params["reference"], some)
    kl = exact_kl(some.hidden, hidden)
    return _Reference(blank, None, None, _average_kl(kl, some.mask))
  hidden = reading.read_hidden(model, params["reference"], samples)
  log_prob = reading.map_tokens(
    lambda rows: numerics.action_log_prob(
      model.head(params["reference"], rows[0]), rows[1]
    ),
    (hidden, samples.action),
    setup.chunk_tokens,
  )
  if setup.options.reference_kl == "exact":
    kl = exact_kl(samples.hidden, hidden)
    return _Reference(
      log_prob,
      hidden,
      kl,
      _average_kl(sample_metrics.take_quarter(kl), some.mask),
    )
  kl = exact_kl(some.hidden, sample_metrics.take_quarter(hidden))
  return _Reference(log_prob, None, None, _average_kl(kl, some.mask))


def _average_kl(kl: Array, mask: Array) -> types.Metrics:
  return numerics.across_devices({"kl_reference": numerics.average(kl, mask)})


def _shape_rewards(
  setup: Setup, samples: data.Samples, reference: _Reference
) -> data.Samples:
  """Samples with the rewards that are learned from."""
  options, kl = setup.options, None
  if options.reference_coefficient and options.reference_kl_in == "reward":
    kl = reward_shaping.estimate_kl(
      options, samples.log_prob, reference.log_prob, reference.kl
    )
  return reward_shaping.shape_rewards(
    options, samples, setup.sampler.completion_length, kl
  )
