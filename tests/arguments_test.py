"""Errors of the losses, as someone meets them who calls one wrongly."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import advantages, arguments, losses, targets

_Z, _ACTIONS, _ADVANTAGES = jnp.zeros((2, 3)), jnp.array([0, 1]), jnp.ones(2)
_DONE = jnp.zeros((4, 2), bool)


@pytest.mark.parametrize(
  ("call", "line"),
  [
    (
      lambda: losses.lco_fisher_loss(_Z, _Z, _ACTIONS, _Z, 1.0),
      "lco_fisher_loss: advantages must be float[...], here [2], got"
      " float32[2, 3] (of the sampled actions, in units of return;",
    ),
    (
      lambda: losses.lco_fisher_loss(_Z, _Z, _ACTIONS, _ACTIONS, 1.0),
      "lco_fisher_loss: advantages must be float[...], got int32[2] (of the",
    ),
    (
      lambda: losses.lco_fisher_loss(_Z, _Z, _ADVANTAGES, _ADVANTAGES, 1.0),
      "actions must be int[...], got float32[2] (sampled from the behaviour",
    ),
    (
      lambda: targets.optimal_logits(_Z, _ADVANTAGES, 1.0),
      "optimal_logits: advantages must be float[..., A], here [2, 3], got"
      " float32[2] (advantage of every action, in units of return; of the"
      " sampled action's alone `advantages.sampled` makes it)",
    ),
    (
      lambda: jax.jit(losses.lco_mse_loss)(_Z, jnp.zeros((2, 4))),
      "lco_mse_loss: target_logits must be float[..., A], here [2, 3], got"
      " float32[2, 4] (optimal logits z*;",
    ),
    (
      lambda: losses.lco_mse_loss(_Z, _Z, jnp.ones((2, 3))),
      "where must be bool[..., A], got float32[2, 3] (actions whose residual",
    ),
    (
      lambda: losses.lco_mse_loss([[1.0, 2.0]], np.zeros(3, np.float32)),
      "target_logits must be float[..., A], here [1, 2], got float32[3]",
    ),
    (
      lambda: advantages.group_relative(jnp.ones((2, 3), int)),
      "group_relative: rewards must be float[..., n], got int32[2, 3] (rewards"
      " of the n samples of one prompt)",
    ),
    (
      lambda: advantages.generalized_advantage_estimation(
        jnp.ones((4, 2)),
        jnp.ones((5, 2)),
        jnp.ones((4, 2)),
        _DONE,
        _DONE,
        0.9,
        0.9,
      ),
      "values must be float[T, ...], here [4, 2], got float32[5, 2] (V(s_t))",
    ),
  ],
)
def test_the_argument_is_named_with_what_it_should_be(call, line):
  with pytest.raises(AssertionError) as caught:
    call()
  assert line in str(caught.value)
  assert "\n" not in str(caught.value)


def test_without_one_at_fault_all_are_shown(float64):
  with pytest.raises(AssertionError) as caught:
    losses.lco_mse_loss(jnp.zeros(3), jnp.zeros(3, jnp.float32))
  line = "lco_mse_loss: arrays must share one dtype, got ['float32', 'float64']"
  assert str(caught.value).startswith(line)
  assert str(caught.value).endswith(
    "got logits float64[3], target_logits float32[3]"
  )


@pytest.mark.parametrize("module", [losses, targets, advantages])
def test_every_function_explains_its_errors(module):
  """And keeps its name, its signature and its docstring."""
  for name, function in vars(module).items():
    if inspect.isfunction(function) and not name.startswith("_"):
      own = inspect.unwrap(function)
      assert own is not function, name
      assert function.__name__ == name
      assert inspect.signature(function) == inspect.signature(own)
      assert list(arguments._documented(own)), name
