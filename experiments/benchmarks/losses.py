"""A loss alone, with the logits of all tokens at once or of some at a time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks import processes
from experiments.common import timing
from lco_jax import networks
from lco_jax.language import data, objectives, reading, samplers
from lco_jax.language import training as language
from lco_jax.networks import products


class Loss(NamedTuple):
  """A loss alone, from final hidden states and an output layer in float32.

  Attributes:
    vocabulary: of the output layer.
    chunk_tokens: tokens at a time; None for the default, 0 for all.
    tokens: of the batch.
    width: of the hidden states.
    dtype: that they and the layer are multiplied in.
  """

  vocabulary: int
  chunk_tokens: int | None
  tokens: int = 4_096
  width: int = 576
  dtype: str = "float32"


CASES = {
  "loss 49152 dense": Loss(49_152, 0),
  "loss 49152 chunked": Loss(49_152, None),
  "loss 151936 dense": Loss(151_936, 0),
  "loss 151936 chunked": Loss(151_936, None),
}
# Of a size for accelerators: measured only if asked for.
LARGE_CASES = {
  "loss 128256 dense": Loss(128_256, 0, 8_192, 4_096, "bfloat16"),
  "loss 128256 chunked": Loss(128_256, None, 8_192, 4_096, "bfloat16"),
}


def measure(case: Loss, row, repeats) -> dict:
  """Value and gradient of an objective from given hidden states."""
  chunk_tokens = reading.resolve_chunk(case.chunk_tokens, case.vocabulary)
  sequences, length = 16, case.tokens // 16
  setup = language.Setup(
    _states_alone(case.vocabulary),
    row,
    row.policy_loss(),
    samplers.Sampler(length),
    # Two epochs, as the last states are not those that sampled.
    language.Options(
      num_epochs=2, chunk_tokens=chunk_tokens, advantage="reward"
    ),
  )
  objective = objectives.make_objective(setup, num_samples=1)
  keys = jax.random.split(jax.random.key(0), 4)
  output = jax.random.normal(keys[0], (case.vocabulary, case.width))
  output *= case.width**-0.5
  hidden = jax.random.normal(
    keys[1], (sequences, length, case.width), case.dtype
  )
  action = jax.random.randint(keys[2], (sequences, length), 0, case.vocabulary)
  mask = jnp.ones((sequences, length), bool)
  weight, share = objectives.token_weights(mask, row.weighting)
  one = jnp.ones((sequences, length))
  batch = data.TokenBatch(
    prompt=jnp.zeros((sequences, 1), jnp.int32),  # One token, one state.
    padding=jnp.zeros(sequences, jnp.int32),
    action=action,
    mask=mask,
    sampled=mask,
    weight=weight,
    share=share,
    advantage=one,
    old_log_prob=-one,
    reference_log_prob=-one,
    old_hidden=hidden + 0.01,
    beta=one,
    known=action[..., None],
    known_advantage=one[..., None],
    rest_advantage=0 * one,
  )

  def mean(policy, old, batch):
    parts, _ = objective({"policy": policy}, batch, {"policy": old})
    return parts["policy"].mean

  policy = {"params": {"output": output, "hidden": hidden}}
  arguments = (policy, networks.select_head(policy), batch)
  compiled = processes.compile_for(jax.value_and_grad(mean), *arguments)
  held = processes.count_held()
  seconds = timing.measure(lambda: compiled(*arguments), repeats).median
  used = compiled.memory_analysis()
  return {
    **case._asdict(),
    "chunk_tokens": chunk_tokens,
    "seconds": round(seconds, 4),
    "temporary_memory_gib": round(used.temp_size_in_bytes / 2**30, 3),
    "extra_memory_gib": round(processes.count_peak() - held, 3),
  }


def _states_alone(vocab_size: int) -> networks.LanguageModel:
  """A model whose final hidden states are parameters."""

  def hidden(params, tokens, padding, cache=None, start=0):
    del padding, start
    # The prompt's last one, then as many as there are tokens but the last.
    own = params["params"]["hidden"]
    return own[:, : tokens.shape[1]], cache

  def head(params, states):
    output = params["params"]["output"].astype(states.dtype)
    return products.multiply_rows("rw,vw->rv", states, output)

  return networks.LanguageModel(
    init=None,
    hidden=hidden,
    head=head,
    apply=None,
    empty_cache=None,
    reader=None,
    vocab_size=vocab_size,
  )
