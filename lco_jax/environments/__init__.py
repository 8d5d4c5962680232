"""Environments by id: NAMESPACE:NAME, or a bare gymnax name.

| namespace | environments |
|---|---|
| gymnax    | every discrete-action gymnax environment, e.g. CartPole-v1 |
| gymnasium | every discrete-action Gymnasium environment, on the host |
| probe     | one-idea environments with known answers |
| tabular   | small MDPs whose exact Q can be computed |
"""

from lco_jax.environments import gymnasium_env, gymnax_env, probes, tabular
from lco_jax.environments.base import Environment, HostEnvironment, Transition

_NAMESPACES = {
  "gymnax": gymnax_env.make,
  "gymnasium": gymnasium_env.make,
  "probe": probes.make,
  "tabular": tabular.make,
}


def make(environment_id: str) -> Environment | HostEnvironment:
  """Builds an environment by its id.

  Args:
    environment_id: "NAMESPACE:NAME"; without a namespace, gymnax's.

  Raises:
    ValueError: if the namespace or the name is unknown, or the environment's
      actions are not discrete.
  """
  namespace, colon, name = environment_id.rpartition(":")
  if not colon:
    namespace = "gymnax"
  if namespace not in _NAMESPACES:
    raise ValueError(
      f"unknown environment namespace {namespace!r} in {environment_id!r};"
      f" known: {', '.join(_NAMESPACES)}"
    )
  return _NAMESPACES[namespace](name)


__all__ = ["Environment", "HostEnvironment", "Transition", "make"]
