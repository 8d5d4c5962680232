"""The cases of `experiments.benchmark llm`."""

import functools
import resource
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import transformers
from experiments.common import timing
from lco_jax import algorithms, networks, pretrained
from lco_jax.language import data, generation, objectives, reading, samplers
from lco_jax.language import training as language
from lco_jax.networks import products
from lco_jax.training import (
  cpu_backend,
  optimizers,
  placement,
  program,
  transfers,
)

# Whole steps: (prompts, completions of each).
STEPS = {"8 prompts x 4": (8, 4), "32 prompts x 1": (32, 1)}
# The same by PyTorch and transformers, where they are installed.
PEERS = {f"{case}, transformers": STEPS[case] for case in STEPS}


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


LOSSES = {
  "loss 49152 dense": Loss(49_152, 0),
  "loss 49152 chunked": Loss(49_152, None),
  "loss 151936 dense": Loss(151_936, 0),
  "loss 151936 chunked": Loss(151_936, None),
}
# Of a size for accelerators: measured only if asked for.
LARGE_LOSSES = {
  "loss 128256 dense": Loss(128_256, 0, 8_192, 4_096, "bfloat16"),
  "loss 128256 chunked": Loss(128_256, None, 8_192, 4_096, "bfloat16"),
}
_PROMPT, _COMPLETION = 64, 24
_NEVER = -1  # No token ends a completion: all are of full length.


def measure(case: str, model: str, algorithm: str, repeats: int) -> dict:
  """A case of STEPS, PEERS, LOSSES or LARGE_LOSSES.

  Args:
    case: its name.
    model: as of `pretrained.load`; of STEPS and PEERS.
    algorithm: a key of `algorithms.ALGORITHMS`.
    repeats: calls; medians are returned.

  Returns:
    {name: figure}; extra memory is the peak of the whole process above that
    before the first call, or of an accelerator above what was in use then.

  Raises:
    ValueError: if the case, the model or the algorithm is unknown, or a package
      missing.
  """
  given_states = LOSSES | LARGE_LOSSES
  known = (*STEPS, *PEERS, *given_states)
  if case not in known:
    names = ", ".join(map(repr, known))
    raise ValueError(f"case: unknown {case!r}; known: {names}")
  algorithms.list_options(algorithm)  # Raises if it is unknown.
  row = algorithms.ALGORITHMS[algorithm]
  if case in given_states:
    return _loss(given_states[case], row, repeats)
  cpu_backend.keep_memory()  # As in runs; the peer has it, too.
  own = pretrained.load(model)
  if case in PEERS:
    return transformers.measure(
      own, *PEERS[case], _PROMPT, _COMPLETION, repeats
    )
  return _step(*STEPS[case], own, row, repeats)


def cases() -> list[str]:
  """Those that can be measured here, what is to be compared side by side."""
  found = []
  for case, peer in zip(STEPS, PEERS, strict=True):
    found += [case, peer] if transformers.is_installed() else [case]
  return [*found, *LOSSES]


def _step(num_prompts, num_samples, own, row, repeats) -> dict:
  """Generation and update of a pretrained model."""
  model = networks.make_language_model(own.config)
  setup = language.Setup(
    model,
    row,
    row.policy_loss(),
    samplers.Sampler(_COMPLETION),
    language.Options(
      num_prompts=num_prompts,
      num_samples=num_samples,
      advantage="batch_centred",
    ),
    keeps_reference=False,
  )
  optimizer = optimizers.make_optimizer(
    "adam", optax.constant_schedule(1e-6), 1.0
  )
  training = language.make_training(setup, {"policy": optimizer})
  mesh = placement.make_mesh(1, num_prompts, jax.local_devices()[:1])
  given = {"policy": jax.tree.map(lambda leaf: leaf[None], own.params)}
  state = program.initial_state(training, (0,), mesh, given)
  rng = np.random.default_rng(0)
  shape = (1, num_samples, num_prompts)
  prompt = rng.integers(0, own.config.vocab_size, (num_prompts, _PROMPT))
  prompt = jnp.asarray(prompt, jnp.int32)
  padding = jnp.zeros(num_prompts, jnp.int32)
  keys = jax.random.split(jax.random.key(0), (num_samples, num_prompts))

  def sample(params):
    return samplers.complete_prompts(
      model,
      jax.tree.map(lambda leaf: leaf[0], params),
      prompt,
      padding,
      keys,
      _COMPLETION,
      _NEVER,
      generation.Sampling(),
    )

  generate = _compiled(sample, state.params["policy"])
  done = generate(state.params["policy"])
  hidden, log_prob = done.observed

  def grouped(leaf):
    return np.asarray(leaf)[None]

  samples = transfers.put_local(
    data.Samples(
      prompt=np.broadcast_to(prompt, (*shape, _PROMPT)),
      padding=np.broadcast_to(padding, shape),
      action=grouped(done.tokens),
      mask=grouped(done.mask),
      hidden=grouped(hidden),
      log_prob=grouped(log_prob),
      reward=rng.integers(0, 2, shape).astype(np.float32),
      correct=np.zeros(shape, bool),
      truncated=np.zeros(shape, bool),
      failed=np.zeros(shape, bool),
      first_visit=np.ones(shape, bool),
    ),
    mesh,
    placement.ROLLOUTS,
  )

  def learn(state, samples):
    step = functools.partial(program.learn_step, training)
    state, metrics = placement.each_seed(step)(state, state.actor, samples)
    return state, placement.gather_seeds(metrics, axis=0)

  learning = placement.compile(
    learn,
    mesh,
    (placement.STATE, placement.ROLLOUTS),
    (placement.STATE, placement.EVERYWHERE),
    state,
    samples,
    donate_argnums=(0,),
    long_reductions=True,
  )
  held = _held()
  generating = timing.measure(lambda: generate(state.params["policy"]), repeats)

  def update():
    nonlocal state
    state, _ = learning(state, samples)
    return state

  updating = timing.measure(update, repeats)
  made = num_prompts * num_samples * _COMPLETION
  return {
    "generation_tokens_per_second": round(made / generating, 1),
    "generation_seconds": round(generating, 3),
    "update_tokens_per_second": round(made / updating, 1),
    "update_seconds": round(updating, 3),
    "step_seconds": round(generating + updating, 3),
    "extra_memory_gib": round(_peak() - held, 3),
  }


def _loss(case: Loss, row, repeats) -> dict:
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
  compiled = _compiled(jax.value_and_grad(mean), *arguments)
  held = _held()
  seconds = timing.measure(lambda: compiled(*arguments), repeats)
  used = compiled.memory_analysis()
  return {
    **case._asdict(),
    "chunk_tokens": chunk_tokens,
    "seconds": round(seconds, 4),
    "temporary_memory_gib": round(used.temp_size_in_bytes / 2**30, 3),
    "extra_memory_gib": round(_peak() - held, 3),
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


def _compiled(function: Callable, *arguments):
  options = cpu_backend.compiler_options(once=False, long_reductions=True)
  return jax.jit(function).lower(*arguments).compile(options)


def _held() -> float:
  """GiB in use now by the accelerator, or at most so far by the process."""
  used = jax.local_devices()[0].memory_stats()  # None on CPU.
  return used["bytes_in_use"] / 2**30 if used else _peak()


def _peak() -> float:
  """GiB that the accelerator, or else the process, held at most so far."""
  used = jax.local_devices()[0].memory_stats()
  if used:
    return used["peak_bytes_in_use"] / 2**30
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
