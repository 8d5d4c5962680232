"""Objectives of language models that never hold [tokens, vocabulary].

The same losses as in `token_objectives`, of the same TokenBatch, but that is
made of some tokens at a time, from final hidden states and the output layer,
and dropped when their loss and its gradient are known.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lco_jax import diagnostics, losses, networks, numerics, targets, types
from lco_jax.algorithms import policy_losses
from lco_jax.language import data, generation, objectives
from lco_jax.training import chunking, update

Array = jax.Array

# The part of the parameters with the output layer that sampled.
BEHAVIOUR = "behaviour"
# Bytes of logits at a time, if it is not said how many tokens: on CPU what
# stays near its cores, elsewhere what is worth a pass over the output layer.
_CPU_BYTES, _ACCELERATOR_BYTES = 2**25, 2**30


def default_chunk(vocab_size: int) -> int:
  """Tokens whose logits take about 32 MiB, or on accelerators 1 GiB."""
  on_cpu = jax.default_backend() == "cpu"
  size = _CPU_BYTES if on_cpu else _ACCELERATOR_BYTES
  return max(1, size // (4 * vocab_size))


def chunk_of(chunk_tokens: int | None, vocab_size: int) -> int:
  """Tokens at a time: those asked for, or the default for None.

  Raises:
    ValueError: if the number is negative.
  """
  if chunk_tokens is None:
    return default_chunk(vocab_size)
  if chunk_tokens < 0:
    raise ValueError(f"chunk_tokens must be ≥ 0, got {chunk_tokens}")
  return chunk_tokens


def make_objective(
  model: networks.LanguageModel,
  policy_loss: policy_losses.PolicyLoss,
  *,
  num_samples: int,
  chunk_tokens: int,
  on_policy: bool,
  of_sequences: bool = False,
  entropy_coefficient: float = 0.0,
  reference_coefficient: float = 0.0,
  measures_kl: bool = False,
) -> update.Objective:
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
    entropy_coefficient: as of `objectives.make_token_objective`.
    reference_coefficient: as there.
    measures_kl: as there.

  Returns:
    (params, LeanBatch [samples · prompts, ...]) → (loss of the part "policy",
    metrics).
  """
  inner = objectives.make_token_objective(
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
    (hidden, batch), size = _grown((hidden, batch), size)
    # β is divided by, also where nothing counts.
    beta = jnp.where(batch.mask, batch.beta, 1.0)
    batch = dataclasses.replace(batch, beta=beta)
    total, (count, metrics) = chunking.chunked_sum(
      summand,
      networks.head_of(params["policy"]),
      params.get(BEHAVIOUR),
      hidden,
      batch,
      size,
      hidden.dtype,
    )
    return {"policy": numerics.Average(total, count)}, metrics

  return objective


def token_batch(batch: data.LeanBatch, old_logits: Array) -> data.TokenBatch:
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
    for field in dataclasses.fields(data.TokenBatch)
  }
  return data.TokenBatch(
    **same
    | {
      "old_logits": old_logits,
      "target_logits": targets.optimal_logits(
        old_logits, advantage, batch.beta[..., None]
      ),
      "value_target": jnp.zeros_like(batch.advantage),
    }
  )


class Reading(NamedTuple):
  """What a policy makes of completions, token by token.

  Attributes:
    log_prob: float[G, N, C], log π of the tokens.
    kl: float[G, N, C], KL from the policy that sampled; None if not asked.
    asked_log_prob: float[G, N, C, K], log π of others; None if not asked.
  """

  log_prob: Array
  kl: Array | None
  asked_log_prob: Array | None


