"""Objectives of language models that never hold [tokens, vocabulary].

The same losses as in `token_objectives`, of the same TokenBatch, but that is
made of some tokens at a time, from final hidden states and the output layer,
and dropped when their loss and its gradient are known.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lco_jax import (
  chunking,
  diagnostics,
  generation,
  losses,
  networks,
  numerics,
  objectives,
  targets,
  token_objectives,
  types,
)

Array = jax.Array

# The part of the parameters with the output layer that sampled.
BEHAVIOUR = "behaviour"
# Bytes of logits at a time, if it is not said how many tokens.
_CHUNK_BYTES = 2**25


def default_chunk(vocab_size: int) -> int:
  """Tokens at a time whose logits take about 32 MiB."""
  return max(1, _CHUNK_BYTES // (4 * vocab_size))


def make_objective(
  model: networks.LanguageModel,
  policy_loss: objectives.PolicyLoss,
  *,
  num_samples: int,
  chunk_tokens: int,
  on_policy: bool,
  of_sequences: bool = False,
  entropy_coefficient: float = 0.0,
  reference_coefficient: float = 0.0,
  measures_kl: bool = False,
) -> objectives.Objective:
  """Builds the objective of a large vocabulary.

  Args:
    model: the policy.
    policy_loss: the algorithm's.
    num_samples: completions of each prompt in a batch [samples · prompts].
    chunk_tokens: tokens whose logits are held at a time, at most; 0 for all.
    on_policy: whether the policy is still the one that sampled, as in the only
      step on a batch. Otherwise the part BEHAVIOUR must hold its output layer.
    of_sequences: whether a token's loss depends on others of its sequence; then
      no sequence is divided.
    entropy_coefficient: as of `token_objectives.make_token_objective`.
    reference_coefficient: as there.
    measures_kl: as there.

  Returns:
    (params, LeanBatch [samples · prompts, ...]) → (loss of the part "policy",
    metrics).
  """
  inner = token_objectives.make_token_objective(
    lambda logits, batch: logits,
    policy_loss,
    entropy_coefficient,
    reference_coefficient,
    measures_kl=measures_kl,
  )

  def summand(head, behaviour, hidden, batch):
    logits = model.head(head, hidden)
    old_logits = (
      jax.lax.stop_gradient(logits)
      if on_policy
      else model.head(behaviour, batch.old_hidden)
    )
    dense = token_batch(batch, old_logits)
    parts, metrics = inner({"policy": logits}, dense)
    metrics |= _of_target(dense, batch, logits)
    return parts["policy"].total, (parts["policy"].count, metrics)

  def objective(params, batch):
    num_prompts = len(batch.action) // num_samples
    hidden = generation.completion_hidden(
      model,
      params["policy"],
      batch.prompt[:num_prompts],
      batch.padding[:num_prompts],
      batch.action,
    )
    batch = dataclasses.replace(batch, prompt=None, padding=None)
    if not of_sequences:
      hidden, batch = _as_tokens(hidden, batch)
    length = batch.action.shape[1]
    size = max(1, chunk_tokens // length) if chunk_tokens else len(hidden)
    hidden, batch, size = _divisible(hidden, batch, size)
    total, (count, metrics) = chunking.chunked_sum(
      summand,
      networks.head_of(params["policy"]),
      params.get(BEHAVIOUR),
      hidden,
      batch,
      size,
    )
    return {"policy": numerics.Average(total, count)}, metrics

  return objective


def token_batch(batch: types.LeanBatch, old_logits: Array) -> types.TokenBatch:
  """What a LeanBatch stands for.

  Args:
    batch: [...].
    old_logits: float[..., C, V], the behaviour policy's.
  """
  advantage = jnp.broadcast_to(
    batch.rest_advantage[..., None], old_logits.shape
  )
  for places, value in zip(
    _known_places(batch, old_logits.shape[-1]),
    jnp.moveaxis(batch.known_advantage, -1, 0),
    strict=True,
  ):
    advantage = jnp.where(places, value[..., None], advantage)
  same = {
    field.name: getattr(batch, field.name, None)
    for field in dataclasses.fields(types.TokenBatch)
  }
  return types.TokenBatch(
    **same
    | {
      "old_logits": old_logits,
      "target_logits": targets.optimal_logits(
        old_logits, advantage, batch.beta[..., None]
      ),
      "value_target": jnp.zeros_like(batch.advantage),
    }
  )


def _known_places(batch: types.LeanBatch, vocab_size: int) -> list[Array]:
  """Where each of the K known tokens is: bool[..., C, V], one by one."""
  return [
    jax.nn.one_hot(batch.known[..., k], vocab_size, dtype=bool)
    for k in range(batch.known.shape[-1])
  ]


def _of_target(
  dense: types.TokenBatch, batch: types.LeanBatch, logits: Array
) -> dict[str, numerics.Average]:
  """What the target asks for, and how sure the policy is."""
  target = jax.nn.softmax(dense.target_logits)
  for places in _known_places(batch, logits.shape[-1]):
    target = jnp.where(places, 0.0, target)
  values = {
    "entropy": losses.entropy(logits),
    "target_tail_mass": jnp.sum(target, axis=-1),
    "target_residual_before": diagnostics.target_residual(
      dense.target_logits, dense.old_logits
    ),
  }
  return {
    name: numerics.average(jax.lax.stop_gradient(value), batch.mask)
    for name, value in values.items()
  }


def _as_tokens(
  hidden: Array, batch: types.LeanBatch
) -> tuple[Array, types.LeanBatch]:
  """Every token as a sequence of one; the first has the sequence's share."""
  length = batch.action.shape[1]
  first = jnp.arange(length) == 0
  share = jnp.where(first, batch.share[:, None], 0.0)

  def apart(leaf):
    return leaf.reshape(-1, 1, *leaf.shape[2:])

  tokens = jax.tree.map(apart, dataclasses.replace(batch, share=None))
  return apart(hidden), dataclasses.replace(tokens, share=share.reshape(-1))


def _divisible(
  hidden: Array, batch: types.LeanBatch, size: int
) -> tuple[Array, types.LeanBatch, int]:
  """Adds rows under the mask until chunks of at most `size` are equal."""
  num_rows = len(hidden)
  num_chunks = -(-num_rows // size)
  size = -(-num_rows // num_chunks)
  missing = num_chunks * size - num_rows

  def grown(leaf):
    return jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))

  batch = jax.tree.map(grown, batch)
  # β is divided by, also where nothing counts.
  beta = jnp.where(batch.mask, batch.beta, 1.0)
  return grown(hidden), dataclasses.replace(batch, beta=beta), size
