"""Language training through the foundation's loop, on tiny models."""

import dataclasses
import functools
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import algorithms, losses, networks, numerics, tasks
from lco_jax.language import (
  generation,
  preparation,
  reading,
  samplers,
  signals,
  training,
  warm_start,
)
from lco_jax.runs import checkpointing, runner, starts
from lco_jax.training import optimizers, placement, transfers
from lco_jax.training import program as program_lib
from tests import completions

# Flax and optax mix ranks.
pytestmark = pytest.mark.third_party

_SAMPLES, _PROMPTS = 4, 16


@functools.cache
def _task(name="parity:6"):
  return tasks.make(name)


def _config(task):
  return networks.TransformerConfig(
    vocab_size=task.vocab_size,
    num_layers=1,
    width=32,
    num_heads=2,
    num_kv_heads=1,
    mlp_width=48,
  )


def _model(task):
  return networks.make_language_model(_config(task))


def _chain(rate):
  schedule = optimizers.make_schedule("constant", rate, 1)
  return optimizers.make_optimizer("adam", schedule, 1.0)


def _setup(
  algorithm="lco_mse", options=(), sampling=None, sampler=None, **changes
):
  """A training's setup; changes are those of its options, or of rewards."""
  task = _task()
  model = _model(task)
  row = algorithms.ALGORITHMS[algorithm]
  of_rewards = {
    name: changes.pop(name)
    for name in ("reward", "reward_noise", "group_attempts")
    if name in changes
  }
  settings = {
    "num_prompts": _PROMPTS,
    "num_samples": _SAMPLES,
    "num_epochs": 2,
    "num_minibatches": 2,
    "chunk_tokens": 0,
  }
  own = training.Options(**(settings | changes))
  return training.Setup(
    model,
    row,
    row.policy_loss(**dict(options)),
    sampler
    or samplers.make_sampler(
      task,
      model,
      own.num_samples,
      sampling or generation.Sampling(),
      samplers.RewardOptions(**of_rewards),
    ),
    own,
    value_model=networks.make_value_model(_config(task)),
  )


def _make(algorithm="lco_mse", rate=3e-3, **changes):
  setup = _setup(algorithm, **changes)
  parts = ("policy", "value") if setup.uses_value else ("policy",)
  return training.make_training(setup, {part: _chain(rate) for part in parts})


def _run(task, num_updates, seeds=(0,), devices=1):
  mesh = placement.make_mesh(
    len(seeds), task.num_streams, jax.devices()[:devices]
  )
  start = starts.begin(task, seeds, mesh)
  programs = program_lib.compile_chunks(task, mesh, start.state, [num_updates])
  state, metrics = programs[num_updates](start.state)
  return state, transfers.to_host(metrics)


def _compiled(function):
  """One program on one device, in place of one for every operation."""
  return jax.jit(placement.bind_device_axis(function))


def _sampled(task):
  """Parameters at the start, and what they sample."""
  params = jax.jit(task.init_params)(jax.random.key(0))
  keys = jax.random.split(jax.random.key(1), _PROMPTS)
  _, samples = jax.jit(lambda p, k: task.collect(p, (), k))(params, keys)
  return params, samples


def test_rewards_rise_and_the_reference_stays(caplog):
  """From random tokens (1 in 25 right) to a digit and the end (1 in 2).

  Nothing is compiled once training has begun.
  """
  task = _make(num_prompts=32, num_samples=8)
  mesh = placement.make_mesh(1, task.num_streams, jax.devices()[:1])
  state = starts.begin(task, (0,), mesh).state
  program = program_lib.compile_chunks(task, mesh, state, [20])[20]
  chunks = []
  caplog.set_level("WARNING")
  with jax.log_compiles():
    for _ in range(3):
      state, metrics = jax.block_until_ready(program(state))
      chunks.append(metrics)
  assert not caplog.messages
  chunks = [transfers.to_host(metrics) for metrics in chunks]
  metrics = {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}
  assert metrics["correct"][:2].mean() < 0.2
  assert metrics["correct"][-10:].mean() > 0.4
  for name, values in metrics.items():
    assert np.isfinite(values).all(), name
  assert metrics["completion_length_max"].max() <= 2
  for when in ("before", "after"):
    assert metrics[f"target_residual_{when}"].mean() > 0
  assert state.update[0] == 60
  assert metrics["kl_reference"][0] < 1e-6 < metrics["kl_reference"][-1]
  assert set(state.opt_state) == {"policy"}
  begun = starts.begin(task, (0,), mesh).state
  for name, same in (("reference", True), ("policy", False)):
    pairs = zip(
      *(
        jax.tree.leaves(transfers.to_host(x.params[name]))
        for x in (begun, state)
      ),
      strict=True,
    )
    assert all((a == b).all() == same for a, b in pairs)


