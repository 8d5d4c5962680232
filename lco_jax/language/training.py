"""Language training: learning from the rewards of what a policy samples.

A stream is a prompt: N of them in an update. The steps of a stream are its G
samples, so a minibatch holds G/M samples of every prompt, and a group's
advantages are known before it is divided. Axes: samples G, prompts N, tokens C.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import optax

from lco_jax import (
  diagnostics,
  losses,
  networks,
  numerics,
  types,
)
from lco_jax.language import (
  data,
  generation,
  objectives,
  preparation,
  prompt_repeats,
  reading,
  sample_metrics,
  signals,
)
from lco_jax.language.setup import BASE, Options, Setup
from lco_jax.training import loss_geometry, memory, program, rows, update

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
    collect=_make_collect(setup),
    prepare=functools.partial(preparation.prepare, setup),
    update=update.make_update(
      objectives.make_objective(setup, num_samples, packs=True),
      dict(optimizers),
      watch,
      split=None
      if options.num_microbatches == 1
      else functools.partial(
        rows.split_streams, steps=num_samples, parts=options.num_microbatches
      ),
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
    count_packed=functools.partial(
      generation.count_packed,
      num_minibatches=options.num_minibatches,
      num_microbatches=options.num_microbatches,
    )
    if objectives.can_pack(setup)
    else None,
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


def _make_collect(setup: Setup) -> Callable | None:
  """The sampler's `collect` by the policy that samples."""
  collect = setup.sampler.collect
  if not setup.options.staleness or collect is None:
    return collect
  return lambda params, actor, keys: collect(memory.acting(params), actor, keys)


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
    log_ratio, some.sampled, numerics.DATA_AXIS
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
