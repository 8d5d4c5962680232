"""Memory and cost of a run on a pretrained model, before it begins."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lco_jax import networks, pretrained
from lco_jax.language import reading, text_completion
from lco_jax.networks import partitioning
from lco_jax.trainers import idle_settings, llm
from lco_jax.trainers import run as run_lib
from lco_jax.training import memory as memory_lib
from lco_jax.training import placement

# Arrays of a chunk's logits that are held side by side: of the policy, of the
# behaviour policy, the target, and their gradient.
_LOGIT_ARRAYS = 4
# What a process of Python holds that has read the code, measured: bytes.
_PROCESS = 450 * 2**20


def estimate(settings: Mapping, run: llm.Run, mesh: Mesh) -> str:
  """Estimates memory and cost, and lists settings without effect.

  Args:
    settings: of the run.
    run: built from them.
    mesh: that it is divided over.
  """
  config, training = run.model_config, run.training
  learners = run_lib.num_learners(settings)
  here = learners // mesh.shape[placement.SEED_AXIS]
  shards = placement.count_data_parts(mesh)
  prompts = settings["num_prompts"] // shards
  samples = settings["num_samples"]
  steps = settings["num_epochs"] * settings["num_minibatches"]
  length = text_completion.bucket_length(
    max(
      len(run.asking.prompt(run.asking.task.problem("train", n)))
      for n in range(llm.NUM_CHECKED_PROMPTS)
    )
  )
  answer = settings["completion_length"]
  microbatch = (
    prompts
    * samples
    // (settings["num_minibatches"] * settings["num_microbatches"])
  )
  shared = samples // settings["num_minibatches"]
  tokens = microbatch // shared * length + microbatch * answer
  size = networks.count_numbers(run.pretrained.params)
  lines = [
    f"model {settings['model']}: {size:,} parameters,"
    f" {config.num_layers} layers of width {config.width}, vocabulary"
    f" {config.vocab_size:,}, {settings['dtype']}",
    f"task {settings['task']}: prompts of up to {length} tokens,"
    f" completions of up to {answer}",
    "",
    "each seed, each update:",
    f"  {settings['num_prompts']} prompts × {samples} samples ="
    f" {settings['num_prompts'] * samples} completions, at most"
    f" {settings['num_prompts'] * samples * answer:,} tokens",
    f"  {steps} optimizer step{'s' * (steps > 1)} of"
    f" {settings['num_prompts'] * samples // settings['num_minibatches']}"
    f" completions, gradients added up over {settings['num_microbatches']} of"
    f" {microbatch} on each of {shards} device(s): {tokens:,} tokens"
    " read at a time",
    f"in all: {settings['num_updates']} updates,"
    f" {settings['num_updates'] * training.steps_per_update:,} completions,"
    f" {settings['num_updates'] * steps:,} optimizer steps,"
    f" {learners} learner(s)",
    "",
    f"memory on each of {mesh.size} {jax.default_backend()} device(s),"
    f" {here} learner(s):",
  ]
  memory = _memory(
    settings,
    run,
    mesh,
    [(microbatch // shared, length), (microbatch, answer)],
    _cached(settings["generation_slots"], prompts, samples, length, answer),
    length + answer,
  )
  lines += _table({name: here * size for name, size in memory.items()})
  lines += [
    "",
    "memory of the host (for the CPU backend, which is both, add them):",
    *_table(_host_memory(settings, run, mesh, learners)),
  ]
  idle = idle_settings.find_idle(settings)
  lines += ["", "without effect under these settings:" if idle else ""]
  lines += [f"  {reason}" for reason in idle]
  return "\n".join(lines).rstrip()


def _cached(
  num_slots: int, prompts: int, samples: int, length: int, answer: int
) -> int:
  """Tokens in caches: of sequences that run, and of prompts that wait."""
  completions = prompts * samples
  if num_slots == 0 or num_slots >= completions:
    return completions * (length + answer)
  return num_slots * (length + answer) + prompts * length


def _table(memory: Mapping[str, int]) -> list[str]:
  """A line for each, and their sum."""
  rows = {**memory, "about": sum(memory.values())}
  return [f"  {name:<52}{_size(size):>10}" for name, size in rows.items()]


def _shapes(run: llm.Run) -> tuple[dict[str, Any], Any]:
  """A learner's parts of the parameters, and its optimizer's state."""
  parts = jax.eval_shape(
    run.training.init_params, jax.random.key(0), dict(run.given)
  )
  return parts, jax.eval_shape(
    run.training.optimizers["policy"].init, parts["policy"]
  )


def _host_memory(
  settings: Mapping, run: llm.Run, mesh: Mesh, learners: int
) -> dict[str, int]:
  """Bytes that a process which saves and evaluates holds beside its devices'.

  Args:
    settings: of the run.
    run: built from them.
    mesh: that it is divided over.
    learners: of the run.
  """
  saved = _shapes(run)
  written = learners * sum(map(_bytes, saved))
  if placement.divides_parameters(mesh.shape):  # Each process writes its parts.
    sizes = dict(mesh.shape)
    here = learners // sizes[placement.SEED_AXIS]
    written = here * sum(_bytes(tree, sizes) for tree in saved)
    written *= len(mesh.local_devices)
  return {
    "the models as they were read": sum(
      _bytes(leaf)
      for leaf in jax.tree.leaves(dict(run.given))
      if not isinstance(leaf, pretrained.StoredArray)
    ),
    "a checkpoint while it is written": written,
    "this process, and those that score": _PROCESS
    * (1 + settings["scoring_workers"]),
  }


def _memory(
  settings: Mapping,
  run: llm.Run,
  mesh: Mesh,
  reads: Sequence[tuple[int, int]],
  cached: int,
  slots: int,
) -> dict[str, int]:
  """Bytes of one learner on one device, by what they are for.

  Args:
    settings: of the run.
    run: built from them.
    mesh: that it is divided over.
    reads: (sequences, tokens of each) that are read at a time: of prompts, then
      of completions.
    cached: tokens in caches while sequences are generated.
    slots: tokens of a sequence.
  """
  config = run.model_config
  tokens = sum(rows * length for rows, length in reads)
  answers = reads[-1][0] * reads[-1][1]
  parts, state = _shapes(run)
  sizes = dict(mesh.shape)
  tensor = sizes.get(partitioning.TENSOR_AXIS, 1)
  trained, held = _bytes(parts["policy"], sizes), _bytes(parts, sizes)
  weights = _bytes(run.pretrained.params, sizes)
  made = {
    "gradients": weights,
    "weights with what adapters add": weights * bool(settings["lora_rank"]),
  }
  if settings.get("base_format", "float32") != "float32":
    # Widened one at a time, with their gradients; the output layer stays.
    blocks = networks.count_numbers(run.pretrained.params["params"]["blocks"])
    made = {
      "gradients": trained,
      "a widened layer": 2 * 4 * blocks // config.num_layers,
      "the widened output layer": 2 * 4 * config.vocab_size * config.width,
    }
  item = 2 if config.dtype == "bfloat16" else 4
  apart = weights
  if sizes.get(partitioning.FSDP_AXIS, 1) > 1:
    gathered = networks.count_numbers(run.pretrained.params) * item // tensor
    made["layers gathered where they are used"] = (
      2 * gathered // config.num_layers
    )
    if llm.choose_gather_dtype(config, mesh, None) is not None:
      apart = gathered
  # What a block keeps for the backward pass: its norms, queries, keys, values,
  # attention's output and the SwiGLU; or only what it read.
  width = config.num_heads * config.head_features
  kept, attending = config.width, 1
  if not config.rematerialize:
    kept = 6 * config.width + 4 * width + 4 * config.mlp_width
    attending = config.num_layers
  weighing = sum(
    # Weights of blocks are computed again in the backward pass.
    rows * config.attention_block
    if 0 < config.attention_block < length
    else rows * length * attending
    for rows, length in reads
  )
  chunk = reading.resolve_chunk(settings["chunk_tokens"], config.vocab_size)
  chunk = min(chunk or answers, answers)
  return {
    f"parameters ({', '.join(sorted(parts))})": held,
    **made,
    "weights taken apart while generating": apart,
    "optimizer state": _bytes(state, sizes),
    # An update that is not finite is not applied: the state before is kept.
    "parameters and state before the update": trained
    + _bytes(state, sizes)
    + _bytes(parts.get(memory_lib.PAST_POLICY, ()), sizes),
    "keys and values while generating": (
      2 * config.num_layers * config.num_kv_heads * config.head_features
    )
    * cached
    * item
    // tensor,
    "activations": tokens * config.num_layers * kept * item,
    # Softmax is in float32, whatever the type.
    "attention weights": (weighing * config.num_heads * slots * 4 // tensor),
    f"logits, {chunk:,} tokens at a time": (
      _LOGIT_ARRAYS + 2 * (settings.get("reference_kl") == "exact")
    )
    * 4
    * config.vocab_size
    * chunk
    // tensor,
  }


def _bytes(tree: Any, sizes: Mapping[str, int] | None = None) -> int:
  """Bytes of arrays, or of a device's part on a mesh of such sizes."""

  def count(path, leaf):
    whole = int(np.prod(leaf.shape)) * leaf.dtype.itemsize
    return whole // partitioning.count_parts(path, leaf.shape, sizes or {})

  counts = jax.tree_util.tree_map_with_path(count, tree)
  return sum(jax.tree.leaves(counts))


def _size(number: float) -> str:
  """Bytes as a person reads them."""
  for unit in ("B", "KiB", "MiB"):
    if number < 1024:
      return f"{number:.0f} {unit}"
    number /= 1024
  return f"{number:.1f} GiB"