def test_a_warm_start_learns_the_answers():
  task = _task("reversal:3")
  warm = warm_start.make_training(
    task, _model(task), _chain(1e-2), num_prompts=64
  )
  _, metrics = _run(warm, 120)
  assert metrics["correct"][0].mean() < 0.1
  assert metrics["correct"][-10:].mean() > 0.5
  assert metrics["policy_loss"][-1] < 0.3 * metrics["policy_loss"][0]


def test_samples_are_what_the_metrics_say():
  """Against the rollout itself: verified again, on the host."""
  task = _task()
  model = _model(task)
  params, samples = _sampled(_make())
  assert samples.prompt.shape == (_SAMPLES, _PROMPTS, task.prompt_length)
  for g in range(_SAMPLES):
    np.testing.assert_array_equal(samples.prompt[g], samples.prompt[0])
  for g, n in np.ndindex(_SAMPLES, _PROMPTS):
    asked = task.text(samples.prompt[g, n])
    said = task.text(samples.action[g, n])
    right = said == str(asked.count("1") % 2) and not samples.truncated[g, n]
    assert samples.correct[g, n] == right
    assert samples.reward[g, n] == float(right)
  logits = completions.read_logits(
    model, params["policy"], samples.prompt, samples.padding, samples.action
  )
  own = model.head(params["policy"], samples.hidden)
  np.testing.assert_allclose(
    jnp.where(samples.mask[..., None], own - logits, 0), 0, atol=1e-5
  )
  log_prob = numerics.action_log_prob(logits, samples.action)
  np.testing.assert_allclose(
    samples.log_prob, jnp.where(samples.mask, log_prob, 0), atol=1e-5
  )
  assert len(np.unique(samples.action[:, 0], axis=0)) > 1


def test_eight_devices_match_one():
  """REINFORCE's baseline is a mean over all devices."""
  runs = []
  for devices in (1, 8):
    state, metrics = _run(_make("reinforce"), 3, devices=devices)
    runs.append((transfers.to_host(state.params), metrics))
  for one, eight in zip(*map(jax.tree.leaves, runs), strict=True):
    np.testing.assert_allclose(one, eight, rtol=2e-3, atol=2e-4)


