"""Gymnasium's own environments, stepped on the host for evaluation.

The gymnax environments that training uses are re-implementations; these are
the originals, so that a result does not rest on the twin.
"""

import gymnasium

# gymnax ids whose Gymnasium original has the same id and the same physics.
TWINS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0")


def make_vector(
  environment_id: str, num_envs: int
) -> gymnasium.vector.VectorEnv:
  """Builds copies of one of Gymnasium's originals, stepped one by one.

  Args:
    environment_id: one of TWINS.
    num_envs: number of copies.

  Raises:
    ValueError: if the id is not one of TWINS.
  """
  if environment_id not in TWINS:
    raise ValueError(f"{environment_id!r} is not one of {', '.join(TWINS)}")
  return gymnasium.make_vec(
    environment_id, num_envs=num_envs, vectorization_mode="sync"
  )
