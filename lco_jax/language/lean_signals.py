"""Advantage signals that speak of a few tokens, and one number for the rest.

What `signals` says of every token, for vocabularies that are too large for it:
the same formulas, with the tokens that a signal knows listed one by one.

Axes: samples G, prompts N, tokens C, known tokens K.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lco_jax import advantages, networks, types
from lco_jax.language import between, data, lean_objectives, signals

Array = jax.Array

# Log-probability above which a policy is all but sure of a token.
_SURE = -0.02


class LeanSignal(NamedTuple):
  """What a signal says.

  Attributes:
    advantage: float[G, N, C], of the sampled tokens; 0 outside the mask.
    known: int32[G, N, C, K], tokens that it speaks of, the sampled one first.
    known_advantage: float[G, N, C, K].
    rest_advantage: float[G, N, C], of every other token.
    agreed: bool[G, N, C], where policy and verifier are both all but sure.
  """

  advantage: Array
  known: Array
  known_advantage: Array
  rest_advantage: Array
  agreed: Array


def estimate(
  name: str,
  model: networks.LanguageModel,
  verifier_model: networks.LanguageModel,
  params: Mapping[str, types.Params],
  samples: data.TextSamples,
  num_known: int,
  chunk_tokens: int,
  between_weight: Array | None = None,
) -> LeanSignal:
  """A signal by its name.

  Args:
    name: a key of `signals.FROM_REWARDS`, or one of `signals.OF_VERIFIERS`.
    model: of the policy.
    verifier_model: of verifiers, over the same vocabulary.
    params: by part: "policy", "verifier" and "verifier_reference".
    samples: what was sampled, [G, N].
    num_known: of verifiers' signals, the policy's likeliest tokens that they
      are asked about, beside the sampled one.
    chunk_tokens: tokens whose logits are held at a time; 0 for all.
    between_weight: float[], of `between.standardized` beside advantages in
      groups, and of no others; None for none of it.
  """
  if name in signals.FROM_REWARDS:
    advantage = signals.FROM_REWARDS[name](samples.reward)
    if between_weight is not None and name in signals.IN_GROUPS:
      advantage += between_weight * between.standardized(samples.reward)
    return of_sampled(samples, advantage[..., None])
  likeliest = lean_objectives.likeliest(
    model, params["policy"], samples, num_known, chunk_tokens
  )

  def scores_of(part):
    return lean_objectives.of_completions(
      verifier_model,
      params[part],
      samples,
      chunk_tokens,
      asked=likeliest.tokens,
    ).asked_log_prob

  scores = scores_of("verifier")
  sure = scores[..., 0] > _SURE
  if name == "preference":
    scores -= scores_of("verifier_reference")
  return of_known(samples, likeliest.tokens, likeliest.log_prob, scores, sure)


def of_sampled(samples: data.TextSamples, advantage: Array) -> LeanSignal:
  """The signal that knows the sampled tokens' advantages alone."""
  advantage = jnp.where(samples.mask, advantage, 0.0)
  return LeanSignal(
    advantage=advantage,
    known=samples.action[..., None],
    known_advantage=advantage[..., None],
    rest_advantage=jnp.zeros_like(advantage),
    agreed=jnp.zeros_like(samples.mask),
  )


def of_known(
  samples: data.TextSamples,
  known: Array,
  log_prob: Array,
  scores: Array,
  sure: Array,
) -> LeanSignal:
  """Scores of some tokens, standardised, and completed to mean zero.

  Args:
    samples: what was sampled.
    known: int32[G, N, C, K], the sampled token first; it may come again.
    log_prob: float[G, N, C, K], the policy's.
    scores: float[G, N, C, K], in nats.
    sure: bool[G, N, C], where the verifier is all but sure of the sampled one.

  Source: arXiv:2603.00963, dense advantages.
  """
  distinct = jnp.concatenate(
    [jnp.ones_like(known[..., :1], bool), known[..., 1:] != known[..., :1]],
    axis=-1,
  )
  # Over the known tokens alone, with one more that stands for all others: what
  # completes them is made of their probabilities.
  probs = jnp.where(distinct, jnp.exp(log_prob), 0.0)
  rest = jnp.maximum(1.0 - jnp.sum(probs, axis=-1, keepdims=True), 1e-30)
  logits = jnp.log(
    jnp.concatenate([jnp.where(distinct, probs, 1e-30), rest], axis=-1)
  )
  whole = jnp.concatenate(
    [distinct, jnp.zeros_like(distinct[..., :1])], axis=-1
  )
  standard = advantages.standardized(
    jnp.pad(scores, [(0, 0)] * (scores.ndim - 1) + [(0, 1)]), whole
  )
  completed = advantages.completed(logits, standard, whole)
  own, others = completed[..., :-1], completed[..., -1]
  # The sampled token's second place says the same as its first.
  own = jnp.where(distinct, own, own[..., :1])
  chosen = jnp.where(samples.mask, own[..., 0], 0.0)
  return LeanSignal(
    advantage=chosen,
    known=known,
    known_advantage=own,
    rest_advantage=others,
    agreed=sure & (samples.log_prob > _SURE) & samples.mask,
  )
