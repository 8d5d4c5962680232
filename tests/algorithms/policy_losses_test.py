import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import algorithms, losses, numerics, targets
from lco_jax.algorithms import table
from lco_jax.control import data, training
from lco_jax.training import update


def _batch(size=6, num_actions=3, seed=0):
  rng = np.random.default_rng(seed)
  array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  old_logits, action = array(size, num_actions), jnp.arange(size) % num_actions
  advantage = array(size)
  dense = jnp.where(
    jax.nn.one_hot(action, num_actions, dtype=bool), advantage[:, None], 0.0
  )
  return data.Batch(
    observation=array(size, 2),
    action=action,
    advantage=advantage,
    old_logits=old_logits,
    old_log_prob=numerics.action_log_prob(old_logits, action),
    target_logits=targets.optimal_logits(old_logits, dense, 1.0),
    beta=jnp.ones_like(advantage),
    old_value=array(size),
    value_target=array(size),
  )


def _logits(seed=1):
  return jnp.asarray(
    np.random.default_rng(seed).normal(size=(6, 3)), jnp.float32
  )


def _loss(algorithm, **options):
  loss, _ = algorithms.make_policy_loss(algorithm, **options)(
    _logits(), _batch()
  )
  assert loss.shape == (6,)
  return loss


def test_each_algorithm_is_its_loss():
  batch, logits = _batch(), _logits()
  log_prob = numerics.action_log_prob(logits, batch.action)
  where = jax.nn.one_hot(batch.action, 3, dtype=bool)
  centred = losses.centred_logits
  target = batch.target_logits
  np.testing.assert_allclose(
    _loss("lco_mse"), losses.lco_mse_loss(centred(logits), centred(target))
  )
  np.testing.assert_allclose(
    _loss("lco_mse", centred=False), losses.lco_mse_loss(logits, target)
  )
  np.testing.assert_allclose(
    _loss("lco_lch", support="sampled"),
    losses.lco_lch_loss(logits, target, where),
  )
  np.testing.assert_allclose(
    _loss("lco_kld"), losses.lco_kld_loss(logits, target)
  )
  weight = losses.importance_weight(batch.old_logits, batch.action, 5.0)
  np.testing.assert_allclose(
    _loss("lco_kld", max_importance_weight=5.0),
    weight * losses.lco_kld_loss(logits, target),
  )
  np.testing.assert_allclose(
    _loss("ppo", clip_low=0.1, clip_high=0.3),
    losses.ppo_clip_loss(
      log_prob, batch.old_log_prob, batch.advantage, 0.1, 0.3
    ),
  )
  np.testing.assert_allclose(
    _loss("reinforce"), losses.reinforce_loss(log_prob, batch.advantage)
  )
  sampled = (log_prob, batch.old_log_prob, batch.advantage)
  for name, loss in (("mdpo", losses.mdpo_loss), ("apa", losses.apa_loss)):
    np.testing.assert_allclose(
      _loss(name, divergence_coefficient=0.5), loss(*sampled, 0.5)
    )
  np.testing.assert_allclose(
    _loss("cispo", clip_high=0.1), losses.cispo_loss(*sampled, 0.1)
  )
  np.testing.assert_allclose(
    _loss("cmpo", regularizer_coefficient=0.3),
    losses.cmpo_loss(
      logits, batch.old_logits, batch.action, batch.advantage, 0.3
    ),
  )
  np.testing.assert_allclose(
    _loss("awr", divergence_coefficient=0.5, max_weight=3.0),
    losses.awr_loss(log_prob, batch.advantage, 0.5, 3.0),
  )


def test_current_anchor_has_a_constant_gradient():
  """The ablation: −A/β at the sampled action, wherever the policy is."""
  batch = _batch()
  policy_loss = algorithms.make_policy_loss(
    "lco_mse", anchor="current", centred=False
  )
  gradient = jax.grad(lambda z: jnp.sum(policy_loss(z, batch)[0]))
  expected = batch.old_logits - batch.target_logits
  for seed in (1, 2):
    np.testing.assert_allclose(gradient(_logits(seed)), expected, atol=1e-5)


def test_clip_fraction_counts_ratios_out_of_range():
  batch = _batch()
  ratio = jnp.exp(
    numerics.action_log_prob(_logits(), batch.action) - batch.old_log_prob
  )
  _, metrics = algorithms.make_policy_loss("ppo")(_logits(), batch)
  np.testing.assert_array_equal(
    metrics["clip_fraction"], (ratio < 0.8) | (ratio > 1.2)
  )
  assert 0 < metrics["clip_fraction"].mean() < 1


