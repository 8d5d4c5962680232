"""Parameters divided over a mesh: the same training, in parts."""

import functools

import jax
import numpy as np
import pytest

from lco_jax import algorithms, networks, tasks
from lco_jax.language import generation, samplers, training
from lco_jax.runs import runner
from lco_jax.training import optimizers, placement
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


def _make(algorithm, **changes):
  """Training of a Llama of four layers, that every mesh divides."""
  task = tasks.make("parity:6")
  model = networks.make_language_model(
    networks.TransformerConfig(
      vocab_size=task.vocab_size + task.vocab_size % 2,
      num_layers=4,
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
  setup = training.Setup(
    model,
    row,
    row.policy_loss(),
    samplers.make_sampler(task, model, _SAMPLES, generation.Sampling()),
    training.Options(**(settings | changes)),
  )
  schedule = optimizers.make_schedule("constant", 1e-3, 1)
  chain = optimizers.make_optimizer("adam", schedule, 1.0)
  return training.make_training(setup, {"policy": chain})


def _start(task, mesh):
  sizes = placement.parse_sizes(mesh)
  count = int(np.prod(list(sizes.values())))
  mesh = placement.make_mesh(1, task.num_streams, jax.devices()[:count], sizes)
  return mesh, runner.begin(task, (0,), mesh).state


def _run(task, mesh, num_updates=_UPDATES):
  mesh, state = _start(task, mesh)
  programs = program_lib.compile_chunks(task, mesh, state, [num_updates])
  return programs[num_updates](state)


@functools.cache
def _alone(algorithm, **changes):
  state, metrics = _run(_make(algorithm), "data:1")
  return placement.to_host((state, metrics))


@pytest.mark.parametrize("mesh", _MESHES)
@pytest.mark.parametrize("algorithm", ["lco_fisher", "grpo"])
def test_a_mesh_trains_as_one_device_does(algorithm, mesh):
  state, metrics = placement.to_host(_run(_make(algorithm), mesh))
  expected, expected_metrics = _alone(algorithm)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
    state.params,
    expected.params,
  )
  for name, values in metrics.items():
    np.testing.assert_allclose(
      values, expected_metrics[name], rtol=2e-3, atol=1e-4, err_msg=name
    )
