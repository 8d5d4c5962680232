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


def _run(function, *args, jit):
  return (jax.jit(function) if jit else function)(*args)


@pytest.fixture(params=["float32", "float64"])
def precision(request):
  """(array constructor, comparison) at the tolerances of each precision."""
  tolerance = (
    {"rtol": 1e-4, "atol": 1e-5}
    if request.param == "float32"
    else {"rtol": 1e-10, "atol": 1e-10}
  )

  def array(values):
    return jnp.asarray(values, request.param)

  def check(actual, expected, **wider):
    assert actual.dtype == request.param
    np.testing.assert_allclose(actual, expected, **tolerance | wider)

  with jax.enable_x64(request.param == "float64"):
    yield array, check


@pytest.fixture(params=[False, True], ids=["eager", "jit"])
def jit(request):
  return request.param


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
def test_targets(case, precision, jit):
  array, check = precision
  old_logits = array(case["old_logits"])
  if case["support"] == "sampled":
    dense = _run(
      lambda a, i: advantages.sampled(a, i, old_logits.shape[-1]),
      array(case["advantage"]),
      jnp.asarray(case["action"]),
      jit=jit,
    )
    check(dense, case["dense_advantages"])
  dense = array(case["dense_advantages"])
  beta = case["beta"]
  logits = _run(
    lambda z, a: targets.optimal_logits(z, a, beta), old_logits, dense, jit=jit
  )
  check(logits, case["optimal_logits"])
  log_probs = _run(
    lambda z, a: targets.optimal_log_probs(z, a, beta),
    old_logits,
    dense,
    jit=jit,
  )
  check(log_probs, case["optimal_log_probs"])


@pytest.mark.parametrize("name", _LOSSES)
@pytest.mark.parametrize("case", _cases("lco"))
def test_losses(case, name, precision, jit):
  array, check = precision
  logits = array(case["logits"])
  target = array(
    case["optimal_log_probs" if name == "kld" else "optimal_logits"]
  )
  loss = _LOSSES[name]
  check(_run(loss, logits, target, jit=jit), case[name])
  gradient = jax.grad(lambda z, t: jnp.sum(loss(z, t)))
  check(_run(gradient, logits, target, jit=jit), case[f"{name}_grad"])


@pytest.mark.parametrize("name", ["mse", "lch"])
@pytest.mark.parametrize("case", _cases("lco_sampled_coordinate"))
def test_losses_of_the_sampled_coordinate(case, name, precision, jit):
  array, check = precision
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
  check(_run(loss, logits, target, where, jit=jit), case[name])
  gradient = jax.grad(lambda z, t, w: jnp.sum(loss(z, t, w)))
  check(_run(gradient, logits, target, where, jit=jit), case[f"{name}_grad"])


@pytest.mark.parametrize("case", _cases("zero_mean_completion"))
def test_zero_mean_completion(case, precision, jit):
  array, check = precision
  completed = _run(
    advantages.zero_mean_completion,
    array(case["old_logits"]),
    array(case["advantages"]),
    jnp.asarray(case["indices"]),
    jit=jit,
  )
  check(completed, case["completed"])


@pytest.mark.parametrize("case", _cases("ratio_target"))
def test_ratio_target(case, precision, jit):
  array, check = precision
  log_target = _run(
    lambda z, a: targets.ratio_log_probs(
      z, a, case["rho"], case["min_prob"], case["max_prob"]
    ),
    array(case["old_logits"]),
    jnp.asarray(case["action"]),
    jit=jit,
  )
  # These golden numbers carry single-precision rounding of the sampled action's
  # probability (up to 7e-6 relative, where 1 − p is small); targets_test.py
  # has the float64 oracle at 1e-10.
  check(log_target, case["log_target"], rtol=1e-4, atol=1e-5)
