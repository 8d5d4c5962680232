"""The objectives that never hold the vocabulary equal those that do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import algorithms, networks, numerics
from lco_jax.language import data, lean_objectives, objectives
from lco_jax.training import chunking
from tests import equations

_SAMPLES, _PROMPTS, _PROMPT_LENGTH, _LENGTH = 3, 2, 5, 4
_VOCABULARY, _KNOWN = 37, 3


def _transformer(tied):
  config = networks.TransformerConfig(
    vocab_size=_VOCABULARY,
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    mlp_width=24,
    tied_embeddings=tied,
  )
  return networks.make_language_model(config)


def _bigrams():
  """A model that is quick to compile: hidden states of single tokens."""

  def init(key):
    keys = jax.random.split(key)
    embedding, output = jax.random.normal(keys[0], (2, _VOCABULARY, 8))
    return {"params": {"embed": embedding, "output": output}}

  def hidden(params, tokens, padding, cache=None, start=0):
    return jnp.tanh(params["params"]["embed"][tokens]), cache

  return networks.LanguageModel(
    init=init,
    hidden=hidden,
    head=lambda params, x: x @ params["params"]["output"].T,
    apply=None,
    empty_cache=lambda *_: (),
    reader=None,
    vocab_size=_VOCABULARY,
  )


def _policies(model):
  return [jax.jit(model.init)(jax.random.key(seed)) for seed in (0, 1)]


def _batch(model, old, weighting):
  """A batch with ragged prompts and completions, one of them empty."""
  rng = np.random.default_rng(1)
  rows = _SAMPLES * _PROMPTS
  prompt = rng.integers(2, _VOCABULARY, (_PROMPTS, _PROMPT_LENGTH))
  action = rng.integers(0, _VOCABULARY, (rows, _LENGTH)).astype(np.int32)
  lengths = np.array([4, 1, 0, 3, 4, 2])
  mask = np.arange(_LENGTH) < lengths[:, None]
  prompt = np.tile(prompt, (_SAMPLES, 1)).astype(np.int32)
  padding = np.tile([0, 2], _SAMPLES).astype(np.int32)
  tokens = np.concatenate([prompt, action[:, :-1]], axis=1)
  hidden, _ = model.hidden(old, tokens, padding)
  hidden = hidden[:, _PROMPT_LENGTH - 1 :]
  known = np.stack(
    [
      action,
      (action + 1) % _VOCABULARY,
      (action + 5) % _VOCABULARY,
    ],
    axis=-1,
  )
  weight, share = objectives.token_weights(jnp.asarray(mask), weighting)
  old_log_prob = numerics.action_log_prob(model.head(old, hidden), action)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  return data.LeanBatch(
    prompt=jnp.asarray(prompt),
    padding=jnp.asarray(padding),
    action=jnp.asarray(action),
    mask=jnp.asarray(mask),
    sampled=jnp.asarray(mask),
    weight=weight,
    share=share,
    advantage=normal(rows, _LENGTH),
    old_log_prob=old_log_prob,
    reference_log_prob=old_log_prob + 0.1 * normal(rows, _LENGTH),
    old_hidden=hidden,
    beta=jnp.exp(normal(rows, _LENGTH)),
    known=jnp.asarray(known, jnp.int32),
    known_advantage=normal(rows, _LENGTH, _KNOWN),
    rest_advantage=normal(rows, _LENGTH),
  )


def _dense_advantage(batch):
  dense = np.repeat(
    np.asarray(batch.rest_advantage)[..., None], _VOCABULARY, axis=-1
  )
  for index in np.ndindex(batch.known.shape):
    dense[(*index[:2], batch.known[index])] = batch.known_advantage[index]
  return dense


def _value_and_gradient(objective, params, batch):
  def mean(policy):
    parts, metrics = objective(params | {"policy": policy}, batch)
    return parts["policy"].mean, metrics

  return jax.jit(jax.value_and_grad(mean, has_aux=True))(params["policy"])


_MODELS = {
  "bigrams": _bigrams,
  "tied": lambda: _transformer(True),
  "untied": lambda: _transformer(False),
}
_CASES = [
  *(("bigrams", algorithm) for algorithm in algorithms.ALGORITHMS),
  ("tied", "lco_kld"),
  ("untied", "lco_mse"),
]


@pytest.mark.parametrize(("name", "algorithm"), _CASES)
def test_equals_the_dense_objective(name, algorithm):
  """Value, gradient and metrics, whatever the size of a chunk."""
  model = _MODELS[name]()
  old, new = _policies(model)
  row = algorithms.ALGORITHMS[algorithm]
  batch = _batch(model, old, row.weighting)
  policy_loss = row.policy_loss()
  if row.takes_weights:
    batch = dataclasses.replace(batch, advantage=jnp.abs(batch.advantage))

  def whole(params, tokens):
    read = jnp.concatenate([tokens.prompt, tokens.action[:, :-1]], axis=1)
    hidden, _ = model.hidden(params, read, tokens.padding)
    return model.head(params, hidden[:, _PROMPT_LENGTH - 1 :])

  options = {"entropy_coefficient": 0.1, "reference_coefficient": 0.2}
  old_logits = whole(old, batch)
  dense = dataclasses.replace(
    lean_objectives.token_batch(batch, old_logits),
    target_logits=old_logits + _dense_advantage(batch) / batch.beta[..., None],
  )
  (expected, metrics), gradient = _value_and_gradient(
    objectives.make_token_objective(
      whole, policy_loss, measures_kl=True, **options
    ),
    {"policy": new},
    dense,
  )
  params = {
    "policy": new,
    lean_objectives.BEHAVIOUR: networks.head_of(old),
  }
  for chunk in (0, 5):
    objective = lean_objectives.make_objective(
      model,
      policy_loss,
      num_samples=_SAMPLES,
      chunk_tokens=chunk,
      on_policy=False,
      of_sequences=row.of_sequences,
      measures_kl=True,
      **options,
    )
    (value, found), own = _value_and_gradient(objective, params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
      own,
      gradient,
    )
    for name, average in metrics.items():
      np.testing.assert_allclose(
        found[name].mean, average.mean, rtol=1e-5, atol=1e-6
      )


def test_entropy_is_of_all_that_was_sampled():
  """Groups that are left out of the loss are the policy's, too."""
  model = _bigrams()
  old, _ = _policies(model)
  batch = _batch(model, old, "token")
  objective = lean_objectives.make_objective(
    model,
    algorithms.ALGORITHMS["dapo"].policy_loss(),
    num_samples=_SAMPLES,
    chunk_tokens=4,
    on_policy=True,
  )
  left_out = jnp.arange(len(batch.action)) % 2 == 0
  some = dataclasses.replace(batch, mask=batch.mask & ~left_out[:, None])
  found, everything = (
    objective({"policy": old}, own)[1]["entropy"] for own in (some, batch)
  )
  assert (
    float(found.count) == float(everything.count) == float(batch.sampled.sum())
  )
  np.testing.assert_allclose(found.total, everything.total, rtol=1e-5)


