"""Language objectives: losses of tokens, and batches read some at a time.

Losses of tokens are held against float64 oracles on ragged, partly empty masks;
objectives that make logits chunk by chunk against losses of whole logits.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import algorithms, losses, networks, numerics
from lco_jax.algorithms import policy_losses
from lco_jax.language import data, objectives, samplers, training
from lco_jax.training import update
from tests import equations, oracles

_SHAPE = (5, 4)  # Sequences, tokens.
_VOCABULARY = 6


def _tokens(dtype=np.float64, fill=0.0):
  """Ragged completions, one of them empty, one with no advantage.

  Args:
    dtype: of the numbers.
    fill: what stands under the mask.
  """
  rng = np.random.default_rng(0)
  lengths = np.array([4, 2, 0, 3, 1])
  mask = np.arange(_SHAPE[1]) < lengths[:, None]
  old_logits = rng.normal(size=(*_SHAPE, _VOCABULARY))
  action = rng.integers(0, _VOCABULARY, _SHAPE)
  advantage = rng.normal(size=_SHAPE[0])[:, None] * np.ones(_SHAPE)
  advantage[3] = 0.0  # A group whose rewards are all equal.
  old = np.log(oracles.softmax(old_logits))
  dense = advantage[..., None] * np.eye(_VOCABULARY)[action]
  reference = np.log(oracles.softmax(rng.normal(size=old_logits.shape)))

  def put(values):
    where = mask.reshape(mask.shape + (1,) * (values.ndim - 2))
    return jnp.asarray(np.where(where, values, fill).astype(dtype))

  take = lambda x: np.take_along_axis(x, action[..., None], -1)[..., 0]
  return objectives.DenseTokens(
    action=jnp.asarray(np.where(mask, action, 0), jnp.int32),
    mask=jnp.asarray(mask),
    advantage=put(advantage),
    old_logits=put(old_logits),
    old_log_prob=put(take(old)),
    target_logits=put(old_logits + dense / 0.8),
    beta=put(np.full(_SHAPE, 0.8)),
    dense_advantage=None,
    reference_log_prob=put(take(reference)),
  )


def _logits(dtype=np.float64):
  near = np.asarray(_tokens(dtype).old_logits)
  noise = np.random.default_rng(1).normal(size=near.shape)
  return (near + 0.3 * noise).astype(dtype)


def _centred(x):
  return x - x.mean(-1, keepdims=True)


def _kl_from_clipped(pi, old_logits, one, a):
  q = oracles.softmax(old_logits + np.clip(a, -1, 1)[..., None] * one)
  return (q * np.log(q / pi)).sum(-1)


def _token_loss(name, z, batch):
  """Per-token losses [B, C], written apart from the library."""
  b = jax.tree.map(np.asarray, batch)
  pi = oracles.softmax(z)
  q = oracles.softmax(b.target_logits)
  old_pi = oracles.softmax(b.old_logits)
  one = np.eye(_VOCABULARY)[b.action]
  x = np.log((pi * one).sum(-1))
  old, a = b.old_log_prob, b.advantage
  r = np.exp(x - old)

  def clipped(ratio, low, high):
    return -np.minimum(ratio * a, np.clip(ratio, 1 - low, 1 + high) * a)

  if name == "gspo":
    count = np.maximum(b.mask.sum(-1, keepdims=True), 1)
    mean = np.where(b.mask, x - old, 0).sum(-1, keepdims=True) / count
    return clipped(np.exp(mean) * np.ones_like(x), 3e-4, 4e-4)
  residual = _centred(z) - _centred(b.target_logits)
  change = z - b.old_logits
  change = change - (old_pi * change).sum(-1, keepdims=True)
  own, forward = (change * one).sum(-1), (old_pi * np.log(old_pi / pi)).sum(-1)
  return {
    "lco_mse": lambda: 0.5 * (residual**2).sum(-1),
    "lco_lch": lambda: np.log(np.cosh(residual)).sum(-1),
    "lco_kld": lambda: (q * np.log(q / pi)).sum(-1),
    "lco_fisher": lambda: 0.5 * (old_pi * change**2).sum(-1) - a / 0.8 * own,
    "lco_proximal_kl": lambda: forward - a / 0.8 * own,
    "lco_residual": lambda: 0.5 * (own - a / 0.8) ** 2,
    "lco_residual_lch": lambda: np.log(np.cosh(own - a / 0.8)),
    "lco_weighted": lambda: forward - (a - 1) * x,
    "reinforce": lambda: -a * x,
    "rloo": lambda: -a * x,
    "ppo": lambda: clipped(r, 0.2, 0.2),
    "grpo": lambda: clipped(r, 0.2, 0.2),
    "dr_grpo": lambda: clipped(r, 0.2, 0.2),
    "dapo": lambda: clipped(r, 0.2, 0.28),
    "mdpo": lambda: -r * a + r * np.log(r) - r + 1,
    "awr": lambda: -np.minimum(np.exp(a), 20.0) * x,
    "apa": lambda: (a - np.log(r)) ** 2,
    "vmpo": lambda: forward - a * x,
    "cmpo": lambda: _kl_from_clipped(pi, b.old_logits, one, a) - a * x,
  }[name]()


def _reduced(tokens, mask, weighting):
  """The mean over a batch, sequence by sequence."""
  rows = [row[kept] for row, kept in zip(tokens, mask, strict=True)]
  rows = [row for row in rows if len(row)]
  if weighting == "token":
    return np.concatenate(rows).mean()
  if weighting == "sequence":
    return np.mean([row.mean() for row in rows])
  return sum(row.sum() for row in rows) / (len(rows) * mask.shape[1])


def _setup(name, model=None, value_model=None, **options):
  """Of an algorithm, with advantages that need nothing."""
  row = algorithms.ALGORITHMS[name]
  return training.Setup(
    model,
    row,
    row.policy_loss(),
    samplers.Sampler(_SHAPE[1]),
    training.Options(**{"advantage": "reward", "chunk_tokens": 0} | options),
    value_model=value_model,
  )


def _mean_loss(name, **options):
  """(logits, tokens) → (mean loss of a batch, metrics) of an algorithm."""
  setup = _setup(name, **options)

  # Traced, as in training: there a mask without tokens is no error.
  @jax.jit
  def mean(logits, tokens):
    weight, share = objectives.token_weights(
      tokens.mask, setup.algorithm.weighting
    )
    loss, metrics = objectives.token_losses(logits, tokens, setup)
    total = jnp.sum(weight.astype(loss.dtype) * loss)
    count = jnp.sum(share.astype(loss.dtype))
    return numerics.Average(total, count).mean, {
      name: numerics.average(values, tokens.mask).mean
      for name, values in metrics.items()
    }

  return mean


_ORACLES = [n for n in algorithms.ALGORITHMS if n != "cispo"]


@pytest.mark.parametrize("name", _ORACLES)
def test_value_and_gradient_against_an_oracle(float64, name):
  """The entropy bonus and the KL to the reference included."""
  weighting = algorithms.ALGORITHMS[name].weighting
  tokens, z = _tokens(), _logits()
  mean = _mean_loss(name, entropy_coefficient=0.01, reference_coefficient=0.1)

  def oracle(logits):
    pi = oracles.softmax(logits)
    x = np.take_along_axis(np.log(pi), np.asarray(tokens.action)[..., None], -1)
    d = np.asarray(tokens.reference_log_prob) - x[..., 0]
    each = _token_loss(name, logits, tokens)
    each = each + 0.1 * (np.exp(d) - d - 1)
    each = each + 0.01 * (pi * np.log(pi)).sum(-1)
    return _reduced(each, np.asarray(tokens.mask), weighting)

  value, gradient = jax.jit(jax.value_and_grad(lambda z: mean(z, tokens)[0]))(
    jnp.asarray(z)
  )
  np.testing.assert_allclose(value, oracle(z), rtol=1e-8)
  np.testing.assert_allclose(gradient, oracles.gradient(oracle, z), atol=1e-7)


def test_cispo_is_reinforce_of_constant_weights(float64):
  tokens, z = _tokens(), jnp.asarray(_logits())
  one = np.eye(_VOCABULARY)[np.asarray(tokens.action)]
  x = np.log((oracles.softmax(np.asarray(z)) * one).sum(-1))
  weight = np.minimum(np.exp(x - np.asarray(tokens.old_log_prob)), 1.28)
  weighted = tokens._replace(advantage=tokens.advantage * weight)
  np.testing.assert_allclose(
    jax.jit(jax.grad(lambda z: _mean_loss("cispo")(z, tokens)[0]))(z),
    jax.jit(jax.grad(lambda z: _mean_loss("reinforce")(z, weighted)[0]))(z),
    atol=1e-12,
  )


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_nothing_under_the_mask_counts(name):
  """NaN there, also in the logits, changes no bit of loss or gradient."""
  mean = _mean_loss(name, entropy_coefficient=0.01, reference_coefficient=0.1)
  derived = jax.jit(jax.value_and_grad(mean, has_aux=True))

  def run(fill):
    tokens = _tokens(np.float32, fill)
    mask = np.asarray(tokens.mask)
    logits = np.where(mask[..., None], _logits(np.float32), fill)
    return derived(jnp.asarray(logits), tokens)

  clean, dirty = run(0.0), run(np.nan)
  for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
    np.testing.assert_array_equal(a, b)
  outside = ~np.asarray(_tokens(np.float32).mask)
  assert (np.asarray(dirty[1])[outside] == 0).all()


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_a_batch_without_tokens_asks_for_nothing(name):
  tokens = _tokens(np.float32)
  tokens = tokens._replace(mask=jnp.zeros_like(tokens.mask))
  mean = _mean_loss(name)
  value, gradient = jax.jit(jax.value_and_grad(lambda z: mean(z, tokens)[0]))(
    jnp.asarray(_logits(np.float32))
  )
  assert value == 0 and (np.asarray(gradient) == 0).all()


def test_kl_is_of_what_counts():
  tokens, logits = _tokens(np.float32), _logits(np.float32)
  _, metrics = _mean_loss("grpo", max_kl=1.0)(logits, tokens)
  kl = losses.kl_divergence(tokens.old_logits, logits)
  mask = np.asarray(tokens.mask)
  np.testing.assert_allclose(
    metrics[update.KL], np.asarray(kl)[mask].mean(), rtol=1e-5
  )


def test_dapo_clips_higher_than_it_clips_lower():
  """Ratios of 1.25 still pull, where PPO's range has ended."""
  assert algorithms.list_options("dapo") == algorithms.list_options("grpo")
  tokens = _tokens(np.float32)
  log_prob = numerics.action_log_prob(tokens.old_logits, tokens.action)
  tokens = tokens._replace(
    advantage=jnp.ones_like(tokens.advantage),
    old_log_prob=log_prob - np.float32(np.log(1.25)),
  )

  def pull(name):
    mean = _mean_loss(name)
    gradient = jax.grad(lambda z: mean(z, tokens)[0])(tokens.old_logits)
    return float(jnp.max(jnp.abs(gradient)))

  assert pull("dapo") > 1e-3 and pull("grpo") == 0


