"""Updates on packed tokens: those of padded rows, in fewer slots."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import algorithms, networks
from lco_jax.language import data, generation, samplers, training
from lco_jax.runs import fault_replay, starts
from lco_jax.training import (
  host_loop,
  optimizers,
  placement,
  program_cost,
  transfers,
)

# Flax and optax mix ranks.
pytestmark = pytest.mark.third_party

_SAMPLES, _PROMPTS, _PROMPT, _LENGTH, _WIDTH = 4, 8, 5, 9, 32
_CONFIG = networks.TransformerConfig(
  vocab_size=16,
  num_layers=2,
  width=_WIDTH,
  num_heads=4,
  num_kv_heads=2,
  mlp_width=48,
  qkv_bias=True,
  query_key_norm="head",
)


@functools.cache
def _samples():
  """Samples [G, N] of random tokens, whose lengths are uniform in 1 … C."""
  rng = np.random.default_rng(0)
  shape = (_SAMPLES, _PROMPTS)
  lengths = rng.integers(1, _LENGTH + 1, shape)
  mask = np.arange(_LENGTH) < lengths[..., None]
  padding = np.broadcast_to(rng.integers(0, 3, _PROMPTS), shape)
  prompt = rng.integers(1, 16, (_PROMPTS, _PROMPT))
  prompt = np.where(np.arange(_PROMPT) < padding[0, :, None], 0, prompt)
  action = rng.integers(1, 16, mask.shape)
  model = networks.make_language_model(_CONFIG)
  params = model.init(jax.random.key(0))
  hidden = generation.completion_hidden(
    model,
    params,
    jnp.asarray(prompt, jnp.int32),
    jnp.asarray(padding[0], jnp.int32),
    jnp.asarray(action.reshape(-1, _LENGTH), jnp.int32),
  ).reshape(*mask.shape, _WIDTH)
  log_probs = jax.nn.log_softmax(model.head(params, hidden))
  log_prob = np.take_along_axis(np.asarray(log_probs), action[..., None], -1)
  return data.Samples(
    prompt=np.broadcast_to(prompt, (_SAMPLES, *prompt.shape)).astype(np.int32),
    padding=padding.astype(np.int32),
    action=action.astype(np.int32),
    mask=mask,
    hidden=np.asarray(hidden),
    log_prob=np.where(mask, log_prob[..., 0], 0.0).astype(np.float32),
    reward=rng.normal(size=shape).astype(np.float32),
    correct=np.zeros(shape, bool),
    truncated=np.zeros(shape, bool),
    failed=np.zeros(shape, bool),
    first_visit=np.ones(shape, bool),
  )


def _make(algorithm, **changes):
  model = networks.make_language_model(_CONFIG)
  row = algorithms.ALGORITHMS[algorithm]
  settings = {
    "num_prompts": _PROMPTS,
    "num_samples": _SAMPLES,
    "num_epochs": 2,
    "num_minibatches": 2,
    "reference_coefficient": 0.01,
    "chunk_tokens": 3,
  }
  setup = training.Setup(
    model,
    row,
    row.policy_loss(),
    samplers.Sampler(_LENGTH),
    training.Options(**(settings | changes)),
  )
  schedule = optimizers.make_schedule("constant", 3e-4, 1)
  chain = optimizers.make_optimizer("adam", schedule, 1.0)
  return training.make_training(setup, {"policy": chain})


def _learn(task, packed, mesh="data:1", samples=None, seeds=1):
  """Learns once from the samples: parameters, metrics, and the program."""
  sizes = placement.parse_sizes(mesh)
  count = int(np.prod(list(sizes.values())))
  mesh = placement.make_mesh(seeds, _PROMPTS, jax.devices()[:count], sizes)
  params = networks.make_language_model(_CONFIG).init(jax.random.key(0))
  given = jax.tree.map(
    lambda leaf: transfers.Repeated(np.asarray(leaf), seeds), {"policy": params}
  )
  state = starts.begin(task, list(range(seeds)), mesh, given).state
  samples = dataclasses.replace(samples or _samples(), packed_tokens=packed)
  rollout = transfers.to_devices(
    jax.tree.map(lambda leaf: transfers.Repeated(leaf, seeds), samples),
    mesh,
    placement.ROLLOUTS,
  )
  traced = host_loop.trace_learning(task, mesh, state, rollout)
  state, metrics = traced.compile()(state, rollout)
  return transfers.to_host(state.params), transfers.to_host(metrics), traced


def _assert_same(found, expected, atol):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=atol),
    found,
    expected,
  )


_CASES = [
  ("lco_fisher", {}),
  ("lco_mse", {"num_microbatches": 2, "loss_temperature": 0.7}),
  ("grpo", {"reference_kl": "exact", "chunk_tokens": 0}),
  ("dapo", {"num_minibatches": 4, "lora_rank": 2}),
]


@pytest.mark.parametrize(("algorithm", "changes"), _CASES)
def test_an_update_is_that_of_padded_rows(algorithm, changes):
  """Losses, gradients, parameters and metrics, with minibatches and epochs."""
  task = _make(algorithm, **changes)
  expected, metrics, _ = _learn(task, None)
  size = int(task.count_packed(_samples().mask))
  whole = int(task.count_packed(np.ones_like(_samples().mask)))
  assert size < whole
  found, own, _ = _learn(task, size)
  _assert_same(found, expected, 1e-6)
  _assert_same(own, metrics, 2e-5)


@pytest.mark.parametrize(
  ("mesh", "parts"), [("data:2,fsdp:2", 1), ("fsdp:4,tensor:2", 2)]
)
def test_devices_pack_their_own(mesh, parts):
  """Each shard by itself; the places are those that the fullest needs."""
  task = _make("lco_fisher", num_microbatches=parts)
  expected, metrics, _ = _learn(task, None)
  sizes = placement.parse_sizes(mesh)
  shards, devices = sizes["fsdp"], sizes["data"]
  mask = _samples().mask
  streams = _PROMPTS // (shards * devices * parts)
  lengths = np.sort(mask.sum(-1) - 1, axis=0)[-2:].sum(0)
  size = shards * lengths.reshape(-1, streams).sum(-1).max()
  assert _count_on_mesh(task, sizes, mask) == size
  found, own, _ = _learn(task, int(size), mesh)
  _assert_same(found, expected, 1e-5)
  _assert_same(own, metrics, 1e-4)


def _count_on_mesh(task, sizes, mask):
  """The most places that a device of a mesh counts, as generation does."""
  own = placement.make_mesh(
    1, _PROMPTS, jax.devices()[: int(np.prod(list(sizes.values())))], sizes
  )
  spec = placement.P(None, None, ("data", "fsdp"))

  def count(mask):
    return jax.lax.pmax(task.count_packed(mask[0]), "data")[None]

  program = placement.compile(
    count, own, (spec,), placement.EVERYWHERE, mask[None]
  )
  return int(program(transfers.to_devices(mask[None], own, spec))[0])


def test_seeds_side_by_side():
  task = _make("lco_fisher")
  size = int(task.count_packed(_samples().mask))
  found, expected = (_learn(task, k, seeds=2)[0] for k in (size, None))
  _assert_same(found, expected, 1e-5)


@pytest.mark.parametrize(
  ("changes", "form"),
  [
    ({}, None),
    ({"window": 3, "window_layers": (0,)}, None),
    ({}, "nf4"),
    ({}, "int8"),
  ],
)
def test_tokens_are_read_as_in_padded_rows(changes, form):
  """Windows and narrow matrices, too; the order is the mask's."""
  config = dataclasses.replace(_CONFIG, qkv_bias=False, **changes)
  model = networks.make_language_model(config)
  params = model.init(jax.random.key(1))
  if form:
    params = networks.narrow(jax.tree.map(np.asarray, params), form)
    params = jax.tree.map(jnp.asarray, params)
  samples = _samples()
  mask = jnp.asarray(samples.mask.reshape(-1, _LENGTH))
  texts = (
    jnp.asarray(samples.prompt[0]),
    jnp.asarray(samples.padding[0]),
    jnp.asarray(samples.action.reshape(-1, _LENGTH)),
  )
  whole = generation.completion_hidden(model, params, *texts)
  size = int(mask[:, 1:].sum()) + 3
  packed, take = generation.packed_hidden(model, params, *texts, mask, size)
  np.testing.assert_allclose(packed[:-3], take(whole)[:-3], rtol=0, atol=2e-5)


