"""Language training: learning from the rewards of what a policy samples.

A stream is a prompt: N of them in an update. The steps of a stream are its G
samples, so a minibatch holds G/M samples of every prompt, and a group's
advantages are known before it is divided. Axes: samples G, prompts N, tokens C.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lco_jax import (
  algorithms,
  diagnostics,
  losses,
  networks,
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
from lco_jax.language.setup import BASE, Options, Setup
from lco_jax.training import loss_geometry, memory, program, update

__all__ = ["Options", "Setup", "make_training"]


def make_training(
  setup: Setup, optimizers: Mapping[str, optax.GradientTransformation]
) -> program.Training:
  """Builds the training of a policy on the rewards of its samples.

  Args:
    setup: all that its steps depend on.
    optimizers: of the part "policy", and of "value" for learned advantages.
  """
  options = setup.options
  num_samples = options.num_samples // options.num_minibatches
  watch = {}
  if not options.lora_rank:
    watch["attention_gradient_norm"] = lambda gradients: (
      networks.select_attention(gradients["policy"])
    )
  return program.Training(
    init_params=functools.partial(init_params, setup),
    init_actor=setup.sampler.init_actor,
    collect=_collect_stale(setup),
    prepare=functools.partial(prepare, setup),
    update=update.make_update(
      objectives.make_objective(setup, num_samples),
      dict(optimizers),
      watch,
      split=_split_prompts(num_samples, options.num_microbatches),
    ),
    assess=functools.partial(assess, setup),
    optimizers=dict(optimizers),
    headline="correct",
    num_streams=options.num_prompts,
    num_steps=options.num_samples,
    num_epochs=options.num_epochs,
    num_minibatches=options.num_minibatches,
    follow=setup.sampler.follow,
    remember=lambda before, after, rollout, metrics: memory.remember(
      options, before, after, metrics
    ),
    max_kl=options.max_kl,
    counts=prompt_repeats.COUNTS,
    long_reductions=True,
  )


def init_params(
  setup: Setup,
  key: types.PRNGKey,
  given: Mapping[str, types.Params] | tuple = (),
) -> dict[str, types.Params]:
  """Parameters by part before the first update.

  Args:
    setup: of the training.
    key: PRNG key.
    given: parts to begin with. Without a "policy" it is initialised; parts of
      other policies that are missing begin as copies of it.
  """
  given, options = dict(given), setup.options
  policy_key, value_key = jax.random.split(key)
  own = given["policy"] if "policy" in given else setup.model.init(policy_key)
  parts = {"policy": own}
  if setup.uses_value:
    value = setup.value_model.init(value_key)
    parts["value"] = networks.copy_body(value, own)
  if setup.advantage in signals.FROM_VERIFIERS:
    parts["verifier"] = own
  if setup.advantage == "preference":
    parts["verifier_reference"] = own
  if options.lora_rank:
    adapters = networks.init_adapters(key, own, options.lora_rank)
    parts = parts | given | {BASE: own, "policy": adapters}
    return memory.begin(options, parts)
  if setup.keeps_reference or options.reference_coefficient:
    parts["reference"] = own
  return memory.begin(options, parts | given)


def _collect_stale(setup: Setup) -> Callable | None:
  """The sampler's `collect` by the policy that samples."""
  collect = setup.sampler.collect
  if not setup.options.staleness or collect is None:
    return collect
  return lambda params, actor, keys: collect(memory.acting(params), actor, keys)


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
      signal.value, signal.value_target, numerics.DEVICE_AXIS, samples.mask
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


def assess(
  setup: Setup,
  before: Mapping[str, types.Params],
  params: Mapping[str, types.Params],
  batch: data.TokenBatch,
) -> types.Metrics:
  """Measures how far the epochs moved the policy, on a quarter of the batch.

  Args:
    setup: of the training.
    before: parameters by part, before the epochs.
    params: the same after them.
    batch: [G, N], this device's share.

  Returns:
    Metrics over all devices.
  """
  model, some = setup.model, sample_metrics.take_quarter(batch)
  policy = setup.policy_params(params)
  old_head = networks.select_head(setup.anchor_params(before))
  hidden = reading.read_hidden(model, policy, some)

  def measure(rows):
    hidden, tokens = rows
    logits = model.head(policy, hidden) / setup.options.loss_temperature
    dense = objectives.dense_tokens(
      tokens, model.head(old_head, tokens.old_hidden), setup
    )
    return (
      numerics.action_log_prob(logits, tokens.action) - dense.old_log_prob,
      losses.kl_divergence(dense.old_logits, logits),
      diagnostics.target_residual(dense.target_logits, logits),
    )

  tokens = dataclasses.replace(some, prompt=None, padding=None, share=None)
  log_ratio, kl, residual = reading.map_tokens(
    measure, (hidden, tokens), setup.chunk_tokens
  )
  metrics = diagnostics.ratio_quantiles(
    log_ratio, some.sampled, numerics.DEVICE_AXIS
  )
  metrics |= numerics.across_devices(
    {
      "kl_old_new": numerics.average(kl, some.sampled),
      "target_residual_after": numerics.average(residual, some.sampled),
    }
  )
  if setup.options.diagnostics:
    dense = objectives.dense_tokens(
      tokens, model.head(old_head, tokens.old_hidden), setup
    )
    metrics |= loss_geometry.measure_loss(
      setup.policy_loss,
      model.head(policy, hidden) / setup.options.loss_temperature,
      dense,
      some.mask,
    )
    # Parts of the batch may hold some samples of some prompts: each is read
    # with its own.
    metrics |= loss_geometry.measure_gradients(
      objectives.make_objective(setup, num_samples=1, on_policy=False),
      before,
      params,
      some,
    )
  return metrics


def _split_prompts(
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
