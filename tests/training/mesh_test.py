"""Parameters divided over a mesh: the same training, in parts."""

import functools

import jax
import numpy as np
import pytest

from lco_jax import algorithms, networks, tasks
from lco_jax.language import generation, samplers, training
from lco_jax.runs import starts
from lco_jax.training import optimizers, placement, transfers
from lco_jax.training import program as program_lib

# Flax and optax mix ranks.
pytestmark = pytest.mark.third_party

_PROMPTS, _SAMPLES, _UPDATES = 8, 4, 5
_MESHES = (
  "data:8",
  "fsdp:8",
  "data:2,fsdp:4",
  "fsdp:4,tensor:2",
  "tensor:2,data:4",
)


def _make(algorithm, rate=1e-3, num_layers=2, **changes):
  """Training of a small Llama that every mesh divides."""
  task = tasks.make("parity:6")
  model = networks.make_language_model(
    networks.TransformerConfig(
      vocab_size=task.vocab_size + task.vocab_size % 2,
      num_layers=num_layers,
      width=32,
      num_heads=4,
      num_kv_heads=2,
      mlp_width=64,
      tied_embeddings=False,
    )
  )
  row = algorithms.ALGORITHMS[algorithm]
  settings = {
    "num_prompts": _PROMPTS,
    "num_samples": _SAMPLES,
    "num_epochs": 2,
    "num_minibatches": 2,
    "num_microbatches": 1,
    "reference_coefficient": 0.01,
    "chunk_tokens": 3,
  }
  options = training.Options(**(settings | changes))
  setup = training.Setup(
    model,
    row,
    row.policy_loss(),
    samplers.make_sampler(
      task, model, options.num_samples, generation.Sampling()
    ),
    options,
  )
  schedule = optimizers.make_schedule("constant", rate, 1)
  chain = optimizers.make_optimizer("adam", schedule, 1.0)
  return training.make_training(setup, {"policy": chain})


def _start(task, mesh, seeds=(0,)):
  sizes = placement.parse_sizes(mesh)
  count = int(np.prod(list(sizes.values())))
  mesh = placement.make_mesh(
    len(seeds), task.num_streams, jax.devices()[:count], sizes
  )
  return mesh, starts.begin(task, seeds, mesh).state


def _run(task, mesh, num_updates=_UPDATES, seeds=(0,)):
  mesh, state = _start(task, mesh, seeds)
  programs = program_lib.compile_chunks(task, mesh, state, [num_updates])
  return programs[num_updates](state)


@functools.cache
def _alone(algorithm, seed=0, **changes):
  state, metrics = _run(_make(algorithm, **changes), "data:1", seeds=(seed,))
  return transfers.to_host((state, metrics))


@pytest.mark.parametrize("mesh", _MESHES)
@pytest.mark.parametrize("algorithm", ["lco_fisher", "grpo"])
def test_a_mesh_trains_as_one_device_does(algorithm, mesh):
  task = _make(algorithm, num_layers=4)
  state, metrics = transfers.to_host(_run(task, mesh))
  expected, expected_metrics = _alone(algorithm, num_layers=4)
  _assert_same_params(state.params, expected.params)
  for name, values in metrics.items():
    np.testing.assert_allclose(
      values, expected_metrics[name], rtol=2e-3, atol=1e-4, err_msg=name
    )


def _assert_same_params(found, expected, atol=1e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol),
    found,
    expected,
  )


@pytest.mark.parametrize("mesh", ["fsdp:4", "seeds:2,data:2,fsdp:2"])
def test_several_seeds(mesh):
  """Side by side on each device, or divided: each as if alone."""
  task = _make("grpo")
  state, _ = _run(task, mesh, seeds=(0, 1))
  for seed in (0, 1):
    alone, _ = _alone("grpo", seed)
    _assert_same_params(
      jax.tree.map(
        lambda leaf, seed=seed: leaf[seed : seed + 1],
        transfers.to_host(state.params),
      ),
      alone.params,
    )


