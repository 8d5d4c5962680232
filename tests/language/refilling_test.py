"""Slots that are refilled: the same completions, in fewer computed slots."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lco_jax import networks
from lco_jax.language import generation, samplers
from lco_jax.training import placement, transfers

_END = 1
_VOCABULARY = 12
_LENGTH = 20
_NUM_SAMPLES = 6
_PADDING = np.array([0, 2, 3, 1], np.int32)
_PLAIN = generation.Sampling()


def _make_model(form=None, **changes):
  config = networks.TransformerConfig(
    **{
      "vocab_size": _VOCABULARY,
      "num_layers": 2,
      "width": 16,
      "num_heads": 4,
      "num_kv_heads": 2,
      "mlp_width": 32,
    }
    | changes
  )
  model = networks.make_language_model(config)
  params = jax.jit(model.init)(jax.random.key(0))
  if form is not None:
    params = networks.narrow(jax.tree.map(np.asarray, params), form)
  prompt = jax.random.randint(
    jax.random.key(3), (len(_PADDING), 5), 2, _VOCABULARY, jnp.int32
  )
  return model, params, prompt


def _make(**changes):
  model, params, prompt = _make_model(**changes)
  return functools.partial(
    jax.jit(
      functools.partial(generation.generate, model),
      static_argnames=("num_tokens", "end", "sampling", "num_slots"),
    ),
    params,
    prompt,
    _PADDING,
    jax.random.split(jax.random.key(5), _NUM_SAMPLES * len(_PADDING)),
    num_tokens=_LENGTH,
  )


def _check_equal(found, expected):
  """The same tokens; numbers up to rounding. Steps may differ."""
  for name in ("tokens", "mask", "truncated"):
    np.testing.assert_array_equal(
      getattr(found, name), getattr(expected, name), err_msg=name
    )
  for name in ("behaviour_log_prob", "observed"):
    own, other = getattr(found, name), getattr(expected, name)
    mask = np.asarray(found.mask).reshape(*own.shape[:2], *[1] * (own.ndim - 2))
    np.testing.assert_allclose(
      np.where(mask, own, 0), np.where(mask, other, 0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
  ("changes", "sampling"),
  [
    ({}, _PLAIN),
    ({"window": 4, "window_layers": (1,)}, generation.Sampling(0.7, 6, 0.9)),
    ({"width": 64, "mlp_width": 64, "form": "int8"}, _PLAIN),
    ({}, generation.Sampling(temperature=0)),
  ],
)
def test_completions_are_those_of_a_slot_for_each(changes, sampling):
  """One slot or several; rings are used up and begun anew many times."""
  generate = _make(**changes)
  expected = generate(end=_END, sampling=sampling)
  lengths = np.sum(expected.mask, axis=1)
  if sampling.temperature:
    assert lengths.min() == 1 and lengths.max() > 12  # Else all is easy.
  for num_slots in (1, 5, 23):
    found = generate(end=_END, sampling=sampling, num_slots=num_slots)
    _check_equal(found, expected)
    # Each slot reads each token but a sequence's last.
    steps = np.asarray(found.num_steps)
    assert steps.max() >= np.ceil(np.sum(lengths - 1) / num_slots)
    if num_slots == 1:
      assert steps.max() == np.sum(lengths - 1)
    assert (steps >= lengths - 1).all()


def test_limits_end_sequences():
  """Each of its own; nothing but its length differs. None is left waiting."""
  generate = _make()
  whole = generate(end=(), sampling=_PLAIN)
  assert np.asarray(whole.mask).all() and np.asarray(whole.truncated).all()
  limits = jnp.arange(len(whole.tokens)) % _LENGTH + 1
  mask = np.arange(_LENGTH) < np.asarray(limits)[:, None]
  for num_slots in (0, 5):
    found = generate(
      end=(), sampling=_PLAIN, num_slots=num_slots, limits=limits
    )
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_array_equal(found.tokens, np.where(mask, whole.tokens, 0))
    assert np.asarray(found.truncated).all()


def test_all_end_with_their_first_token():
  done = _make()(end=tuple(range(_VOCABULARY)), sampling=_PLAIN, num_slots=3)
  assert np.sum(done.mask) == len(done.mask)
  assert not np.asarray(done.truncated).any()
  assert np.max(done.num_steps) == 0


@pytest.mark.parametrize("num_slots", [0, 4, 5])
@pytest.mark.parametrize(
  "mesh", ["data:2,tensor:2", "data:2,fsdp:2", "fsdp:2,tensor:2"]
)
def test_devices_of_a_mesh_end_together(mesh, num_slots):
  """One shard's completions are short; none waits for it, nor it for others."""
  model, params, prompt = _make_model()
  shape = _NUM_SAMPLES, len(_PADDING)
  keys = jax.random.split(jax.random.key(5), shape)
  limits = np.where(np.arange(shape[1]) < 2, 3, _LENGTH)
  limits = np.broadcast_to(limits, shape).astype(np.int32)

  def complete(params, prompt, padding, keys, limits):
    done = samplers.complete_prompts(
      model,
      params,
      prompt,
      padding,
      keys,
      _LENGTH,
      _END,
      _PLAIN,
      num_slots,
      limits,
    )
    return done.tokens

  arrays = (prompt, _PADDING, keys, limits)
  expected = jax.jit(complete)(params, *arrays)
  sizes = placement.parse_sizes(mesh)
  count = int(np.prod(list(sizes.values())))
  mesh = placement.make_mesh(1, len(_PADDING), jax.devices()[:count], sizes)
  rows, columns = P("data"), P(None, "data")
  divided = jax.shard_map(
    complete,
    mesh=mesh,
    in_specs=(P(), rows, rows, columns, columns),
    out_specs=columns,
    axis_names={"seeds", "data"},
    check_vma=False,
  )
  params = transfers.place_params(params, mesh)
  with jax.set_mesh(mesh):
    found = jax.jit(divided)(params, *arrays)
  np.testing.assert_array_equal(found, expected)


def test_seeds_refill_their_own_slots():
  """Under `vmap`, as several seeds of a device are trained."""
  generate = _make()
  run = functools.partial(
    generate.func, *generate.args[:3], num_tokens=_LENGTH, end=_END
  )
  count = _NUM_SAMPLES * len(_PADDING)
  keys = jax.random.split(jax.random.key(7), (3, count))
  found = jax.vmap(
    lambda keys: run(keys, sampling=_PLAIN, num_slots=5), in_axes=0
  )(keys)
  for seed, own in enumerate(keys):
    _check_equal(
      jax.tree.map(lambda leaf, seed=seed: leaf[seed], found),
      run(own, sampling=_PLAIN),
    )