def test_a_resumed_run_is_bit_for_bit_the_same(tmp_path):
  task, seeds = _make(), (0,)
  mesh = placement.make_mesh(1, _PROMPTS, jax.devices()[:2])

  def run(start, num_updates, saved):
    return runner.run(
      task,
      start,
      num_updates,
      [],
      saver=runner.Saver(saved),
      updates_per_chunk=2,
      show_progress=False,
    ).params

  whole = run(starts.begin(task, seeds, mesh), 6, None)
  saved = checkpointing.Checkpoints(tmp_path / "checkpoints", "f", 3)
  run(starts.begin(task, seeds, mesh), 4, saved)
  start = starts.resume(task, seeds, mesh, saved)
  assert start.update == 4
  for a, b in zip(
    jax.tree.leaves(whole), jax.tree.leaves(run(start, 6, None)), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_dropped_groups_ask_for_nothing():
  """A group without spread is not counted, where the algorithm says so."""
  for algorithm, dropped in (("dapo", True), ("grpo", False)):
    task = _make(algorithm, num_samples=16)
    params, samples = _sampled(task)
    even = np.ptp(np.asarray(samples.reward), axis=0) == 0
    assert 0 < even.sum() < _PROMPTS
    prepare = _compiled(task.prepare)
    batch, metrics = prepare(params, samples)
    counted = np.asarray(batch.mask).any(axis=(0, 2))
    np.testing.assert_array_equal(counted, ~even if dropped else counted | True)
    np.testing.assert_array_equal(batch.advantage[:, even], 0)
    np.testing.assert_allclose(metrics["even_groups"], even.mean(), rtol=1e-6)


def test_vmpo_weighs_the_better_half():
  """And its weights take the place of advantages alone, not of targets."""
  plain, weighted = _make("mdpo"), _make("vmpo", dual_bound=0.05)
  params, samples = _sampled(plain)
  (batch, _), (own, _) = (
    _compiled(task.prepare)(params, samples) for task in (plain, weighted)
  )
  mask = np.asarray(batch.mask)
  expected = losses.vmpo_weights(batch.advantage, 0.05, batch.mask)
  np.testing.assert_allclose(own.advantage, expected, rtol=1e-5)
  np.testing.assert_allclose(own.advantage[mask].mean(), 1.0, rtol=1e-5)
  np.testing.assert_array_equal(own.known_advantage, batch.known_advantage)


@pytest.mark.parametrize("name", signals.FROM_REWARDS)
def test_advantages_of_groups(name):
  """Rewards [G, N]: estimates are over the samples of a prompt, or over all."""
  reward = jnp.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
  found = _compiled(signals.FROM_REWARDS[name])(reward)
  first = {
    "group_relative": 1.0,
    "group_centred": 0.5,
    "leave_one_out": 2 / 3,
    "group_relative_sample": 0.5 * 3**0.5,
    "batch_centred": 0.75,
    "batch_normalized": 3**0.5,
    "reward": 1.0,
  }[name]
  expected = np.array([[first, 0.0], [-first, 0.0]] * 2)
  if name == "batch_centred":
    expected = np.asarray(reward) - 0.25
  if name == "batch_normalized":
    expected = (np.asarray(reward) - 0.25) / 0.1875**0.5
  if name == "reward":
    expected = np.asarray(reward)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_noise_turns_rewards_over():
  noisy = _make(reward_noise=0.3, num_samples=64)
  _, samples = _sampled(noisy)
  turned = np.asarray(samples.reward != samples.correct)
  assert abs(turned.mean() - 0.3) < 0.03


def test_shaped_rewards_are_between():
  shaped = _make(reward="shaped", num_samples=16)
  _, samples = _sampled(shaped)
  reward, correct = np.asarray(samples.reward), np.asarray(samples.correct)
  assert (reward[correct] == 1).all() and (reward[~correct] < 1).all()
  assert np.mean((reward > 0) & ~correct) > 0.1


@pytest.mark.parametrize(
  ("changes", "name"),
  [
    ({"num_samples": 1, "num_minibatches": 1}, "num_samples"),
    ({"reward": "kind"}, "reward"),
    ({"reward_noise": 0.7}, "reward_noise"),
    ({"beta": 0.0}, "beta"),
    ({"sampling": generation.Sampling(0.0)}, "temperature"),
    ({"num_minibatches": 3}, "num_minibatches"),
  ],
)
def test_settings_that_cannot_be(changes, name):
  with pytest.raises(ValueError, match=name):
    _make(**changes)


def test_one_sample_is_enough_without_groups():
  task = _make("reinforce", num_samples=1, num_minibatches=1)
  assert task.steps_per_update == _PROMPTS


def test_learned_advantages_fit_their_returns():
  """PPO's value network explains some of what comes, and nothing at first."""
  task = _make("ppo", num_prompts=32, num_samples=8)
  state, metrics = _run(task, 60, seeds=(0, 1))
  assert metrics["correct"][-10:].mean() > 0.4
  loss = metrics["value_loss"].mean(axis=1)
  assert loss[-10:].mean() < loss[0]
  # Runs differ by what rounding grows into: of four seeds .03 to .22 over the
  # last 20 updates, -2.4 to -.4 over the first ten.
  assert metrics["explained_variance"][:10].mean() < -0.1
  assert metrics["explained_variance"][-40:].mean() > 0.02
  assert set(state.opt_state) == {"policy", "value"}


def test_exact_advantages_are_learned_from():
  task = _make("lco_kld", advantage="oracle", num_prompts=32, diagnostics=True)
  _, metrics = _run(task, 60)
  assert metrics["correct"][-10:].mean() > 0.4
  np.testing.assert_array_equal(metrics["advantage_rms_error"], 0)
  # Every token is spoken of.
  np.testing.assert_allclose(metrics["target_tail_mass"], 0, atol=1e-6)
  # A convex loss, of which every step leads to the target.
  assert metrics["curvature_min"].min() > -1e-6
  assert metrics["direction_against"].max() == 0
  assert metrics["direction_cosine"].min() > 0.5


@pytest.mark.parametrize("num_samples", [1, 6])
def test_the_kl_from_the_reference_is_of_the_same_completions(num_samples):
  """Whether it reads all of them, for their sake, or those looked at."""
  found = []
  for coefficient in (0.0, 0.1):
    task = _make(
      "reinforce",
      num_samples=num_samples,
      num_epochs=1,
      num_minibatches=1,
      reference_coefficient=coefficient,
    )
    params, samples = _sampled(task)
    other = jax.jit(task.init_params)(jax.random.key(2))["policy"]
    prepare = _compiled(task.prepare)
    _, metrics = prepare(params | {"reference": other}, samples)
    found.append(float(metrics["kl_reference"]))
  assert found[0] > 1e-3
  np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_a_reference_is_kept_near():
  """The KL to it stays smaller where it costs."""
  far, near = (
    _run(_make("grpo", reference_coefficient=c, num_prompts=16), 30)[1]
    for c in (0.0, 3.0)
  )
  assert (
    near["kl_reference"][-5:].mean() < 0.5 * far["kl_reference"][-5:].mean()
  )


def test_signals_need_what_they_are_made_of():
  task = tasks.make("countdown")
  model = _model(task)
  sampler = samplers.make_sampler(task, model, 2, generation.Sampling())
  with pytest.raises(ValueError, match="one right answer"):
    _setup(sampler=sampler, advantage="oracle")
  without = dataclasses.replace(_setup(), value_model=None)
  ppo = algorithms.ALGORITHMS["ppo"]
  with pytest.raises(ValueError, match="'learned', the algorithm's default,"):
    dataclasses.replace(without, algorithm=ppo)
  learned = dataclasses.replace(without.options, advantage="learned")
  with pytest.raises(ValueError, match="'learned' needs a value network"):
    dataclasses.replace(without, options=learned)


# All samples of the second prompt earn the same; the last slot holds no token.
_REWARDED = python_types.SimpleNamespace(
  reward=jnp.array([[1.0, 0.5], [0.0, 0.5]]),
  mask=jnp.ones((2, 2, 3), bool).at[..., -1].set(False),
  truncated=jnp.array([[False, True], [False, False]]),
)
_ADVANTAGE = jnp.arange(12.0).reshape(2, 2, 3) - 4.0


def _counted(algorithm, **options):
  row = algorithms.ALGORITHMS[algorithm]
  own = training.Options(**options)
  return _compiled(
    lambda advantage: preparation.count_tokens(
      row, _REWARDED, advantage, jnp.ones_like(advantage), own
    )
  )(_ADVANTAGE)


def test_completions_that_are_cut_off_can_be_left_out():
  found = _counted("lco_mse", mask_truncated=True)
  assert not found.mask[0, 1].any()
  np.testing.assert_array_equal(found.mask[1], _REWARDED.mask[1])
  np.testing.assert_array_equal(found.mask[0, 0], _REWARDED.mask[0, 0])


def test_weighted_lco_weighs_by_the_exponential():
  found = _counted("lco_weighted")
  mask = np.asarray(_REWARDED.mask)
  expected = np.where(mask, np.exp(_ADVANTAGE), 0.0)
  expected /= expected.sum() / mask.sum()
  np.testing.assert_allclose(found.advantage, expected, rtol=1e-5)


def test_tokens_count_by_their_advantage():
  found = _counted("lco_mse")
  np.testing.assert_array_equal(found.mask, _REWARDED.mask)
  np.testing.assert_array_equal(found.even, [[False, True]] * 2)
  np.testing.assert_array_equal(
    found.advantage, np.where(_REWARDED.mask, _ADVANTAGE, 0.0)
  )


def test_groups_whose_rewards_are_equal_are_left_out():
  found = _counted("dapo")
  np.testing.assert_array_equal(found.mask[:, 0], _REWARDED.mask[:, 0])
  assert not found.mask[:, 1].any()
  assert not found.advantage[:, 1].any()


def test_weights_take_the_place_of_advantages():
  found = _counted("vmpo")
  expected = losses.vmpo_weights(
    jnp.where(_REWARDED.mask, _ADVANTAGE, 0.0), 0.1, _REWARDED.mask
  )
  np.testing.assert_allclose(found.advantage, expected, rtol=1e-6)
  assert np.abs(found.advantage - _ADVANTAGE).max() > 0.1


def test_one_sample_compares_with_none():
  one = {"num_samples": 1, "num_minibatches": 1}
  for algorithm, advantage in (
    ("lco_mse", "group_centred"),
    ("dapo", "batch_centred"),
  ):
    with pytest.raises(ValueError, match="num_samples must be ≥ 2"):
      _setup(algorithm, advantage=advantage, **one)
  _setup("lco_mse", advantage="batch_centred", **one)
  _setup("dapo", advantage="batch_centred", num_samples=2)


def test_beta_is_multiplied_where_it_is_told_to(monkeypatch):
  """Below or at 0, and where policy and verifier agree; twice where both."""
  setup = _setup(
    beta=2.0, nonpositive_beta_multiple=3.0, agreement_beta_multiple=5.0
  )
  params, samples = _sampled(_make())
  agreed = samples.mask & (samples.action % 2 == 0)
  make_signal = signals.make_signal

  def agreeing(*arguments, **options):
    estimate = make_signal(*arguments, **options)
    return lambda *a: estimate(*a)._replace(agreed=agreed)

  monkeypatch.setattr(signals, "make_signal", agreeing)
  prepare = functools.partial(preparation.prepare, setup)
  found, _ = _compiled(prepare)(params, samples)
  expected = 2.0 * np.where(found.advantage > 0, 1.0, 3.0)
  expected *= np.where(agreed, 5.0, 1.0)
  np.testing.assert_allclose(found.beta, expected)
  assert set(np.unique(found.beta)) == {2.0, 6.0, 10.0, 30.0}


@pytest.mark.parametrize(
  ("shape", "used"),
  [((5, 4), (2, 4)), ((1, 8), (1, 8))],
)
def test_a_quarter_of_each_prompts_samples_is_assessed(shape, used):
  num_samples, num_prompts = shape
  setup = _setup(
    "reinforce",
    num_samples=num_samples,
    num_prompts=num_prompts,
    num_epochs=1,
    num_minibatches=1,
  )
  made = training.make_training(setup, {"policy": _chain(1e-3)})
  params = jax.jit(made.init_params)(jax.random.key(0))
  keys = jax.random.split(jax.random.key(1), num_prompts)
  _, samples = jax.jit(lambda p, k: made.collect(p, (), k))(params, keys)
  batch, _ = _compiled(made.prepare)(params, samples)

  @_compiled
  def kl(unknown):
    """With old states that are not known of the completions [G, N]."""
    old = jnp.where(unknown[..., None, None], jnp.nan, batch.old_hidden)
    found = made.assess(
      params, params, dataclasses.replace(batch, old_hidden=old)
    )
    return found["kl_old_new"]

  samples, prompts = used
  unknown = np.ones(shape, bool)
  unknown[:samples, :prompts] = False
  assert np.isfinite(kl(unknown))
  unknown[samples - 1, prompts - 1] = True
  assert np.isnan(kl(unknown))


def test_chunks_of_logits_change_nothing():
  """One update, whole logits at a time and some tokens at a time."""
  found = []
  for chunk in (0, 7):
    made = _make("lco_kld", chunk_tokens=chunk, advantage="verifier")
    state, metrics = _run(made, 2)
    found.append((state.params["policy"], metrics))
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


def test_diagnostics_are_of_the_old_policys_targets():
  """Also after the only step on a batch, where the policy is no longer it."""
  found = []
  for num_epochs in (1, 2):
    setup = _setup(diagnostics=True, num_epochs=num_epochs, num_minibatches=1)
    made = training.make_training(setup, {"policy": _chain(1e-3)})
    before = jax.jit(made.init_params)(jax.random.key(0))
    after = before | {
      "policy": jax.jit(made.init_params)(jax.random.key(2))["policy"]
    }
    keys = jax.random.split(jax.random.key(1), _PROMPTS)
    _, samples = jax.jit(lambda p, k, m=made: m.collect(p, (), k))(before, keys)
    batch, _ = _compiled(made.prepare)(before, samples)
    assess = _compiled(made.assess)
    found.append(assess(before, after, batch))
  for name in found[0]:
    np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4)
  assert found[0]["gradient_signal_to_noise"] > 0


