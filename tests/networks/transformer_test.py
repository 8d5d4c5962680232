"""The transformer against a float64 oracle; causality and padding."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lco_jax.networks import transformer

_PADDING = np.array([0, 2, 5], np.int32)
_LENGTH = 9


def _config(num_kv_heads=2, **options):
  return transformer.TransformerConfig(
    vocab_size=20,
    num_layers=2,
    width=32,
    num_heads=4,
    num_kv_heads=num_kv_heads,
    mlp_width=48,
    **options,
  )


def _model(config, num_outputs=None):
  model = transformer.Transformer(config, num_outputs)
  tokens = jax.random.randint(
    jax.random.key(0), (len(_PADDING), _LENGTH), 0, 20, jnp.int32
  )
  params = jax.jit(model.init)(jax.random.key(1), tokens, _PADDING)
  return model, params, tokens


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, tokens, padding, cache=None, start=0):
  return model.apply(params, tokens, padding, cache, start)


def _oracle(config, params, tokens):
  """One unpadded sequence, in float64 and loops: logits [L, V]."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
  heads, groups = config.num_heads, config.num_heads // config.num_kv_heads
  size = config.head_features

  def norm(x, scale):
    rms = np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_epsilon)
    return x / rms * scale

  def rotate(x, position):
    pairs = x.reshape(2, -1)  # (i, i + D/2)
    angle = position / config.rope_theta ** (np.arange(size // 2) / (size // 2))
    return np.concatenate(
      [
        pairs[0] * np.cos(angle) - pairs[1] * np.sin(angle),
        pairs[1] * np.cos(angle) + pairs[0] * np.sin(angle),
      ]
    )

  hidden = p["embed"]["embedding"][np.asarray(tokens)]
  for layer in range(config.num_layers):
    b = jax.tree.map(lambda x, at=layer: x[at], p["blocks"])
    x = norm(hidden, b["attention_norm"]["scale"])
    out = []
    for t in range(len(x)):
      mixed = []
      for head in range(heads):

        def part(name, which, at, own=b, seen=x):
          weights = own["attention"][name]
          full = seen[at] @ weights["kernel"] + weights.get("bias", 0.0)
          return full[which * size : (which + 1) * size]

        query = rotate(part("query", head, t), t)
        scores = [
          query @ rotate(part("key", head // groups, s), s) / np.sqrt(size)
          for s in range(t + 1)
        ]
        weights = np.exp(scores - np.max(scores))
        weights /= weights.sum()
        mixed.append(
          sum(
            w * part("value", head // groups, s) for s, w in enumerate(weights)
          )
        )
      out.append(np.concatenate(mixed) @ b["attention"]["output"]["kernel"])
    hidden = hidden + np.array(out)
    x = norm(hidden, b["mlp_norm"]["scale"])
    gate = x @ b["gate"]["kernel"]
    gated = gate / (1 + np.exp(-gate)) * (x @ b["up"]["kernel"])
    hidden = hidden + gated @ b["down"]["kernel"]
  hidden = norm(hidden, p["final_norm"]["scale"])
  if config.tied_embeddings:
    return hidden @ p["embed"]["embedding"].T
  return hidden @ p["output"]["kernel"]


_SHAPES = pytest.mark.parametrize(
  "options",
  [
    {"num_kv_heads": 4},
    {"num_kv_heads": 2, "qkv_bias": True},
    {"num_kv_heads": 1, "tied_embeddings": False, "head_dim": 6},
  ],
)


def _check_against_the_oracle(config, error):
  """Randomises biases and scales, which start at 0 and 1."""
  model, params, tokens = _model(config)
  params = jax.tree.map(
    lambda x: (
      x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype)
    ),
    params,
  )
  logits, _ = _apply(model, params, tokens, _PADDING)
  for row, padding in enumerate(_PADDING):
    expected = _oracle(config, params, tokens[row, padding:])
    np.testing.assert_allclose(
      logits[row, padding:], expected, rtol=error, atol=error
    )


@_SHAPES
def test_logits_against_an_oracle(options):
  _check_against_the_oracle(_config(**options), 1e-4)


@_SHAPES
@pytest.mark.third_party  # flax's RMSNorm widens float32 parameters.
def test_logits_in_double_precision(options, float64):
  """Nothing in between is narrower."""
  _check_against_the_oracle(_config(dtype="float64", **options), 1e-12)


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_the_cache_changes_nothing(num_kv_heads):
  """A prompt of six slots, then token by token."""
  config = _config(num_kv_heads)
  model, params, tokens = _model(config)
  whole, none = _apply(model, params, tokens, _PADDING)
  assert none is None
  cache = transformer.empty_cache(config, len(tokens), _LENGTH)
  parts = []
  for start, stop in [(0, 6), (6, 7), (7, 8), (8, 9)]:
    logits, cache = _apply(
      model, params, tokens[:, start:stop], _PADDING, cache, start
    )
    parts.append(logits)
  found = jnp.concatenate(parts, axis=1)
  for row, padding in enumerate(_PADDING):
    np.testing.assert_allclose(
      found[row, padding:], whole[row, padding:], atol=1e-5
    )


def test_padding_changes_nothing():
  model, params, tokens = _model(_config())
  logits, _ = _apply(model, params, tokens, _PADDING)
  other = tokens.at[1, :2].set(7).at[2, :5].set(3)
  changed, _ = _apply(model, params, other, _PADDING)
  for row, padding in enumerate(_PADDING):
    alone, _ = _apply(
      model, params, tokens[row : row + 1, padding:], np.zeros(1, np.int32)
    )
    np.testing.assert_allclose(logits[row, padding:], alone[0], atol=1e-5)
    np.testing.assert_array_equal(logits[row, padding:], changed[row, padding:])


def test_no_token_sees_a_later_one():
  """Gradients of each position's logits in the embeddings of all positions."""
  config = _config()
  model, params, tokens = _model(config)
  table = params["params"]["embed"]["embedding"]

  def logits_at(rows, position):
    """Every token of the sequence has an embedding of its own."""
    mine = jax.tree.map(lambda x: x, params)
    mine["params"]["embed"]["embedding"] = jnp.concatenate([table, rows])
    own = transformer.Transformer(
      transformer.TransformerConfig(
        **{**vars(config), "vocab_size": 20 + _LENGTH}
      )
    )
    numbers = 20 + jnp.arange(_LENGTH, dtype=jnp.int32)[None]
    out, _ = own.apply(mine, numbers, jnp.zeros(1, jnp.int32))
    return jnp.sum(jnp.sin(out[0, position, :20]))

  rows = table[tokens[0]]
  for position in range(_LENGTH):
    gradient = jax.jit(jax.grad(logits_at))(rows, position)
    sizes = np.abs(gradient).max(axis=-1)
    assert (sizes[: position + 1] > 1e-6).all()
    assert (sizes[position + 1 :] == 0).all()


def test_rematerialization_changes_nothing_but_memory():
  gradients = []
  for rematerialize in (False, True):
    model, params, tokens = _model(_config(rematerialize=rematerialize))

    def loss(params, model=model, tokens=tokens):
      return jnp.sum(jnp.square(model.apply(params, tokens, _PADDING)[0]))

    gradients.append(jax.jit(jax.grad(loss))(params))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
    *gradients,
  )


@pytest.mark.third_party  # Flax's normalisation mixes precisions.
def test_half_precision_keeps_logits_and_parameters_wide():
  model, params, tokens = _model(_config(dtype="bfloat16"))
  wide, _, _ = _model(_config())
  logits, _ = _apply(model, params, tokens, _PADDING)
  expected, _ = _apply(wide, params, tokens, _PADDING)
  assert logits.dtype == jnp.float32
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
  np.testing.assert_allclose(logits[0], expected[0], atol=0.1)
  assert np.abs(logits[0] - expected[0]).max() > 0
  # Their last digits are those of float32: sums are not rounded.
  assert np.any(np.asarray(logits) != np.asarray(logits, ml_dtypes.bfloat16))


@pytest.mark.third_party
def test_half_precision_has_nearly_the_same_gradients():
  gradients = []
  for dtype in ("float32", "bfloat16"):
    model, params, tokens = _model(_config(dtype=dtype))

    def loss(params, model=model, tokens=tokens):
      logits, _ = model.apply(params, tokens, _PADDING)
      return jnp.sum(jnp.sin(logits))

    own = jax.jit(jax.grad(loss))(params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(own))
    gradients.append(jnp.concatenate([g.ravel() for g in jax.tree.leaves(own)]))
  wide, half = (np.asarray(own, np.float64) for own in gradients)
  assert wide @ half > 0.999 * np.linalg.norm(wide) * np.linalg.norm(half)
  assert abs(np.linalg.norm(half) / np.linalg.norm(wide) - 1) < 0.02


def test_a_value_head():
  model, _, tokens = _model(_config(), num_outputs=1)
  params = jax.jit(model.init)(jax.random.key(1), tokens, _PADDING)
  values, _ = _apply(model, params, tokens, _PADDING)
  assert values.shape == (3, _LENGTH, 1)


@pytest.mark.parametrize(
  ("options", "name"),
  [
    ({"num_kv_heads": 3}, "num_kv_heads"),
    ({"head_dim": 5}, "head_dim"),
    ({"dtype": "float16"}, "dtype"),
    ({"dtype": "float64"}, "jax_enable_x64"),
    ({"num_kv_heads": 0}, "num_kv_heads"),
  ],
)
def test_sizes_that_cannot_be(options, name):
  with pytest.raises(ValueError, match=name):
    _config(**options)
