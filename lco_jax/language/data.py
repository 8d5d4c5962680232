"""The data of language: what is sampled, and what is learned from.

Shapes name their axes: G samples, N prompts, P slots of a prompt, C slots of a
completion, W width of the model, K known tokens. Language is batch-major.
"""

from jax import Array

from lco_jax import types


@types.pytree_dataclass
class Samples:
  """Completions of prompts: G of each of N, in P and C slots.

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
    answer: int32[G, N, C], a right answer, its end included; None where the
      sampler knows none.
    failed: bool[G, N], whether the verifier failed or took too long; None where
      it cannot fail.
    first_visit: bool[G, N], whether the prompt is sampled for the first time;
      None where every prompt is.
    rewards: {name: float[G, N]}, what the reward is made of; None where it is
      one number.
    packed_tokens: of `TokenBatch`.
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
  answer: Array | None = None
  failed: Array | None = None
  first_visit: Array | None = None
  rewards: dict[str, Array] | None = None
  packed_tokens: int | None = types.static_field(None)


@types.pytree_dataclass
class TokenBatch:
  """The data of completions that an objective reads; constant in the epochs.

  Nothing here has the size of the vocabulary: the objective makes logits from
  hidden states. At each position the advantages of K tokens are known; all
  other tokens have the same advantage, `rest_advantage`. The batch's loss is
  the weighted sum of the tokens' losses, Σ weight · loss of a token, divided by
  the sum of `share`.

  Attributes:
    prompt: int32[..., P], padded on the left.
    padding: int32[...], slots of the prompt that hold no token.
    action: int32[..., C], the completion's tokens.
    mask: bool[..., C], tokens that enter the loss.
    sampled: bool[..., C], all sampled tokens, also those that the mask leaves
      out; metrics average over them.
    weight: float[..., C], weight of the token's loss.
    share: float[...], what the sequence adds to the divisor.
    advantage: float[..., C], advantage of the sampled token.
    old_hidden: float[..., C, W], final hidden states of the old policy, which
      targets and ratios begin from. This is the policy that sampled; if stale
      samples are corrected, it is the learner at the start of the update.
    old_log_prob: float[..., C], log π of the token by the old policy, before
      temperature and cuts.
    reference_log_prob: float[..., C], log π of the token by the reference
      policy.
    beta: float[..., C], KL strength of the token's target.
    known: int32[..., C, K], tokens whose advantages are known.
    known_advantage: float[..., C, K].
    rest_advantage: float[..., C], of every other token.
    value_target: float[..., C], the return that the value network regresses
      onto; None without one.
    stale_weight: float[..., C], factor on the algorithm's loss; None for 1.
    old_value: float[..., C], value of the token's place at collection; None
      without a value network.
    reference_hidden: float[..., C, W], the reference policy's final hidden
      states; None unless the objective reads its logits.
    packed_tokens: places for the tokens of a device's microbatch, behind each
      completion's first; None to read all of its slots.
  """

  prompt: Array
  padding: Array
  action: Array
  mask: Array
  sampled: Array
  weight: Array
  share: Array
  advantage: Array
  old_hidden: Array
  old_log_prob: Array
  reference_log_prob: Array
  beta: Array
  known: Array
  known_advantage: Array
  rest_advantage: Array
  value_target: Array | None = None
  stale_weight: Array | None = None
  old_value: Array | None = None
  reference_hidden: Array | None = None
  packed_tokens: int | None = types.static_field(None)