def test_rewards_are_scaled_before_advantages():
  """±1 from 0 and 1; the metrics are of the task's own rewards."""
  setup = _setup(advantage="reward", reward_scale=2.0, reward_offset=-1.0)
  params, samples = _sampled(_make(advantage="reward"))
  prepare = functools.partial(preparation.prepare, setup)
  batch, metrics = _compiled(prepare)(params, samples)
  expected = np.where(
    samples.mask, 2.0 * np.asarray(samples.reward)[..., None] - 1.0, 0.0
  )
  np.testing.assert_array_equal(batch.advantage, expected)
  np.testing.assert_allclose(
    metrics["reward_mean"], samples.reward.mean(), rtol=1e-6
  )


def test_beta_follows_the_variance_of_a_dense_signal():
  """√(Var / 2ε), over all tokens of the vocabulary, against NumPy."""
  options = {"advantage": "oracle", "beta_rule": "variance", "kl_budget": 0.03}
  setup = _setup("lco_fisher", **options)
  params, samples = _sampled(_make("lco_fisher", **options))
  prepare = functools.partial(preparation.prepare, setup)
  batch, metrics = _compiled(prepare)(params, samples)
  logits = np.asarray(
    setup.model.head(params["policy"], samples.hidden), np.float64
  )
  probs = np.exp(logits - logits.max(-1, keepdims=True))
  probs /= probs.sum(-1, keepdims=True)
  dense = np.array(
    np.broadcast_to(np.asarray(batch.rest_advantage)[..., None], logits.shape)
  )
  for k in range(batch.known.shape[-1]):
    np.put_along_axis(
      dense,
      np.asarray(batch.known)[..., k, None],
      np.asarray(batch.known_advantage)[..., k, None],
      axis=-1,
    )
  mean = (probs * dense).sum(-1, keepdims=True)
  variance = (probs * (dense - mean) ** 2).sum(-1)[samples.mask].mean()
  expected = np.sqrt(variance / 0.06)
  np.testing.assert_allclose(metrics["beta"], expected, rtol=1e-4)
  np.testing.assert_allclose(batch.beta, expected, rtol=1e-4)
  # A baseline changes no variance.
  signal = jax.jit(lambda p: signals.exact_signal(setup.model, p, samples))(
    params["policy"]
  )
  moved = signal._replace(
    known_advantage=signal.known_advantage + 2.0,
    rest_advantage=signal.rest_advantage + 2.0,
  )
  found = [
    _compiled(
      functools.partial(
        signals.measure_variance, setup.model, params["policy"], samples
      )
    )(own)
    for own in (signal, moved)
  ]
  np.testing.assert_allclose(found, variance, rtol=1e-3)
  with pytest.raises(ValueError, match="beta_rule: 'variance' needs"):
    _setup("lco_fisher", beta_rule="variance")


