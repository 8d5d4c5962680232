"""What `experiments.benchmark llm` measures, case by case."""

import functools
import resource
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import timing, transformers_benchmark
from lco_jax import (
  cpu_backend,
  generation,
  lean_objectives,
  llm,
  networks,
  numerics,
  optimizers,
  placement,
  pretrained,
  token_objectives,
  training,
  types,
)

# Whole steps: (prompts, completions of each).
STEPS = {"8 prompts x 4": (8, 4), "32 prompts x 1": (32, 1)}
# The same by PyTorch and transformers, where they are installed.
PEERS = {f"{case}, transformers": STEPS[case] for case in STEPS}
# Losses alone: (vocabulary, tokens at a time; None for the default, 0 for all).
LOSSES = {
  "loss 49152 dense": (49_152, 0),
  "loss 49152 chunked": (49_152, None),
  "loss 151936 dense": (151_936, 0),
  "loss 151936 chunked": (151_936, None),
}
_PROMPT, _COMPLETION = 64, 24
_TOKENS, _WIDTH = 4_096, 576
_NEVER = -1  # No token ends a completion: all are of full length.


def measure(case: str, model: str, algorithm: str, repeats: int) -> dict:
  """A case of STEPS, PEERS or LOSSES.

  Args:
    case: its name.
    model: as of `pretrained.load`; of STEPS and PEERS.
    algorithm: a key of `token_objectives.ALGORITHMS`.
    repeats: calls; medians are returned.

  Returns:
    {name: figure}; memory is of the whole process, above what it held when
    everything was compiled.

  Raises:
    ValueError: if the case, the model or the algorithm is unknown, or a package
      missing.
  """
  known = (*STEPS, *PEERS, *LOSSES)
  if case not in known:
    raise ValueError(f"case: unknown {case!r}; known: {', '.join(known)}")
  token_objectives.options_of(algorithm)  # Raises if it is unknown.
  row = token_objectives.ALGORITHMS[algorithm]
  if case in LOSSES:
    return _loss(*LOSSES[case], row, repeats)
  cpu_backend.keep_memory()  # As in runs; the peer has it, too.
  own = pretrained.load(model)
  if case in PEERS:
    return transformers_benchmark.measure(
      own, *PEERS[case], _PROMPT, _COMPLETION, repeats
    )
  return _step(*STEPS[case], own, row, repeats)


def cases() -> list[str]:
  """Those that can be measured here, what is to be compared side by side."""
  found = []
  for case, peer in zip(STEPS, PEERS, strict=True):
    found += [case, peer] if transformers_benchmark.installed() else [case]
  return [*found, *LOSSES]


def _step(num_prompts, num_samples, own, row, repeats) -> dict:
  """Generation and update of a pretrained model."""
  model = networks.make_language_model(own.config)
  task = llm.make_training(
    model,
    row,
    row.policy_loss(),
    optimizers.make_optimizer("adam", optax.constant_schedule(1e-6), 1.0),
    num_prompts=num_prompts,
    num_samples=num_samples,
    completion_length=_COMPLETION,
    advantage="batch_centred",
  )
  where = placement.place(1, num_prompts, jax.local_devices()[:1])
  given = {"policy": jax.tree.map(lambda leaf: leaf[None], own.params)}
  state = training.initial_state(task, (0,), where, given)
  rng = np.random.default_rng(0)
  shape = (1, 1, num_samples, num_prompts)
  prompt = rng.integers(0, own.config.vocab_size, (num_prompts, _PROMPT))
  prompt = jnp.asarray(prompt, jnp.int32)
  padding = jnp.zeros(num_prompts, jnp.int32)
  keys = jax.random.split(jax.random.key(0), num_prompts * num_samples)

  def observe(params, hidden, logits, token):
    del params
    return hidden, numerics.action_log_prob(logits, token)

  def sample(params):
    return generation.generate(
      model,
      jax.tree.map(lambda leaf: leaf[0, 0], params),
      prompt,
      padding,
      keys,
      _COMPLETION,
      _NEVER,
      generation.Sampling(),
      observe,
    )

  generate = _compiled(sample, state.params["policy"])
  done = generate(state.params["policy"])
  hidden, log_prob = done.observed

  def grouped(leaf):
    return np.reshape(leaf, (*shape, *leaf.shape[1:]))

  samples = where.put_local(
    types.TextSamples(
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
    )
  )

  def learn(state, samples):
    step = functools.partial(training.learn_step, task)
    return jax.vmap(step)(state, state.actor, samples)

  learning = where.compile(
    learn, state, samples, donate_argnums=0, long_reductions=True
  )
  held = _peak()
  generating = timing.seconds(lambda: generate(state.params["policy"]), repeats)

  def update():
    nonlocal state
    state, _ = learning(state, samples)
    return state

  updating = timing.seconds(update, repeats)
  made = num_prompts * num_samples * _COMPLETION
  return {
    "generation_tokens_per_second": round(made / generating, 1),
    "generation_seconds": round(generating, 3),
    "update_tokens_per_second": round(made / updating, 1),
    "update_seconds": round(updating, 3),
    "step_seconds": round(generating + updating, 3),
    "extra_memory_gib": round(_peak() - held, 3),
  }


def _loss(vocab_size, chunk_tokens, row, repeats) -> dict:
  """Value and gradient of an objective from given hidden states."""
  chunk_tokens = lean_objectives.chunk_of(chunk_tokens, vocab_size)
  sequences, length = 16, _TOKENS // 16
  objective = lean_objectives.make_objective(
    _states_alone(vocab_size),
    row.policy_loss(),
    num_samples=1,
    chunk_tokens=chunk_tokens,
    on_policy=False,
    of_sequences=row.of_sequences,
  )
  keys = jax.random.split(jax.random.key(0), 4)
  output = jax.random.normal(keys[0], (vocab_size, _WIDTH)) * _WIDTH**-0.5
  hidden = jax.random.normal(keys[1], (sequences, length, _WIDTH))
  action = jax.random.randint(keys[2], (sequences, length), 0, vocab_size)
  mask = jnp.ones((sequences, length), bool)
  weight, share = token_objectives.token_weights(mask, row.weighting)
  one = jnp.ones((sequences, length))
  batch = types.LeanBatch(
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
    parts, _ = objective(
      {"policy": policy, lean_objectives.BEHAVIOUR: old}, batch
    )
    return parts["policy"].mean

  policy = {"params": {"output": output, "hidden": hidden}}
  arguments = (policy, networks.head_of(policy), batch)
  compiled = _compiled(jax.value_and_grad(mean), *arguments)
  held = _peak()
  seconds = timing.seconds(lambda: compiled(*arguments), repeats)
  used = compiled.memory_analysis()
  return {
    "tokens": _TOKENS,
    "vocabulary": vocab_size,
    "width": _WIDTH,
    "chunk_tokens": chunk_tokens,
    "seconds": round(seconds, 3),
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
    output = params["params"]["output"]
    return jnp.einsum("...w,vw->...v", states, output)

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


def _peak() -> float:
  """Peak memory of the process so far, GiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
