"""The objective of a language model, around an algorithm's policy loss.

Logits and targets are made of some tokens at a time, from final hidden states
and the output layer, and dropped when their loss and its gradient are known.
With one chunk for all tokens this is the usual objective of whole logits.

Axes: B completions (samples · prompts), tokens C, vocabulary V.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import (
  algorithms,
  checks,
  diagnostics,
  losses,
  networks,
  numerics,
  targets,
  types,
)
from lco_jax.language import data, generation
from lco_jax.language.setup import Setup
from lco_jax.training import chunking, rows, update


class DenseTokens(NamedTuple):
  """Tokens with all that a policy loss reads, over the whole vocabulary.

  Attributes:
    action: int32[..., C].
    mask: bool[..., C], tokens that enter the loss.
    advantage: float[..., C].
    old_logits: float[..., C, V], the behaviour policy's.
    old_log_prob: float[..., C], log π of the token by the behaviour policy.
    target_logits: float[..., C, V], optimal logits z*.
    beta: float[..., C], KL strength of the target.
    dense_advantage: float[..., C, V]; None where only the token's is known.
    reference_log_prob: float[..., C].
    reference_logits: float[..., C, V]; None unless the loss reads them.
    stale_weight: float[..., C], factor on the algorithm's loss; None for 1.
    legal: None: all tokens exist.
  """

  action: Array
  mask: Array
  advantage: Array
  old_logits: Array
  old_log_prob: Array
  target_logits: Array
  beta: Array
  dense_advantage: Array | None
  reference_log_prob: Array
  reference_logits: Array | None = None
  stale_weight: Array | None = None
  legal: None = None


def token_weights(
  mask: Array, weighting: str, longest: int | None = None
) -> tuple[Array, Array]:
  """Weights of tokens, and shares of sequences, in a mean loss.

  Args:
    mask: bool[..., C].
    weighting: one of `algorithms.WEIGHTINGS`.
    longest: most tokens that a sequence may have, where the mask is shorter;
      None for C.

  Returns:
    (weight float32[..., C], share float32[...]): the loss is Σ weight · loss
    over Σ share. A sequence without tokens has weight and share 0.

  Raises:
    ValueError: if the mask is known, not traced, and no token counts.
  """
  checks.check_choice("weighting", weighting, algorithms.WEIGHTINGS)
  if not isinstance(mask, jax.core.Tracer) and not mask.any():
    raise ValueError("mask: no token of the batch counts")
  counted = mask.astype(jnp.float32)
  length = jnp.sum(counted, axis=-1)
  present = (length > 0).astype(jnp.float32)
  if weighting == "token":
    return counted, length
  if weighting == "sequence":
    return counted / jnp.maximum(length, 1.0)[..., None], present
  return counted / (longest or mask.shape[-1]), present


def token_losses(
  logits: Array, tokens: DenseTokens, setup: Setup
) -> tuple[Array, types.Metrics]:
  """Losses of tokens.

  Args:
    logits: float[..., C, V], the policy's.
    tokens: [..., C]; nothing outside their mask influences anything.
    setup: of the training.

  Returns:
    (loss float[..., C], 0 outside the mask; metrics {name: float[..., C]}).
  """
  mask = tokens.mask

  def zero_masked(values):
    where = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    return jnp.where(where, values, jnp.zeros_like(values))

  # Before any arithmetic: 0 · NaN is NaN.
  logits = zero_masked(logits)
  tokens = jax.tree.map(zero_masked, tokens)
  # β divides.
  tokens = tokens._replace(beta=jnp.where(mask, tokens.beta, 1.0))
  options = setup.options
  loss, metrics = setup.policy_loss(logits / options.loss_temperature, tokens)
  if tokens.stale_weight is not None:
    loss *= tokens.stale_weight
  log_prob = numerics.action_log_prob(logits, tokens.action)
  if options.reference_coefficient and options.reference_kl_in == "loss":
    if tokens.reference_logits is not None:
      kl = losses.kl_divergence(logits, tokens.reference_logits)
    else:
      kl = losses.kl_penalty(
        log_prob, tokens.reference_log_prob, options.reference_kl
      )
    loss += options.reference_coefficient * kl
  if options.entropy_coefficient:
    loss -= options.entropy_coefficient * losses.entropy(logits)
  # Where PPO at its usual clip would not learn; algorithms with a clip of
  # their own report that one.
  outside = diagnostics.clipped(
    numerics.action_log_prob(logits / options.loss_temperature, tokens.action),
    tokens.old_log_prob,
    0.2,
    0.2,
  )
  metrics = {"clip_fraction": outside.astype(jnp.float32)} | metrics
  if options.max_kl is not None:
    metrics[update.KL] = losses.kl_divergence(
      tokens.old_logits, logits / options.loss_temperature
    )
  return zero_masked(loss), metrics


def dense_tokens(
  batch: data.TokenBatch, old_logits: Array, setup: Setup
) -> DenseTokens:
  """A batch's tokens with their targets over the whole vocabulary.

  Args:
    batch: [..., C].
    old_logits: float[..., C, V], the behaviour policy's, without temperature.
    setup: of the training.
  """
  old_log_prob, temperature = batch.old_log_prob, setup.options.loss_temperature
  if temperature != 1.0:
    old_logits = old_logits / temperature
    old_log_prob = numerics.action_log_prob(old_logits, batch.action)
  advantage = jnp.broadcast_to(
    batch.rest_advantage[..., None], old_logits.shape
  )
  for places, value in zip(
    _known_places(batch, old_logits.shape[-1]),
    jnp.moveaxis(batch.known_advantage, -1, 0),
    strict=True,
  ):
    advantage = jnp.where(places, value[..., None], advantage)
  # β divides, also where there is no token and rows of zeros were added.
  beta = jnp.where(batch.sampled, batch.beta, 1.0)
  return DenseTokens(
    action=batch.action,
    mask=batch.mask,
    advantage=batch.advantage,
    old_logits=old_logits,
    old_log_prob=old_log_prob,
    target_logits=targets.optimal_logits(
      old_logits, advantage, beta[..., None]
    ),
    beta=beta,
    dense_advantage=None if setup.knows_sampled_only else advantage,
    reference_log_prob=batch.reference_log_prob,
    stale_weight=batch.stale_weight,
  )


def make_objective(
  setup: Setup,
  num_samples: int,
  on_policy: bool | None = None,
  packs: bool = False,
) -> update.Objective:
  """Builds the objective of a language model.

  Args:
    setup: of the training.
    num_samples: completions of each prompt in a batch [samples · prompts].
    on_policy: whether the policy is the one that sampled, whose own logits are
      the old ones; None for `setup.on_policy`.
    packs: whether batches of `packed_tokens` are packed, as of `can_pack`.

  Returns:
    (params, TokenBatch [samples · prompts, ...], params before the epochs) →
    (losses of the parts "policy" and, with a value network, "value"; metrics).
  """
  model, chunk_tokens = setup.model, setup.chunk_tokens
  on_policy = setup.on_policy if on_policy is None else on_policy

  def chunk_sums(head, fixed_heads, hidden, batch):
    """Sums over some of the tokens: loss, (share, metrics)."""
    behaviour_head, reference_head = fixed_heads
    logits = model.head(head, hidden)
    if on_policy:
      old_logits = jax.lax.stop_gradient(logits)
    else:
      old_logits = model.head(behaviour_head, batch.old_hidden)
    tokens = dense_tokens(batch, old_logits, setup)
    if setup.reads_reference_logits:
      tokens = tokens._replace(
        reference_logits=model.head(reference_head, batch.reference_hidden)
      )
    loss, values = token_losses(logits, tokens, setup)
    metrics = {k: numerics.average(v, batch.mask) for k, v in values.items()}
    metrics |= _target_metrics(tokens, batch, setup.advantage == "oracle")
    return jnp.sum(batch.weight * loss), (jnp.sum(batch.share), metrics)

  def objective(params, batch, before):
    policy = setup.policy_params(params)
    packed = packs and batch.packed_tokens is not None
    if packed:
      hidden, batch = _read_packed(model, policy, batch, num_samples)
    else:
      hidden = _read_rows(model, policy, batch, num_samples)
    parts = {}
    if setup.uses_value:
      values = setup.value_model.head(
        params["value"],
        _read_rows(setup.value_model, params["value"], batch, num_samples),
      )[..., 0]
      parts["value"] = _value_loss(values, batch, setup.options.value_clip)
    batch = dataclasses.replace(
      batch, prompt=None, padding=None, value_target=None, old_value=None
    )
    size = len(hidden)
    if chunk_tokens:
      length = batch.action.shape[1]
      if not setup.algorithm.of_sequences and not packed:
        hidden, batch = _split_sequences(hidden, batch)
        length = 1
      size = rows.fit_chunks(len(hidden), max(1, chunk_tokens // length))
    total, (count, metrics) = chunking.chunked_sum(
      chunk_sums,
      networks.select_head(policy),
      (
        None
        if on_policy
        else networks.select_head(setup.anchor_params(before)),
        networks.select_head(setup.reference_params(params))
        if setup.reads_reference_logits
        else None,
      ),
      hidden,
      batch,
      size,
      hidden.dtype,
    )
    return {"policy": numerics.Average(total, count)} | parts, metrics

  return objective


def _value_loss(
  values: Array, batch: data.TokenBatch, clip: float | None
) -> numerics.Average:
  """Loss of the value network; nothing under the mask counts."""
  values = jnp.where(batch.mask, values, 0.0)
  value_targets = jnp.where(batch.mask, batch.value_target, 0.0)
  if clip is None:
    loss = losses.squared_value_loss(values, value_targets)
  else:
    old_values = jnp.where(batch.mask, batch.old_value, 0.0)
    loss = losses.clipped_value_loss(values, old_values, value_targets, clip)
  return numerics.average(loss, batch.mask)


def _read_rows(
  model: networks.LanguageModel,
  params: types.Params,
  batch: data.TokenBatch,
  num_samples: int,
) -> Array:
  """Final hidden states of rows, samples of the same prompts: [B, C, W]."""
  return generation.completion_hidden(
    model,
    params,
    *rows.take_first((batch.prompt, batch.padding), num_samples),
    batch.action,
  )


def can_pack(setup: Setup) -> bool:
  """Whether the objective can read packed tokens, each by itself."""
  return not setup.algorithm.of_sequences and not setup.uses_value


def _read_packed(
  model: networks.LanguageModel,
  params: types.Params,
  batch: data.TokenBatch,
  num_samples: int,
) -> tuple[Array, data.TokenBatch]:
  """Reads rows as `_read_rows`, without the slots behind completions' ends.

  Returns:
    (final hidden states [T, 1, W], batch [T, 1] of the same tokens). The first
    token of a completion has its whole share.
  """
  hidden, take = generation.packed_hidden(
    model,
    params,
    *rows.take_first((batch.prompt, batch.padding), num_samples),
    batch.action,
    batch.sampled,
    batch.packed_tokens,
  )
  blank = dict.fromkeys(("prompt", "padding", "packed_tokens"))
  tokens: Any = jax.tree.map(
    lambda leaf: take(leaf)[:, None],
    dataclasses.replace(batch, share=_share_of_tokens(batch), **blank),
  )
  return hidden[:, None], dataclasses.replace(tokens, share=tokens.share[:, 0])


def _share_of_tokens(batch: data.TokenBatch) -> Array:
  """The share of a sequence at its first token, else 0: [B, C]."""
  first = jnp.arange(batch.action.shape[1]) == 0
  return jnp.where(first, batch.share[:, None], 0.0)


def _known_places(batch: data.TokenBatch, vocab_size: int) -> list[Array]:
  """The places of each of the K known tokens: bool[..., C, V], one by one."""
  return [
    jax.nn.one_hot(batch.known[..., k], vocab_size, dtype=bool)
    for k in range(batch.known.shape[-1])
  ]


def _target_metrics(
  tokens: DenseTokens, batch: data.TokenBatch, knows_all_tokens: bool
) -> dict[str, numerics.Average]:
  """The behaviour policy's entropy, and how far its targets are."""
  if knows_all_tokens:
    tail = jnp.zeros_like(batch.advantage)
  else:
    target = jax.nn.softmax(tokens.target_logits)
    for places in _known_places(batch, target.shape[-1]):
      target = jnp.where(places, 0.0, target)
    tail = jnp.sum(target, axis=-1)
  values = {
    "entropy": losses.entropy(tokens.old_logits),
    "target_tail_mass": tail,
    "target_residual_before": diagnostics.target_residual(
      tokens.target_logits, tokens.old_logits
    ),
  }
  return {
    name: numerics.average(jax.lax.stop_gradient(value), batch.sampled)
    for name, value in values.items()
  }


def _split_sequences(
  hidden: Array, batch: data.TokenBatch
) -> tuple[Array, data.TokenBatch]:
  """Makes every token a sequence of one; the first has the whole share."""
  share = _share_of_tokens(batch)

  def split(leaf):
    return leaf.reshape(-1, 1, *leaf.shape[2:])

  tokens: Any = jax.tree.map(split, dataclasses.replace(batch, share=None))
  return split(hidden), dataclasses.replace(tokens, share=share.reshape(-1))
