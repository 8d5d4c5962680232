"""Generation and update of a pretrained model."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import processes
from experiments.common import timing
from lco_jax import algorithms, networks, pretrained
from lco_jax.language import data, generation, samplers
from lco_jax.language import training as language
from lco_jax.training import optimizers, placement, program, transfers

PROMPT_LENGTH = 64


class Case(NamedTuple):
  """Amount of work.

  Attributes:
    num_prompts: of PROMPT_LENGTH tokens.
    num_samples: completions of each.
    longest: tokens of a completion.
    shortest: likewise, where lengths are uniform up to the longest, and updates
      on packed tokens are compared; None if all are the longest.
    num_slots: completions that run at a time, to compare generation alone with
      all at a time; 0 for generation and update.
  """

  num_prompts: int
  num_samples: int
  longest: int = 24
  shortest: int | None = None
  num_slots: int = 0


CASES = {
  "8 prompts x 4": Case(8, 4),
  "32 prompts x 1": Case(32, 1),
  "8 prompts x 4, 4 to 64 tokens": Case(8, 4, 64, 4),
}
# Measured only if asked for.
LARGE_CASES = {
  "64 prompts x 8, 4 to 64 tokens, slots": Case(64, 8, 64, 4, num_slots=64)
}


def measure(
  case: Case,
  own: pretrained.Pretrained,
  row: algorithms.Algorithm,
  repeats: int,
) -> dict:
  """Measures generation, and updates on its completions.

  Args:
    case: amount of work.
    own: the model.
    row: the algorithm.
    repeats: calls; medians are returned, with the least and the most seconds.
  """
  model = networks.make_language_model(own.config)
  rng = np.random.default_rng(0)
  shape = case.num_samples, case.num_prompts
  prompt = jnp.asarray(
    rng.integers(0, own.config.vocab_size, (case.num_prompts, PROMPT_LENGTH)),
    jnp.int32,
  )
  limits = np.full(shape, case.longest, np.int32)
  if case.shortest is not None:
    limits = rng.integers(case.shortest, case.longest + 1, shape, np.int32)
  training = _make_training(case, model, row)
  mesh = placement.make_mesh(1, case.num_prompts, jax.local_devices()[:1])
  given = {"policy": jax.tree.map(lambda leaf: leaf[None], own.params)}
  state = program.initial_state(training, (0,), mesh, given)
  ways = {"generation": 0}
  if case.num_slots:
    ways["refilled_generation"] = case.num_slots
  generations = {
    name: _compile_generation(model, prompt, limits, num_slots, state)
    for name, num_slots in ways.items()
  }
  held = processes.count_held()
  seconds = timing.measure_in_turn(
    {
      name: functools.partial(generate, state.params["policy"])
      for name, generate in generations.items()
    },
    repeats,
  )
  done = {
    name: generate(state.params["policy"])
    for name, generate in generations.items()
  }
  # Behind first tokens: each way computes so many.
  slots = {
    f"{name}_slots": (ways[name] or limits.size) * int(own.num_steps.max())
    for name, own in done.items()
  }
  updates = {}
  if not case.num_slots:
    reward = rng.integers(0, 2, shape)
    samples = _make_samples(done["generation"], prompt, reward, mesh)
    updates["update"] = samples
    slots["update_slots"] = slots["generation_slots"]
    if case.shortest is not None:
      packed = int(training.count_packed(done["generation"].mask))
      updates["packed_update"] = dataclasses.replace(
        samples, packed_tokens=packed
      )
      slots["packed_update_slots"] = packed
  learning = {
    name: _compile_update(training, mesh, state, own)
    for name, own in updates.items()
  }

  def update(name):
    nonlocal state
    state, metrics = learning[name](state, updates[name])
    return metrics

  seconds |= timing.measure_in_turn(
    {name: functools.partial(update, name) for name in updates}, repeats
  )
  whole = sum(
    seconds[name].median for name in ("generation", "update") if name in seconds
  )
  return {
    **_describe(seconds, int(limits.sum())),
    "step_seconds": round(whole, 3),
    **slots,
    "extra_memory_gib": round(processes.count_peak() - held, 3),
  }


def _describe(
  seconds: Mapping[str, timing.Timing], num_tokens: int
) -> dict[str, float | list[float]]:
  """Figures of what was measured, by its name."""
  found = {}
  for name, own in seconds.items():
    found |= {
      f"{name}_tokens_per_second": round(num_tokens / own.median, 1),
      f"{name}_seconds": round(own.median, 3),
      f"{name}_seconds_range": [round(own.least, 3), round(own.most, 3)],
      f"{name}_first_seconds": round(own.first, 3),
    }
  return found


def _make_training(
  case: Case, model: networks.LanguageModel, row: algorithms.Algorithm
) -> program.Training:
  """Makes a training of one step on all samples."""
  setup = language.Setup(
    model,
    row,
    row.policy_loss(),
    samplers.Sampler(case.longest),
    language.Options(
      num_prompts=case.num_prompts,
      num_samples=case.num_samples,
      advantage="batch_centred",
    ),
    keeps_reference=False,
  )
  optimizer = optimizers.make_optimizer(
    "adam", optax.constant_schedule(1e-6), 1.0
  )
  return language.make_training(setup, {"policy": optimizer})


def _compile_generation(model, prompt, limits, num_slots, state) -> Callable:
  """Parameters of a seed [1, ...] → Completion [G, N]."""
  keys = jax.random.split(jax.random.key(0), limits.shape)

  def sample(params):
    return samplers.complete_prompts(
      model,
      jax.tree.map(lambda leaf: leaf[0], params),
      prompt,
      jnp.zeros(len(prompt), jnp.int32),
      keys,
      int(limits.max()),
      (),  # No token ends a completion: all are as long as they may be.
      generation.Sampling(),
      num_slots,
      jnp.asarray(limits),
    )

  return processes.compile_for(sample, state.params["policy"])


def _make_samples(done, prompt, reward, mesh) -> data.Samples:
  """Samples [1, G, N] on a mesh."""
  shape = (1, *done.truncated.shape)
  hidden, log_prob = done.observed
  blank = np.zeros(shape, bool)
  samples = data.Samples(
    prompt=np.broadcast_to(prompt, (*shape, prompt.shape[-1])),
    padding=np.zeros(shape, np.int32),
    action=np.asarray(done.tokens)[None],
    mask=np.asarray(done.mask)[None],
    hidden=np.asarray(hidden)[None],
    log_prob=np.where(done.mask, log_prob, 0.0)[None].astype(np.float32),
    reward=np.asarray(reward, np.float32)[None],
    correct=blank,
    truncated=blank,
    failed=blank,
    first_visit=~blank,
  )
  return transfers.put_local(samples, mesh, placement.ROLLOUTS)


def _compile_update(training, mesh, state, samples) -> Callable:
  """(state, samples) → (state, metrics); the state is donated."""

  def learn(state, samples):
    step = functools.partial(program.learn_step, training)
    state, metrics = placement.each_seed(step)(state, state.actor, samples)
    return state, placement.gather_seeds(metrics, axis=0)

  return placement.compile(
    learn,
    mesh,
    (placement.STATE, placement.ROLLOUTS),
    (placement.STATE, placement.EVERYWHERE),
    state,
    samples,
    donate_argnums=(0,),
    long_reductions=True,
  )