@pytest.mark.parametrize("algorithm", ["lco_mse", "lco_lch", "lco_kld"])
def test_clipped_lco_stalls_where_ppo_does(algorithm):
  """The same plateau: no gradient there, and LCO's own everywhere else."""
  batch, logits = _batch(), 2 * _logits()

  def gradient(name, **options):
    policy_loss = algorithms.make_policy_loss(name, **options)
    return jax.grad(lambda z: jnp.sum(policy_loss(z, batch)[0]))(logits)

  stalled = np.all(np.asarray(gradient("ppo")) == 0, axis=-1)
  assert 0 < stalled.sum() < len(stalled)
  expected = np.where(stalled[:, None], 0.0, gradient(algorithm))
  np.testing.assert_allclose(gradient(algorithm, clip=0.2), expected, atol=1e-6)


def test_objective_adds_entropy_bonus_and_keeps_parts_apart():
  params = {"policy": _logits(), "value": jnp.zeros(6)}
  same = types.SimpleNamespace(
    policy=lambda p, observation: p, value=lambda p, observation: p
  )
  row = algorithms.ALGORITHMS["reinforce"]

  def evaluate(**options):
    setup = training.Setup(
      types.SimpleNamespace(action_sizes=()),
      same,
      row,
      row.policy_loss(),
      training.Options(**options),
    )
    return training.make_objective(setup)(params, _batch())

  def parts(**options):
    return evaluate(**options)[0]

  plain, bonus = parts(), parts(entropy_coefficient=0.5)
  np.testing.assert_allclose(
    plain["policy"].mean - bonus["policy"].mean,
    0.5 * losses.entropy(_logits()).mean(),
    rtol=1e-4,
  )
  batch = _batch()
  np.testing.assert_allclose(
    evaluate(max_kl=1.0)[1][update.KL].mean,
    losses.kl_divergence(batch.old_logits, _logits()).mean(),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    plain["value"].mean, (batch.value_target**2).mean() / 2, rtol=1e-5
  )
  np.testing.assert_allclose(
    parts(value_clip=0.1)["value"].mean,
    losses.clipped_value_loss(
      jnp.zeros(6), batch.old_value, batch.value_target, 0.1
    ).mean(),
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  ("algorithm", "options", "message"),
  [
    ("nope", {}, "algorithm: unknown 'nope'"),
    ("lco_kld", {"support": "full"}, "support: lco_kld takes"),
    ("reinforce", {"clip_low": 0.1}, "clip_low: reinforce takes all_actions"),
    ("lco_mse", {"anchor": "new"}, "anchor: unknown 'new'"),
    ("lco_lch", {"support": "half"}, "support: unknown 'half'"),
    ("lco_kld", {"max_importance_weight": 0.5}, "max_importance_weight"),
    ("ppo", {"clip_low": -0.1}, "clip_low"),
    ("lco_mse", {"clip": 0.0}, "clip"),
    ("lco_fisher", {"clip": 0.1}, "clip: lco_fisher takes no options"),
    ("ppo", {"dual_clip": 1.1}, "dual_clip"),
    ("ppo", {"dual_clip": 3.0, "all_actions": True}, "dual_clip: not with"),
    ("lco_kld", {"clip": float("inf")}, "clip"),
    ("ppo", {"clip_high": float("nan")}, "clip_high"),
  ],
)
def test_wrong_options_are_named(algorithm, options, message):
  with pytest.raises(ValueError, match=message):
    algorithms.make_policy_loss(algorithm, **options)


def test_wrong_objective_numbers_are_named():
  for options in (
    {"entropy_coefficient": -1.0},
    {"entropy_coefficient": float("nan")},
    {"value_clip": 0.0},
    {"value_clip": float("nan")},
  ):
    with pytest.raises(ValueError, match=next(iter(options))):
      training.Options(**options)


_FISHER = {
  "lco_fisher": (losses.lco_fisher_loss, losses.lco_fisher_dense_loss),
  "lco_proximal_kl": (
    losses.lco_proximal_kl_loss,
    losses.lco_proximal_kl_dense_loss,
  ),
  "lco_residual": (losses.lco_residual_mse_loss, losses.lco_fisher_dense_loss),
  "lco_residual_lch": (
    losses.lco_residual_lch_loss,
    losses.lco_residual_lch_dense_loss,
  ),
}