@pytest.mark.parametrize("weighting", algorithms.WEIGHTINGS)
def test_weights_of_tokens(weighting):
  """Halves of a batch add up to the whole, whatever their lengths."""
  mask = np.asarray(_tokens(np.float32).mask)
  tokens = np.random.default_rng(2).normal(size=mask.shape).astype(np.float32)
  weight, share = objectives.token_weights(jnp.asarray(mask), weighting)
  sums = [(weight[s] * tokens[s]).sum() for s in (slice(2), slice(2, 5))]
  shares = [share[s].sum() for s in (slice(2), slice(2, 5))]
  np.testing.assert_allclose(
    sum(sums) / sum(shares), _reduced(tokens, mask, weighting), rtol=1e-5
  )


@pytest.mark.parametrize(
  ("make", "name"),
  [
    (lambda: policy_losses.gspo(clip_low=-1.0), "clip_low"),
    (lambda: policy_losses.cispo(clip_high=float("nan")), "clip_high"),
    (lambda: policy_losses.awr(max_weight=0.0), "max_weight"),
    (lambda: policy_losses.mdpo(0.0), "divergence_coefficient"),
    (lambda: policy_losses.apa(-1.0), "divergence_coefficient"),
    (lambda: _mean_loss("rloo", entropy_coefficient=-1.0), "entropy"),
    (
      lambda: objectives.token_weights(jnp.ones(2, bool), "x"),
      "weighting",
    ),
    (lambda: algorithms.list_options("sarsa"), "algorithm"),
    (
      lambda: objectives.token_weights(jnp.zeros(2, bool), "token"),
      "no token",
    ),
  ],
)
def test_what_cannot_be(make, name):
  with pytest.raises(ValueError, match=name):
    make()