@pytest.mark.parametrize(
  "changes",
  [
    {"diagnostics": True},
    {"beta_rule": "feedback", "kl_budget": 2e-3, "num_samples": 6},
    {"staleness": 2, "stale_correction": "truncated"},
    {"max_kl": 1e-3},
  ],
  ids=["diagnostics", "feedback", "staleness", "max_kl"],
)
def test_options_on_a_mesh(changes):
  """Parts beside the policy, such as β by feedback, included."""
  task = _make("lco_fisher", rate=3e-4, **changes)
  (found, metrics), (expected, others) = (
    transfers.to_host(_run(task, mesh, num_updates=2))
    for mesh in ("fsdp:4", "data:1")
  )
  _assert_same_params(found.params, expected.params)
  for name in ("kl_old_new", "ratio_q95"):
    np.testing.assert_allclose(metrics[name], others[name], atol=1e-4)


def test_no_device_holds_more_than_its_part():
  """Of parameters and of Adam's moments, an eighth and what cannot be."""
  _, state = _start(_make("grpo"), "fsdp:8")
  for tree in (state.params["policy"], state.opt_state["policy"]):
    leaves = jax.tree.leaves(tree)
    whole = sum(leaf.nbytes for leaf in leaves)
    own = sum(leaf.addressable_shards[3].data.nbytes for leaf in leaves)
    assert own <= whole / 6


@pytest.mark.parametrize("mesh", ["fsdp:8", "fsdp:4,tensor:2"])
def test_microbatches_on_a_mesh(mesh):
  """A device's prompts divide into microbatches, as on one device."""
  task = _make("grpo", rate=3e-4, num_prompts=16, num_microbatches=2)
  found, expected = (
    transfers.to_host(_run(task, own, num_updates=2)[0].params)
    for own in (mesh, "data:1")
  )
  _assert_same_params(found, expected)


def test_a_state_moves_to_any_mesh():
  """Bit for bit, in parts and whole."""
  task = _make("grpo")
  expected = transfers.to_host(_start(task, "data:1")[1])
  for name in _MESHES:
    mesh, state = _start(task, name)
    specs = placement.make_state_specs(state, mesh)
    placed = transfers.to_devices(expected, mesh, specs)
    for own, like in zip(
      jax.tree.leaves(placed), jax.tree.leaves(state), strict=True
    ):
      assert own.sharding == like.sharding
    jax.tree.map(
      np.testing.assert_array_equal, transfers.to_host(placed), expected
    )


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("fsdp", "want AXIS:SIZE"),
    ("fsdp:0", "got 'fsdp:0'"),
    ("fsdp:2x", "got 'fsdp:2x'"),
    ("fspd:8", "unknown axis 'fspd' .did you mean fsdp"),
    ("data:2,data:4", "data is there twice"),
    ("data:2,fsdp:2", "has 4 devices, but there are 8"),
    ("seeds:8", "seeds:8 does not divide the number of learners"),
    ("fsdp:2,data:4", "data × fsdp, 8, does not divide"),
    ("data:2,fsdp:2,tensor:2", "seeds and data must be 1"),
  ],
)
def test_a_mesh_that_cannot_be(text, says):
  with pytest.raises(ValueError, match=says):
    placement.make_mesh(1, 12, jax.devices(), placement.parse_sizes(text))


@pytest.mark.parametrize(
  ("axis", "name"),
  [("fsdp", "width"), ("tensor", "num_kv_heads"), ("tensor", "vocab_size")],
)
def test_a_mesh_must_divide_the_model(axis, name):
  config = networks.TransformerConfig(
    **{
      "vocab_size": 24,
      "num_layers": 1,
      "width": 24,
      "num_heads": 24,
      "num_kv_heads": 24,
      "mlp_width": 24,
      "head_dim": 2,
      name: 12 if name == "num_kv_heads" else 26,
    }
  )
  networks.check_divisible(config, {axis: 2})
  with pytest.raises(ValueError, match=f"{axis}:8 .* the model's {name}"):
    networks.check_divisible(config, {axis: 8})