def test_completions_are_of_the_policy_k_updates_ago():
  """Their log-probabilities are its, in the batch and in the objective."""
  task = _make("lco_fisher", staleness=1, rate=3e-2)
  state, _ = _run(task, 3)
  params = jax.tree.map(lambda x: x[0], transfers.to_host(state.params))
  old = {"policy": jax.tree.map(lambda x: x[0], params["past_policy"])}
  model, one = _model(_task()), jax.tree.map(lambda x: x[0], state)
  samples = _compiled(lambda own: program_lib.collect_step(task, own)[1])(one)
  read = jax.jit(lambda p: reading.read_log_prob(model, p, samples, 0))
  own, stale = read(params["policy"]), read(old["policy"])
  mask = np.asarray(samples.mask)
  np.testing.assert_allclose(
    samples.log_prob[mask], stale[mask], rtol=1e-4, atol=1e-5
  )
  assert np.abs(samples.log_prob - own)[mask].max() > 1e-2
  # A correction lets targets and ratios begin from the learner.
  setup = _setup("lco_fisher", staleness=1, stale_correction="truncated")
  batch, _ = _compiled(functools.partial(preparation.prepare, setup))(
    params, samples
  )
  np.testing.assert_allclose(
    batch.old_log_prob[mask], own[mask], rtol=1e-4, atol=1e-5
  )
  hidden = jax.jit(lambda p: reading.read_hidden(model, p, samples))(
    params["policy"]
  )
  np.testing.assert_allclose(batch.old_hidden, hidden, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    batch.stale_weight[mask],
    np.minimum(np.exp(own - stale), 2.0)[mask],
    rtol=1e-3,
  )
  assert setup.anchor_params(params) is params["policy"]