def of_completions(
  model: networks.LanguageModel,
  params: types.Params,
  samples: data.TextSamples | data.LeanBatch,
  chunk_tokens: int,
  behaviour: types.Params | None = None,
  asked: Array | None = None,
) -> Reading:
  """Reads completions with a policy.

  Its gradient computes the logits of each chunk again.

  Args:
    model: the policy's.
    params: the policy's.
    samples: completions [G, N]; a LeanBatch for its old hidden states. Only
      the fields of a completion are read otherwise.
    chunk_tokens: tokens whose logits are held at a time; 0 for all.
    behaviour: output layer that sampled, for the KL from it.
    asked: int32[G, N, C, K], tokens whose log-probabilities are wanted.
  """
  shape = samples.action.shape
  hidden = generation.completion_hidden(
    model,
    params,
    samples.prompt[0],
    samples.padding[0],
    samples.action.reshape(-1, shape[-1]),
  )
  old_hidden = samples.old_hidden if behaviour is not None else None

  def read(rows):
    hidden, old_hidden, action, asked = rows
    logits = model.head(params, hidden)
    kl, others = None, None
    if old_hidden is not None:
      old_logits = model.head(behaviour, old_hidden)
      kl = losses.kl_divergence(old_logits, logits)
    log_probs = jax.nn.log_softmax(logits)
    if asked is not None:
      others = jnp.take_along_axis(log_probs, asked, axis=-1)
    return Reading(numerics.select_action(log_probs, action), kl, others)

  return _by_chunks(
    jax.checkpoint(read),
    (hidden.reshape(*shape, -1), old_hidden, samples.action, asked),
    chunk_tokens,
  )


class Likeliest(NamedTuple):
  """Tokens that a policy thinks of, the sampled one first.

  Attributes:
    tokens: int32[G, N, C, 1 + K], of which the first may come again.
    log_prob: float[G, N, C, 1 + K], the policy's.
  """

  tokens: Array
  log_prob: Array


def likeliest(
  model: networks.LanguageModel,
  params: types.Params,
  samples: data.TextSamples,
  count: int,
  chunk_tokens: int,
) -> Likeliest:
  """The sampled tokens and the K likeliest, by the policy that sampled.

  Args:
    model: the policy's.
    params: the policy's.
    samples: completions [G, N].
    count: K.
    chunk_tokens: tokens whose logits are held at a time; 0 for all.
  """

  def find(rows):
    hidden, action = rows
    log_probs = jax.nn.log_softmax(model.head(params, hidden))
    values, tokens = jax.lax.top_k(log_probs, min(count, log_probs.shape[-1]))
    own = numerics.select_action(log_probs, action)
    return Likeliest(
      jnp.concatenate([action[:, None], tokens], axis=-1),
      jnp.concatenate([own[:, None], values], axis=-1),
    )

  return _by_chunks(find, (samples.hidden, samples.action), chunk_tokens)


def _by_chunks(
  function: Callable[[Any], Any], tree: Any, chunk_tokens: int
) -> Any:
  """Maps a function of tokens [T, ...] over arrays [G, N, C, ...]."""
  shape = jax.tree.leaves(tree)[0].shape[:3]
  rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:]), tree)
  rows, size = _grown(rows, chunk_tokens or shape[0] * shape[1] * shape[2])
  chunks = jax.tree.map(
    lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), rows
  )
  found = jax.lax.map(function, chunks)

  def whole(leaf):
    leaf = leaf.reshape(-1, *leaf.shape[2:])
    return leaf[: shape[0] * shape[1] * shape[2]].reshape(
      *shape, *leaf.shape[1:]
    )

  return jax.tree.map(whole, found)


def _known_places(batch: data.LeanBatch, vocab_size: int) -> list[Array]:
  """Where each of the K known tokens is: bool[..., C, V], one by one."""
  return [
    jax.nn.one_hot(batch.known[..., k], vocab_size, dtype=bool)
    for k in range(batch.known.shape[-1])
  ]


def _of_target(
  dense: data.TokenBatch, batch: data.LeanBatch, logits: Array
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
    name: numerics.average(jax.lax.stop_gradient(value), batch.sampled)
    for name, value in values.items()
  }


def _as_tokens(
  hidden: Array, batch: data.LeanBatch
) -> tuple[Array, data.LeanBatch]:
  """Every token as a sequence of one; the first has the sequence's share."""
  length = batch.action.shape[1]
  first = jnp.arange(length) == 0
  share = jnp.where(first, batch.share[:, None], 0.0)

  def apart(leaf):
    return leaf.reshape(-1, 1, *leaf.shape[2:])

  tokens = jax.tree.map(apart, dataclasses.replace(batch, share=None))
  return apart(hidden), dataclasses.replace(tokens, share=share.reshape(-1))


def _grown(tree: Any, size: int) -> tuple[Any, int]:
  """Adds rows of zeros until chunks of at most `size` rows are equal."""
  num_rows = len(jax.tree.leaves(tree)[0])
  num_chunks = -(-num_rows // size)
  size = -(-num_rows // num_chunks)
  missing = num_chunks * size - num_rows

  def grown(leaf):
    return jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))

  return jax.tree.map(grown, tree), size