@pytest.mark.parametrize("algorithm", _FISHER)
def test_fisher_algorithms_read_what_is_known(algorithm):
  """One advantage where only the sampled action's is known, else all."""
  sampled, dense = _FISHER[algorithm]
  batch, logits = _batch(), _logits()
  beta = jnp.linspace(0.5, 2.0, 6)
  batch = dataclasses.replace(batch, beta=beta)
  np.testing.assert_array_equal(
    algorithms.make_policy_loss(algorithm)(logits, batch)[0],
    sampled(logits, batch.old_logits, batch.action, batch.advantage, beta),
  )
  known = _logits(seed=2)
  batch = dataclasses.replace(batch, dense_advantage=known)
  np.testing.assert_array_equal(
    algorithms.make_policy_loss(algorithm)(logits, batch)[0],
    dense(logits, batch.old_logits, known, beta),
  )


def test_weighted_lco_is_the_paper_s_kl_where_all_advantages_are_known():
  batch, logits = _batch(), _logits()
  policy_loss = algorithms.make_policy_loss("lco_weighted")
  np.testing.assert_array_equal(
    policy_loss(logits, batch)[0],
    losses.lco_weighted_loss(
      logits, batch.old_logits, batch.action, batch.advantage
    ),
  )
  batch = dataclasses.replace(batch, dense_advantage=_logits(seed=2))
  np.testing.assert_array_equal(
    policy_loss(logits, batch)[0],
    losses.lco_kld_loss(logits, batch.target_logits),
  )


def test_weights_replace_advantages_where_an_algorithm_takes_them():
  advantage = _batch().advantage
  weigh = jax.vmap(
    lambda a, algorithm="lco_weighted": algorithms.weigh_steps(
      algorithms.ALGORITHMS[algorithm], a, jnp.full_like(a, 0.5), 0.1
    ),
    axis_name=numerics.DATA_AXIS,
  )
  np.testing.assert_allclose(
    weigh(advantage[None])[0], losses.lco_weights(advantage, 0.5), rtol=1e-6
  )
  for row in algorithms.ALGORITHMS.values():
    if row.weights is None:
      assert algorithms.weigh_steps(row, advantage, advantage, 0.1) is advantage
    assert row.weights in (None, *algorithms.table.WEIGHTS)


def test_baselines_can_read_all_advantages():
  """The same dense advantages as LCO's; refused where they are not known."""
  batch, logits = _batch(), _logits()
  known = _logits(seed=2)
  dense = dataclasses.replace(batch, dense_advantage=known)
  np.testing.assert_array_equal(
    algorithms.make_policy_loss("reinforce", all_actions=True)(logits, dense)[
      0
    ],
    losses.reinforce_dense_loss(logits, known),
  )
  np.testing.assert_array_equal(
    algorithms.make_policy_loss("ppo", all_actions=True)(logits, dense)[0],
    losses.ppo_clip_dense_loss(logits, batch.old_logits, known, 0.2, 0.2),
  )
  for name in ("reinforce", "ppo"):
    plain = algorithms.make_policy_loss(name)
    np.testing.assert_array_equal(
      plain(logits, dense)[0], plain(logits, batch)[0]
    )
    with pytest.raises(ValueError, match="all_actions: only the sampled"):
      algorithms.make_policy_loss(name, all_actions=True)(logits, batch)


@pytest.mark.parametrize(
  ("make_result", "says"),
  [
    (lambda loss: (jnp.mean(loss), {}), r"own: losses .* \(6,\), got \(\);"),
    (lambda loss: (loss[:, None] * jnp.ones((1, 3)), {}), r"got \(6, 3\)"),
    (lambda loss: (loss, {"m": jnp.mean(loss)}), r"own: m must have one"),
    (lambda loss: loss, r"must return \(losses, metrics\)"),
  ],
)
def test_losses_of_ones_own_do_not_average(monkeypatch, make_result, says):
  for name in ("ALGORITHMS", "CONTROL"):
    monkeypatch.setattr(table, name, dict(getattr(table, name)))

  @algorithms.register("own")
  def make_own(slope: float = 1.0):
    return lambda logits, batch: make_result(
      -slope * batch.advantage * numerics.action_log_prob(logits, batch.action)
    )

  assert table.option_types(table.ALGORITHMS["own"].policy_loss) == {
    "slope": float
  }
  with pytest.raises(ValueError, match=says):
    table.ALGORITHMS["own"].policy_loss(slope=2.0)(_logits(), _batch())
