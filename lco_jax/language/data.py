"""The data of language: what is sampled, and what is learned from.

Shapes name their axes: G samples, N prompts, P slots of a prompt, C slots of a
completion, V vocabulary.
"""

import jax

from lco_jax import types

Array = jax.Array


@types.pytree_dataclass
class Samples:
  """Completions of prompts: G of each of N, in P and C slots.

  Attributes:
    prompt: int32[G, N, P], padded on the left.
    padding: int32[G, N], slots of the prompt that hold no token.
    action: int32[G, N, C], the completion's tokens.
    mask: bool[G, N, C], those that were chosen, the end included.
    answer: int32[G, N, C], a right answer, its end included.
    logits: float[G, N, C, V], of the policy that chose, before temperature.
    reward: float[G, N].
    correct: bool[G, N], whether the completion solves the problem.
    truncated: bool[G, N], whether it was cut off before its end.
  """

  prompt: Array
  padding: Array
  action: Array
  mask: Array
  answer: Array
  logits: Array
  reward: Array
  correct: Array
  truncated: Array


@types.pytree_dataclass
class TokenBatch:
  """What an objective needs of each completion; constant during the epochs.

  A loss is Σ weight · loss over Σ share: how tokens and sequences count.

  Attributes:
    prompt: int32[..., P], padded on the left.
    padding: int32[...], slots of the prompt that hold no token.
    action: int32[..., C], the completion's tokens.
    mask: bool[..., C], tokens that were chosen; nothing else may matter.
    weight: float[..., C], of a token's loss.
    share: float[...], of a sequence in the sum that losses are divided by.
    advantage: float[..., C].
    old_logits: float[..., C, V], behaviour policy's logits.
    old_log_prob: float[..., C], log π of the token by the policy that sampled,
      before temperature and cuts.
    target_logits: float[..., C, V], optimal logits z*.
    reference_log_prob: float[..., C], the reference policy's of the token.
    value_target: float[..., C], the return that V regresses onto.
  """

  prompt: Array
  padding: Array
  action: Array
  mask: Array
  weight: Array
  share: Array
  advantage: Array
  old_logits: Array
  old_log_prob: Array
  target_logits: Array
  reference_log_prob: Array
  value_target: Array


@types.pytree_dataclass
class TextSamples:
  """Completions of texts, scored on the host: G of each of N, in P and C slots.

  Attributes:
    prompt: int32[G, N, P], padded on the left.
    padding: int32[G, N], slots of the prompt that hold no token.
    action: int32[G, N, C], the completion's tokens.
    mask: bool[G, N, C], those that were chosen, the end included.
    hidden: float[G, N, C, W], final hidden states that chose them.
    log_prob: float[G, N, C], log π of the token by the policy that sampled,
      before temperature and cuts; 0 outside the mask.
    reward: float[G, N].
    correct: bool[G, N], whether the completion solves the problem.
    truncated: bool[G, N], whether it was cut off before its end.
    failed: bool[G, N], whether its verifier took too long, or failed.
    first_visit: bool[G, N], whether the prompt was not met before.
  """

  prompt: Array
  padding: Array
  action: Array
  mask: Array
  hidden: Array
  log_prob: Array
  reward: Array
  correct: Array
  truncated: Array
  failed: Array
  first_visit: Array


@types.pytree_dataclass
class LeanBatch:
  """A TokenBatch that holds nothing over the vocabulary, but can make it.

  Advantages are known of K tokens, and one for all the others.

  Attributes:
    prompt, padding, action, mask, weight, share, advantage, old_log_prob,
      reference_log_prob: as of TokenBatch.
    sampled: bool[..., C], tokens that metrics are of: the mask, and those of
      groups that are left out of it.
    old_hidden: float[..., C, W], the behaviour policy's final hidden states.
    beta: float[..., C], KL strength of the token's target.
    known: int32[..., C, K], tokens whose advantages are known.
    known_advantage: float[..., C, K].
    rest_advantage: float[..., C], of every other token.
  """

  prompt: Array
  padding: Array
  action: Array
  mask: Array
  sampled: Array
  weight: Array
  share: Array
  advantage: Array
  old_log_prob: Array
  reference_log_prob: Array
  old_hidden: Array
  beta: Array
  known: Array
  known_advantage: Array
  rest_advantage: Array
