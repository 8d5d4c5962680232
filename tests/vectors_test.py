"""Golden numbers: float64 outputs of the paper's authors' own functions."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import advantages, losses, targets

_FILE = pathlib.Path(__file__).parent / "data" / "lco_vectors.json"
_CASES = json.loads(_FILE.read_text())["cases"]
_LOSSES = {
  "mse": losses.lco_mse_loss,
  "lch": losses.lco_lch_loss,
  "kld": losses.lco_kld_loss,
}


def _cases(kind):
  return [case for case in _CASES if case["kind"] == kind]


@pytest.fixture(
  params=[("float32", False), ("float32", True), ("float64", True)],
  ids=["float32-eager", "float32-jit", "float64-jit"],
)
def arithmetic(request):
  """(array constructor, comparison, caller) of a precision."""
  precision, jit = request.param
  tolerance = (
    {"rtol": 1e-4, "atol": 1e-5}
    if precision == "float32"
    else {"rtol": 1e-10, "atol": 1e-10}
  )

  def array(values):
    return jnp.asarray(values, precision)

  def check(actual, expected, **wider):
    assert actual.dtype == precision
    np.testing.assert_allclose(actual, expected, **tolerance | wider)

  def run(function, *args):
    return (jax.jit(function) if jit else function)(*args)

  with jax.enable_x64(precision == "float64"):
    yield array, check, run


def test_every_kind_of_case_is_covered():
  kinds = {case["kind"] for case in _CASES}
  assert kinds == {
    "lco",
    "lco_sampled_coordinate",
    "zero_mean_completion",
    "ratio_target",
  }
  assert len(_CASES) == 32


@pytest.mark.parametrize("case", _cases("lco"))
def test_targets(case, arithmetic):
  array, check, run = arithmetic
  old_logits = array(case["old_logits"])
  if case["support"] == "sampled":
    dense = run(
      lambda a, i: advantages.sampled(a, i, old_logits.shape[-1]),
      array(case["advantage"]),
      jnp.asarray(case["action"]),
    )
    check(dense, case["dense_advantages"])
  dense = array(case["dense_advantages"])
  beta = case["beta"]
  logits = run(
    lambda z, a: targets.optimal_logits(z, a, beta), old_logits, dense
  )
  check(logits, case["optimal_logits"])
  log_probs = run(
    lambda z, a: targets.optimal_log_probs(z, a, beta), old_logits, dense
  )
  check(log_probs, case["optimal_log_probs"])


@pytest.mark.parametrize("name", _LOSSES)
@pytest.mark.parametrize("case", _cases("lco"))
def test_losses(case, name, arithmetic):
  array, check, run = arithmetic
  logits = array(case["logits"])
  target = array(
    case["optimal_log_probs" if name == "kld" else "optimal_logits"]
  )
  loss = _LOSSES[name]
  check(run(loss, logits, target), case[name])
  gradient = jax.grad(lambda z, t: jnp.sum(loss(z, t)))
  check(run(gradient, logits, target), case[f"{name}_grad"])


@pytest.mark.parametrize("name", ["mse", "lch"])
@pytest.mark.parametrize("case", _cases("lco_sampled_coordinate"))
def test_losses_of_the_sampled_coordinate(case, name, arithmetic):
  array, check, run = arithmetic
  old_logits, logits = array(case["old_logits"]), array(case["logits"])
  num_actions = logits.shape[-1]
  action = jnp.asarray(case["action"])
  target = targets.optimal_logits(
    old_logits,
    advantages.sampled(array(case["advantage"]), action, num_actions),
    case["beta"],
  )
  where = jax.nn.one_hot(action, num_actions, dtype=bool)
  loss = _LOSSES[name]
  check(run(loss, logits, target, where), case[name])
  gradient = jax.grad(lambda z, t, w: jnp.sum(loss(z, t, w)))
  check(run(gradient, logits, target, where), case[f"{name}_grad"])


@pytest.mark.parametrize("case", _cases("zero_mean_completion"))
def test_zero_mean_completion(case, arithmetic):
  array, check, run = arithmetic
  completed = run(
    advantages.zero_mean_completion,
    array(case["old_logits"]),
    array(case["advantages"]),
    jnp.asarray(case["indices"]),
  )
  check(completed, case["completed"])


@pytest.mark.parametrize("case", _cases("ratio_target"))
def test_ratio_target(case, arithmetic):
  array, check, run = arithmetic
  log_target = run(
    lambda z, a: targets.ratio_log_probs(
      z, a, case["rho"], case["min_prob"], case["max_prob"]
    ),
    array(case["old_logits"]),
    jnp.asarray(case["action"]),
  )
  # These golden numbers carry single-precision rounding of the sampled action's
  # probability (up to 7e-6 relative, where 1 − p is small); targets_test.py
  # has the float64 oracle at 1e-10.
  check(log_target, case["log_target"], rtol=1e-4, atol=1e-5)