@pytest.mark.parametrize(
  ("algorithm", "options", "line"),
  [
    ("lco_mse", {"advantage": "oracle", "reward_scale": 2.0}, "reward_scale"),
    (
      "lco_mse",
      {"advantage": "oracle", "length_penalty_tokens": 1},
      "length_penalty_tokens: the signal 'oracle' does not read rewards",
    ),
    ("lco_mse", {"length_penalty_tokens": 99}, "is more than a completion's"),
    ("grpo", {"beta_rule": "feedback"}, "beta_rule: the algorithm has no"),
    ("lco_mse", {"value_clip": 0.1}, "value_clip: the signal"),
    (
      "lco_mse",
      {"beta_rule": "variance", "agreement_beta_multiple": 2.0},
      "agreement_beta_multiple",
    ),
  ],
)
def test_settings_that_nothing_reads_are_refused(algorithm, options, line):
  with pytest.raises(ValueError, match=line):
    _setup(algorithm, **options)


def test_k1_is_refused_as_a_loss():
  with pytest.raises(ValueError, match="reference_kl: 'k1' has no gradient"):
    _setup(reference_coefficient=0.1, reference_kl="k1")
  _setup(reference_coefficient=0.1, reference_kl="k1", reference_kl_in="reward")


def test_even_groups_are_replaced():
  """By the first attempt whose rewards differ; each is what it was alone."""
  attempts = 3

  def collect(params, actor, keys):
    del params
    draws = jax.vmap(lambda key: jax.random.bernoulli(key, 0.15, (4,)))(keys)
    reward = draws.T.astype(jnp.float32)
    return actor, samplers.data.Samples(
      *[reward] * 6, reward=reward, correct=reward > 0, truncated=reward > 2
    )

  keys = jax.random.split(jax.random.key(0), 64)
  every = [
    collect(
      None,
      (),
      jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number),
    )[1].reward
    for number in range(attempts)
  ]
  _, found = samplers.refill_even_groups(collect, attempts)(None, (), keys)
  replaced = kept = 0
  for n in range(64):
    groups = [np.asarray(own[:, n]) for own in every]
    uneven = [group for group in groups if np.ptp(group) > 0]
    expected = (uneven or groups)[0]
    np.testing.assert_array_equal(found.reward[:, n], expected)
    np.testing.assert_array_equal(found.hidden[:, n], expected)
    replaced += expected is not groups[0]
    kept += not uneven
  assert replaced > 5 and kept > 5
  assert samplers.refill_even_groups(collect, 1) is collect


def test_a_run_with_more_attempts_has_fewer_even_groups():
  plain, refilled = (
    _run(_make("dapo", group_attempts=k), 2)[1] for k in (1, 4)
  )
  name = "even_groups"
  assert refilled[name].mean() < plain[name].mean()