def test_options_are_those_of_the_policy_loss():
  assert algorithms.list_options("dapo") == (
    *("clip_low", "clip_high", "dual_clip", "all_actions"),
  )
  assert algorithms.list_options("rloo") == ("all_actions",)
  assert algorithms.list_options("lco_fisher") == ()
  assert algorithms.list_options("lco_mse") == (
    *("anchor", "support", "centred", "clip"),
  )


_SAMPLES, _PROMPTS, _PROMPT_LENGTH, _LENGTH = 3, 2, 5, 4
_MANY, _KNOWN = 37, 3


def _transformer(tied):
  config = networks.TransformerConfig(
    vocab_size=_MANY,
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
    embedding, output = jax.random.normal(keys[0], (2, _MANY, 8))
    return {"params": {"embed": embedding, "output": output}}

  def hidden(params, tokens, padding, cache=None, start=0):
    return jnp.tanh(params["params"]["embed"][tokens]), cache

  return networks.LanguageModel(
    init=init,
    hidden=jax.jit(hidden),
    head=jax.jit(lambda params, x: x @ params["params"]["output"].T),
    apply=None,
    empty_cache=lambda *_: (),
    reader=None,
    vocab_size=_MANY,
  )


def _policies(model):
  return [jax.jit(model.init)(jax.random.key(seed)) for seed in (0, 1)]


def _batch(model, old, weighting):
  """A batch with ragged prompts and completions, one of them empty."""
  rng = np.random.default_rng(1)
  rows = _SAMPLES * _PROMPTS
  prompt = rng.integers(2, _MANY, (_PROMPTS, _PROMPT_LENGTH))
  action = rng.integers(0, _MANY, (rows, _LENGTH)).astype(np.int32)
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
      (action + 1) % _MANY,
      (action + 5) % _MANY,
    ],
    axis=-1,
  )
  weight, share = objectives.token_weights(jnp.asarray(mask), weighting)
  old_log_prob = numerics.action_log_prob(model.head(old, hidden), action)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  return data.TokenBatch(
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
  dense = np.repeat(np.asarray(batch.rest_advantage)[..., None], _MANY, axis=-1)
  for index in np.ndindex(batch.known.shape):
    dense[(*index[:2], batch.known[index])] = batch.known_advantage[index]
  return dense


def _value_and_gradient(objective, policy, batch, before):
  def mean(policy):
    parts, metrics = objective({"policy": policy}, batch, {"policy": before})
    return parts["policy"].mean, metrics

  return jax.jit(jax.value_and_grad(mean, has_aux=True))(policy)


_MODELS = {
  "bigrams": _bigrams,
  "tied": lambda: _transformer(True),
  "untied": lambda: _transformer(False),
}
_CASES = [
  # One of each use of logits, targets, weights and sequences.
  *(
    ("bigrams", algorithm)
    for algorithm in (
      *("lco_mse", "lco_fisher", "lco_weighted", "ppo", "grpo"),
      *("dr_grpo", "gspo", "vmpo"),
    )
  ),
  ("tied", "lco_kld"),
  ("untied", "lco_mse"),
]


@pytest.mark.parametrize(("name", "algorithm"), _CASES)
def test_chunks_equal_whole_logits(name, algorithm):
  """Value, gradient and metrics, whatever the size of a chunk."""
  model = _MODELS[name]()
  old, new = _policies(model)
  row = algorithms.ALGORITHMS[algorithm]
  batch = _batch(model, old, row.weighting)
  if row.weights:
    batch = dataclasses.replace(batch, advantage=jnp.abs(batch.advantage))
  options = {
    "num_epochs": 2,
    "entropy_coefficient": 0.1,
    "reference_coefficient": 0.2,
    "max_kl": 1.0,
  }

  @jax.jit
  def whole(params):
    read = jnp.concatenate([batch.prompt, batch.action[:, :-1]], axis=1)
    hidden, _ = model.hidden(params, read, batch.padding)
    return model.head(params, hidden[:, _PROMPT_LENGTH - 1 :])

  old_logits = whole(old)
  tokens = objectives.DenseTokens(
    action=batch.action,
    mask=batch.mask,
    advantage=batch.advantage,
    old_logits=old_logits,
    old_log_prob=batch.old_log_prob,
    target_logits=old_logits + _dense_advantage(batch) / batch.beta[..., None],
    beta=batch.beta,
    dense_advantage=None,
    reference_log_prob=batch.reference_log_prob,
  )

  def dense(params, batch, before):
    loss, metrics = objectives.token_losses(
      whole(params["policy"]), tokens, _setup(algorithm, **options)
    )
    total = numerics.Average(jnp.sum(batch.weight * loss), jnp.sum(batch.share))
    return {"policy": total}, {
      name: numerics.average(values, batch.mask)
      for name, values in metrics.items()
    }

  (expected, metrics), gradient = _value_and_gradient(dense, new, batch, old)
  for chunk in (0, 5):
    objective = _objective(model, algorithm, chunk_tokens=chunk, **options)
    (value, found), own = _value_and_gradient(objective, new, batch, old)
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
    entropy = losses.entropy(old_logits)
    mask = np.asarray(batch.mask)
    np.testing.assert_allclose(
      found["entropy"].mean, np.asarray(entropy)[mask].mean(), rtol=1e-5
    )


def _objective(model, algorithm, **options):
  setup = _setup(algorithm, model, **options)
  return objectives.make_objective(setup, num_samples=_SAMPLES)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_value_loss_is_a_mean_over_tokens(clip):
  """And NaN under the mask counts neither in its value nor its gradient."""
  model = _bigrams()
  old, value = _policies(model)
  value_model = dataclasses.replace(
    model, head=lambda params, x: (x @ params["params"]["output"].T)[..., :1]
  )
  batch = _batch(model, old, "token")
  rng = np.random.default_rng(4)
  targets = rng.normal(size=batch.mask.shape).astype(np.float32)
  mask = np.asarray(batch.mask)
  batch = dataclasses.replace(
    batch,
    value_target=jnp.where(mask, targets, jnp.nan),
    old_value=jnp.where(mask, 0.3 * targets, jnp.nan),
  )
  objective = _objective(
    model,
    "reinforce",
    value_model=value_model,
    advantage="learned",
    value_clip=clip,
  )

  def loss(params):
    parts, _ = objective({"policy": old} | params, batch, None)
    return parts["value"].mean

  found, gradient = jax.jit(jax.value_and_grad(loss))({"value": value})
  read = jnp.concatenate([batch.prompt, batch.action[:, :-1]], axis=1)
  hidden, _ = model.hidden(value, read, batch.padding)
  values = np.asarray(
    value_model.head(value, hidden[:, _PROMPT_LENGTH - 1 :])[..., 0]
  )
  squares = (values - targets) ** 2
  if clip is not None:
    old_values = 0.3 * targets
    moved = old_values + np.clip(values - old_values, -clip, clip)
    squares = np.maximum(squares, (moved - targets) ** 2)
  expected = 0.5 * np.mean(squares[mask])
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-3


def test_entropy_is_of_all_that_was_sampled():
  """Groups that are left out of the loss are the policy's, too."""
  model = _bigrams()
  old, _ = _policies(model)
  batch = _batch(model, old, "token")
  objective = _objective(model, "dapo", chunk_tokens=4)
  left_out = jnp.arange(len(batch.action)) % 2 == 0
  some = dataclasses.replace(batch, mask=batch.mask & ~left_out[:, None])
  entropy = jax.jit(lambda own: objective({"policy": old}, own, None)[1])
  found, everything = (entropy(own)["entropy"] for own in (some, batch))
  assert (
    float(found.count) == float(everything.count) == float(batch.sampled.sum())
  )
  np.testing.assert_allclose(found.total, everything.total, rtol=1e-5)


@pytest.mark.parametrize("algorithm", ["lco_mse", "lco_kld", "ppo"])
def test_on_policy_needs_nothing_of_the_behaviour_policy(algorithm):
  """Where the policy sampled itself, its own logits are the old ones."""
  model = _bigrams()
  old, other = _policies(model)
  batch = _batch(model, old, "token")
  found = [
    _value_and_gradient(
      _objective(model, algorithm, chunk_tokens=4, num_epochs=num_epochs),
      old,
      batch,
      before,
    )[1]
    for num_epochs, before in ((2, old), (1, other))
  ]
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
    objective = _objective(model, "lco_kld", chunk_tokens=chunk, num_epochs=2)
    jaxpr = jax.make_jaxpr(
      jax.grad(
        lambda p: objective({"policy": p}, batch, {"policy": old})[0]["policy"][
          0
        ]
      )
    )(new)
    return max(
      (
        int(np.prod(variable.aval.shape))
        for equation in equations.of(jaxpr.jaxpr)
        for variable in equation.outvars
        if _MANY in variable.aval.shape
      ),
    )

  assert largest(0) >= tokens * _MANY
  assert largest(4) < tokens * _MANY


def test_a_dense_signal_gives_all_advantages():
  """A loss of sampled advantages reads all of them where all are known."""
  model = _bigrams()
  old, _ = _policies(model)
  batch = _batch(model, old, "token")
  old_logits = model.head(old, batch.old_hidden)
  for advantage, known in (("reward", False), ("verifier", True)):
    setup = _setup("lco_fisher", model, advantage=advantage)
    tokens = objectives.dense_tokens(batch, old_logits, setup)
    assert (tokens.dense_advantage is not None) == known
    if known:
      np.testing.assert_allclose(
        tokens.dense_advantage, _dense_advantage(batch), rtol=1e-6
      )


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo", "lco_fisher"])
def test_losses_of_the_temperature_that_sampled_are_unbiased(
  algorithm, float64
):
  """All samples worth the same: only then no gradient is expected."""
  temperature, vocabulary = 0.6, 4
  z = jnp.asarray([1.0, 0.5, -0.2, 0.3])
  probs = jax.nn.softmax(z / temperature)
  old = jax.nn.log_softmax(z)

  def expected_gradient(loss_temperature):
    setup = _setup(algorithm, loss_temperature=loss_temperature)
    one = jnp.ones(vocabulary)
    batch = data.TokenBatch(
      prompt=None,
      padding=None,
      action=jnp.arange(vocabulary),
      mask=one > 0,
      sampled=one > 0,
      weight=one,
      share=None,
      advantage=one,
      old_hidden=None,
      old_log_prob=old,
      reference_log_prob=old,
      beta=one,
      known=jnp.arange(vocabulary)[:, None],
      known_advantage=one[:, None],
      rest_advantage=0 * one,
    )
    every = jnp.broadcast_to(z, (vocabulary, vocabulary))
    tokens = objectives.dense_tokens(batch, every, setup)

    def mean(logits):
      rows = jnp.broadcast_to(logits, (vocabulary, vocabulary))
      return probs @ objectives.token_losses(rows, tokens, setup)[0]

    return jax.jit(jax.grad(mean))(z)

  np.testing.assert_allclose(expected_gradient(temperature), 0.0, atol=1e-6)
  assert np.abs(expected_gradient(1.0)).max() > 0.02


@pytest.mark.parametrize("kind", ["k2", "k3", "exact"])
def test_the_kl_to_the_reference_by_each_estimator(kind):
  model = _bigrams()
  old, new = _policies(model)
  reference = jax.jit(model.init)(jax.random.key(7))
  batch = _batch(model, old, "token")
  tokens = jnp.concatenate([batch.prompt, batch.action[:, :-1]], axis=1)

  def read(params):
    hidden, _ = model.hidden(params, tokens, batch.padding)
    return hidden[:, _PROMPT_LENGTH - 1 :]

  hidden = read(reference)
  logits, reference_logits = (
    model.head(params, read(params)) for params in (new, reference)
  )
  log_prob, reference_log_prob = (
    numerics.action_log_prob(x, batch.action)
    for x in (logits, reference_logits)
  )
  batch = dataclasses.replace(
    batch,
    reference_log_prob=reference_log_prob,
    reference_hidden=hidden if kind == "exact" else None,
  )
  if kind == "exact":
    expected = losses.kl_divergence(logits, reference_logits)
  else:
    expected = losses.kl_penalty(log_prob, reference_log_prob, kind)
  expected = jnp.sum(batch.weight * expected) / jnp.sum(batch.share)
  found = []
  for coefficient in (0.0, 1.0):
    for chunk in (0, 5):
      objective = _objective(
        model,
        "lco_fisher",
        num_epochs=2,
        chunk_tokens=chunk,
        reference_coefficient=coefficient,
        reference_kl=kind,
      )
      parts, _ = jax.jit(objective)(
        {"policy": new, "reference": reference}, batch, {"policy": old}
      )
      found.append(parts["policy"].mean)
  np.testing.assert_allclose(found[2] - found[0], expected, rtol=1e-4)
  np.testing.assert_allclose(found[3] - found[1], expected, rtol=1e-4)
