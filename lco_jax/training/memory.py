"""Past policies and an adapted β, kept from update to update.

They are parts of the parameters that no optimizer changes. So they are saved,
restored and divided over devices like the others.

    past_policy   parameters [k, ...] of the last k policies, the oldest first
    log_beta      log β, where feedback chooses it
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import types
from lco_jax.training.options import PolicyOptions

PAST_POLICY = "past_policy"
LOG_BETA = "log_beta"

# Share of the error in log β that an update corrects, if KL ∝ 1/β²; and the
# range of β around the one that a run begins with.
_GAIN = 0.2
_MOST_CHANGE = 100.0


def begin(
  options: PolicyOptions, params: Mapping[str, types.Params]
) -> dict[str, types.Params]:
  """Adds the parts that the options ask for to a run's first parameters.

  Args:
    options: of the training.
    params: by part, with "policy".
  """
  parts = dict(params)
  if options.staleness:
    # Before the first update all past policies are the first one.
    parts[PAST_POLICY] = jax.tree.map(
      lambda leaf: jnp.stack([leaf] * options.staleness), params["policy"]
    )
  if options.beta_rule == "feedback":
    parts[LOG_BETA] = jnp.log(jnp.float32(options.beta))
  return parts


def acting(params: Mapping[str, types.Params]) -> dict[str, types.Params]:
  """Parameters with the policy that samples: the oldest that is remembered."""
  if PAST_POLICY not in params:
    return dict(params)
  oldest = jax.tree.map(lambda leaf: leaf[0], params[PAST_POLICY])
  return dict(params) | {"policy": oldest}


def beta(
  options: PolicyOptions, params: Mapping[str, types.Params]
) -> Array | float:
  """Returns β of an update's targets.

  It is the setting, or the value that feedback has adapted. The rule `variance`
  is applied to each batch when it is prepared.
  """
  if options.beta_rule == "feedback":
    return jnp.exp(params[LOG_BETA])
  return options.beta


def remember(
  options: PolicyOptions,
  before: Mapping[str, types.Params],
  after: Mapping[str, types.Params],
  metrics: Mapping[str, Any],
) -> dict[str, types.Params]:
  """Parameters after an update, with what is kept brought up to date.

  Args:
    options: of the training.
    before: parameters by part, before the epochs.
    after: the same after them.
    metrics: of the update, over all devices; with `kl_old_new`.
  """
  parts = dict(after)
  if options.staleness:
    parts[PAST_POLICY] = jax.tree.map(
      lambda past, own: jnp.concatenate([past[1:], own[None]]),
      before[PAST_POLICY],
      before["policy"],
    )
  if options.beta_rule == "feedback":
    parts[LOG_BETA] = _follow_budget(
      options, before[LOG_BETA], metrics["kl_old_new"]
    )
  return parts


def _follow_budget(options: PolicyOptions, log_beta: Array, kl: Array) -> Array:
  """log β after an update that moved the policy by a KL.

  The KL of a regression that arrives is about Var(A) / 2β²: half of the error
  in log KL is the error in log β. One update counts for at most e² in KL.
  """
  error = jnp.log(jnp.maximum(kl, 1e-12) / options.kl_budget)
  moved = log_beta + _GAIN * 0.5 * jnp.clip(error, -2.0, 2.0)
  middle, most = jnp.log(options.beta), jnp.log(_MOST_CHANGE)
  return jnp.clip(moved, middle - most, middle + most).astype(jnp.float32)
