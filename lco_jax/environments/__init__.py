"""Environments by id: NAMESPACE:NAME, or a bare gymnax name.

| namespace | environments |
|---|---|
| gymnax    | every gymnax environment, e.g. CartPole-v1 |
| gymnasium | every Gymnasium environment, on the host |
| probe     | one-idea environments with known answers |
| tabular   | small MDPs whose exact Q can be computed |

Continuous actions are cut into bins. Actions of several dimensions are
independent choices, one for each.
"""

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
  legal_actions,
  logits_shape,
)

_NAMESPACES = {
  "gymnax": gymnax_env.make,
  "gymnasium": gymnasium_env.make,
  "probe": probes.make,
  "tabular": tabular.make,
}


def make(
  environment_id: str, action_bins: int | None = None
) -> Environment | HostEnvironment:
  """Builds an environment by its id.

  Args:
    environment_id: "NAMESPACE:NAME"; without a namespace, gymnax's.
    action_bins: values of each dimension of a continuous action, ≥ 2; None for
      discrete ones.

  Raises:
    ValueError: if the namespace or the name is unknown, or `action_bins` and
      the environment's actions do not go together.
  """
  namespace, colon, name = environment_id.rpartition(":")
  if not colon:
    namespace = "gymnax"
  if namespace not in _NAMESPACES:
    raise ValueError(
      f"unknown environment namespace {namespace!r} in {environment_id!r};"
      f" known: {', '.join(_NAMESPACES)}"
    )
  if namespace in ("gymnax", "gymnasium"):
    return _NAMESPACES[namespace](name, action_bins)
  bins.refuse_bins(action_bins, environment_id)
  return _NAMESPACES[namespace](name)


__all__ = [
  "Environment",
  "HostEnvironment",
  "Options",
  "Transition",
  "legal_actions",
  "logits_shape",
  "make",
]
