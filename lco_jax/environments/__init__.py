"""Environments by id: NAMESPACE:NAME, or a bare name.

A bare name is one that `register` was called with, or else gymnax's.

| namespace | environments |
|---|---|
| gymnax    | every gymnax environment, e.g. CartPole-v1 |
| gymnasium | every Gymnasium environment, on the host |
| probe     | one-idea environments with known answers |
| tabular   | small MDPs whose exact Q can be computed |

Continuous actions are cut into bins. Actions of several dimensions are
independent choices, one for each.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from lco_jax import checks
from lco_jax.environments import (
  bins,
  gymnasium_env,
  gymnax_env,
  probes,
  tabular,
)
from lco_jax.environments.base import (
  Environment,
  HostEnvironment,
  Options,
  Transition,
  check_environment,
  legal_actions,
  logits_shape,
)

_NAMESPACES = {
  "gymnax": gymnax_env.make,
  "gymnasium": gymnasium_env.make,
  "probe": probes.make,
  "tabular": tabular.make,
}

# {bare name: what makes the environment}.
_REGISTERED: dict[str, Callable[[], Any]] = {}


def register(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
  """Registers an environment of your own under a bare name.

      @lco_jax.register_environment("two_states")
      def make_two_states():
        return lco_jax.environments.Environment(...)

  The decorated function takes no arguments and returns one of these: an
  `Environment`; an environment with gymnax's interface, alone or as a pair
  (environment, parameters); a new `gymnasium.Env`. A class of Gymnasium
  environments can be decorated itself.

  Args:
    name: id of the environment, without a colon.

  Raises:
    ValueError: if the name is taken, or cannot be an id.
  """

  def add(make_one: Callable[[], Any]) -> Callable[[], Any]:
    checks.check_new_name("register_environment", name, _REGISTERED)
    _REGISTERED[name] = make_one
    return make_one

  return add


def make(
  environment_id: str, action_bins: int | None = None
) -> Environment | HostEnvironment:
  """Builds an environment by its id.

  Args:
    environment_id: "NAMESPACE:NAME"; without a namespace, a registered name or
      else gymnax's.
    action_bins: values of each dimension of a continuous action, ≥ 2; None for
      discrete ones.

  Raises:
    ValueError: if the namespace or the name is unknown, or `action_bins` and
      the environment's actions do not go together.
  """
  if environment_id in _REGISTERED:
    return _make_registered(environment_id, action_bins)
  namespace, colon, name = environment_id.rpartition(":")
  if namespace == "own":
    raise ValueError(
      f"environment {environment_id!r} was an object of the script that trained"
      " on it; go on from that script"
    )
  if not colon:
    namespace = "gymnax"
  if namespace not in _NAMESPACES:
    raise ValueError(
      f"unknown environment namespace {namespace!r} in {environment_id!r};"
      f" known: {', '.join(_NAMESPACES)}"
    )
  if namespace == "gymnax":
    return gymnax_env.make(name, action_bins, list(_REGISTERED))
  if namespace == "gymnasium":
    return gymnasium_env.make(name, action_bins)
  bins.refuse_bins(action_bins, environment_id)
  return _NAMESPACES[namespace](name)


def _make_registered(
  name: str, action_bins: int | None
) -> Environment | HostEnvironment:
  """Builds a registered environment; its own name keeps gymnax's apart."""
  import gymnax  # Imported here, as in `gymnax_env`.

  if name in gymnax.registered_envs:
    raise ValueError(
      f"environment {name!r} is registered, but gymnax has this name; choose"
      " another"
    )
  try:
    return _adapt(_REGISTERED[name], name, action_bins)
  except ValueError:
    raise
  except Exception as error:  # The user's code may raise any exception.
    raise ValueError(
      f"environment {name!r}: {type(error).__name__}: {error}"
    ) from error


def _adapt(
  make_one: Callable[[], Any], name: str, action_bins: int | None
) -> Environment | HostEnvironment:
  """Builds an environment of whatever kind a function returns."""
  import gymnasium

  made = make_one()
  if isinstance(made, Environment | HostEnvironment):
    bins.refuse_bins(action_bins, name)
    return dataclasses.replace(made, name=name)
  if isinstance(made, gymnasium.Env):
    made.close()
    return gymnasium_env.wrap(make_one, name, action_bins)
  is_pair = isinstance(made, tuple) and len(made) == 2
  environment, params = made if is_pair else (made, None)
  if not hasattr(environment, "step_env"):
    raise ValueError(
      f"environment {name!r}: want an Environment, a gymnasium.Env or a gymnax"
      f" environment, got {type(made).__name__}"
    )
  if params is None:
    params = environment.default_params
  return gymnax_env.wrap(environment, params, name, action_bins)


__all__ = [
  "Environment",
  "HostEnvironment",
  "Options",
  "Transition",
  "check_environment",
  "legal_actions",
  "logits_shape",
  "make",
  "register",
]