def test_losses_of_whole_sequences_are_not_packed():
  of_sequences = [
    name for name, row in algorithms.ALGORITHMS.items() if row.of_sequences
  ]
  assert of_sequences
  for name in of_sequences:
    assert _make(name).count_packed is None


def test_fewer_slots_are_computed():
  """Of uneven lengths by a third at least, as counted in the program."""
  task = _make("lco_fisher", num_minibatches=1, reference_coefficient=0.0)
  lengths = _samples().mask.sum(-1)
  flops = [
    program_cost.count_flops(_learn(task, size)[2].stage.jaxpr.jaxpr, 1)
    for size in (None, int(task.count_packed(_samples().mask)))
  ]
  saved = 1 - (lengths.sum() - lengths.size) / (lengths.size * (_LENGTH - 1))
  assert saved > 1 / 3
  assert flops[1] < flops[0] * 0.85  # Prompts and attention stay.


def test_what_lies_behind_an_end_does_not_count():
  """Tokens there may be anything."""
  task = _make("lco_fisher")
  size = int(task.count_packed(_samples().mask))
  samples = _samples()
  other = dataclasses.replace(
    samples,
    action=np.where(samples.mask, samples.action, 7).astype(np.int32),
    hidden=np.where(samples.mask[..., None], samples.hidden, np.nan),
  )
  found, expected = (
    _learn(task, size, samples=own)[0] for own in (other, samples)
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_fault_of_one_device_of_several_is_replayed_whole():
  """One device replays what others had in their own places."""
  task = _make("lco_fisher")
  mesh = placement.make_mesh(1, _PROMPTS, jax.devices()[:1])
  state = transfers.to_host(starts.begin(task, [0], mesh).state)
  state = jax.tree.map(lambda leaf: leaf[0], state)
  few, whole = (
    fault_replay.replay(
      task, state, dataclasses.replace(_samples(), packed_tokens=packed)
    )
    for packed in (8, None)
  )
  jax.tree.map(
    np.testing.assert_array_equal, few.minibatches, whole.minibatches
  )


def test_places_of_any_minibatch():
  """The bound holds for every choice, and some choice needs it."""
  rng = np.random.default_rng(1)
  mask = np.arange(_LENGTH) < rng.integers(1, _LENGTH, (4, 6, 1))
  bound = int(generation.count_packed(jnp.asarray(mask), 2, 3))
  lengths = mask.sum(-1) - 1
  found = 0
  for _ in range(500):
    chosen = np.stack([rng.permutation(4)[:2] for _ in range(6)], axis=1)
    own = np.take_along_axis(lengths, chosen, axis=0).sum(0)
    found = max(found, own.reshape(3, 2).sum(1).max())
  assert found == bound