@pytest.mark.parametrize("algorithm", ["lco_mse", "lco_kld", "ppo"])
def test_on_policy_needs_nothing_of_the_behaviour_policy(algorithm):
  """Where the policy sampled itself, its own logits are the old ones."""
  model = _bigrams()
  old, _ = _policies(model)
  batch = _batch(model, old, "token")
  policy_loss = algorithms.ALGORITHMS[algorithm].policy_loss()
  found = []
  for on_policy, params in (
    (False, {lean_objectives.BEHAVIOUR: networks.head_of(old)}),
    (True, {}),
  ):
    objective = lean_objectives.make_objective(
      model,
      policy_loss,
      num_samples=_SAMPLES,
      chunk_tokens=4,
      on_policy=on_policy,
    )
    found.append(
      _value_and_gradient(objective, params | {"policy": old}, batch)[1]
    )
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(found[0])) > 1e-3
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found
  )


def test_nothing_of_the_size_of_all_logits_is_made():
  """No array of the compiled gradient has [tokens, vocabulary] entries."""
  model = _bigrams()
  old, new = _policies(model)
  batch = _batch(model, old, "token")
  tokens = _SAMPLES * _PROMPTS * _LENGTH

  def largest(chunk):
    objective = lean_objectives.make_objective(
      model,
      algorithms.ALGORITHMS["lco_kld"].policy_loss(),
      num_samples=_SAMPLES,
      chunk_tokens=chunk,
      on_policy=False,
    )
    params = {
      "policy": new,
      lean_objectives.BEHAVIOUR: networks.head_of(old),
    }
    jaxpr = jax.make_jaxpr(
      jax.grad(
        lambda p: objective(params | {"policy": p}, batch)[0]["policy"][0]
      )
    )(new)
    return max(
      (
        int(np.prod(variable.aval.shape))
        for equation in equations.of(jaxpr.jaxpr)
        for variable in equation.outvars
        if _VOCABULARY in variable.aval.shape
      ),
    )

  assert largest(0) >= tokens * _VOCABULARY
  assert largest(4) < tokens * _VOCABULARY


def test_a_chunk_must_divide_the_rows():
  with pytest.raises(ValueError, match="chunk_size 4"):
    chunking.chunked_sum(
      lambda *_: (0.0, ()), (), (), jnp.ones((6, 1)), jnp.ones(6), 4, "float32"
    )


@pytest.mark.parametrize("chunk_size", [1, 512])
def test_gradients_of_narrow_chunks_add_up_in_the_parameters_own_type(
  chunk_size,
):
  """In bfloat16 a sum of ones ends at 256."""
  narrow = jnp.bfloat16

  def summand(params, shared, rows, constants):
    assert params.dtype == shared.dtype == narrow  # Not made so in a loop.
    return jnp.sum(params * shared * rows * constants, dtype=jnp.float32), ()

  def total(params):
    rows = jnp.ones((512, 1), narrow)
    return chunking.chunked_sum(
      summand, params, params, rows, rows, chunk_size, narrow
    )[0]

  value, gradient = jax.value_and_grad(total)(jnp.ones((1, 1)))
  assert value == 512 and gradient.dtype == jnp.float32
  np.testing.assert_array_equal(gradient, [[512.0]])
