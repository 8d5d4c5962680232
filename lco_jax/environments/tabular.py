"""Tabular MDPs with exact solutions.

NumPy computes exact values on the host in float64. The same tables also become
in-graph environments with one-hot observations.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lco_jax.environments import base


@dataclasses.dataclass(frozen=True)
class TabularMDP:
  """A finite Markov decision process.

  Attributes:
    transitions: float64[S, A, S], P(s' | s, a). A row may sum to less than 1;
      the rest is the probability of termination.
    rewards: float64[S, A], expected reward.
    initial: float64[S], distribution of the first state.
  """

  transitions: np.ndarray
  rewards: np.ndarray
  initial: np.ndarray


def q_values(
  mdp: TabularMDP, policy: np.ndarray, discount: float
) -> np.ndarray:
  """Exact action values of a policy, by solving Bellman's linear system.

  Args:
    mdp: the process.
    policy: float[S, A], rows sum to 1.
    discount: γ < 1, or 1 where every policy terminates.

  Returns:
    float64[S, A], Q^π.

  Source: Sutton & Barto 2018, eq. 3.14.
  """
  num_states = len(mdp.initial)
  policy_transitions = np.einsum("sa,sat->st", policy, mdp.transitions)
  policy_rewards = np.sum(policy * mdp.rewards, axis=-1)
  values = np.linalg.solve(
    np.eye(num_states) - discount * policy_transitions, policy_rewards
  )
  return mdp.rewards + discount * mdp.transitions @ values


def optimal_q_values(mdp: TabularMDP, discount: float) -> np.ndarray:
  """Exact optimal action values, by policy iteration.

  Args:
    mdp: the process.
    discount: γ < 1, or 1 where every policy terminates.

  Returns:
    float64[S, A], Q*.

  Source: Sutton & Barto 2018, section 4.3.
  """
  num_states, num_actions = mdp.rewards.shape
  actions = np.zeros(num_states, int)
  while True:
    q = q_values(mdp, np.eye(num_actions)[actions], discount)
    # Require improvement beyond rounding error, because ties could cycle.
    current = q[np.arange(num_states), actions]
    improved = np.where(q.max(-1) > current + 1e-10, q.argmax(-1), actions)
    if np.array_equal(improved, actions):
      return q
    actions = improved


def expected_return(
  mdp: TabularMDP, policy: np.ndarray, discount: float
) -> float:
  """Exact discounted return of a policy from the initial distribution.

  Args:
    mdp: the MDP.
    policy: float[S, A], rows sum to 1.
    discount: γ.
  """
  values = np.sum(policy * q_values(mdp, policy, discount), axis=-1)
  return float(mdp.initial @ values)


def visitation(
  mdp: TabularMDP, policy: np.ndarray, discount: float
) -> np.ndarray:
  """Expected discounted visits of each state, Σ γᵗ P(s_t = s).

  Args:
    mdp: the process.
    policy: float[S, A], rows sum to 1.
    discount: γ.

  Returns:
    float64[S].
  """
  moves = np.einsum("sa,sat->st", policy, mdp.transitions)
  return np.linalg.solve(
    np.eye(len(mdp.initial)) - discount * moves.T, mdp.initial
  )


def policy_gradient(
  mdp: TabularMDP, policy: np.ndarray, discount: float
) -> np.ndarray:
  """Exact gradient of the return in the policy's logits, d π A.

  Args:
    mdp: the process.
    policy: float[S, A], rows sum to 1.
    discount: γ.

  Returns:
    float64[S, A].

  Source: Sutton et al. 1999, policy gradient theorem.
  """
  q = q_values(mdp, policy, discount)
  advantage = q - np.sum(policy * q, axis=-1, keepdims=True)
  return visitation(mdp, policy, discount)[:, None] * policy * advantage


def chain(length: int = 6) -> TabularMDP:
  """Makes a corridor with reward 0.1 at the left and 1 at the right end.

  The first state is the leftmost. Action 0 moves left; at the first state it
  gives 0.1 and ends the episode. Action 1 moves right; at the last state it
  gives 1 and ends the episode.

  Args:
    length: number of states, ≥ 2.
  """
  transitions = np.zeros((length, 2, length))
  for state in range(length):
    if state > 0:
      transitions[state, 0, state - 1] = 1.0
    if state < length - 1:
      transitions[state, 1, state + 1] = 1.0
  rewards = np.zeros((length, 2))
  rewards[0, 0], rewards[-1, 1] = 0.1, 1.0
  return TabularMDP(transitions, rewards, np.eye(length)[0])


def garnet(
  num_states: int = 12,
  num_actions: int = 4,
  branching: int = 3,
  termination: float = 0.05,
  seed: int = 0,
) -> TabularMDP:
  """Makes a random MDP with a fixed number of successors per state and action.

  Args:
    num_states: S.
    num_actions: A.
    branching: successors of each state and action.
    termination: probability that a step ends the episode.
    seed: seed of the random table.

  Source: Archibald et al. 1995, GARNET problems.
  """
  rng = np.random.default_rng(seed)
  transitions = np.zeros((num_states, num_actions, num_states))
  for state in range(num_states):
    for action in range(num_actions):
      successors = rng.choice(num_states, branching, replace=False)
      weights = rng.dirichlet(np.ones(branching))
      transitions[state, action, successors] = (1 - termination) * weights
  return TabularMDP(
    transitions,
    rng.normal(size=(num_states, num_actions)),
    np.full(num_states, 1 / num_states),
  )


def make_environment(
  mdp: TabularMDP, name: str, max_episode_steps: int = 100
) -> base.Environment:
  """Makes an in-graph environment with one-hot observations from an MDP.

  Args:
    mdp: the process.
    name: the environment's id.
    max_episode_steps: episodes are truncated at this length.
  """
  num_states, num_actions = mdp.rewards.shape
  ends = 1.0 - mdp.transitions.sum(-1, keepdims=True)
  with_end = np.concatenate([mdp.transitions, np.maximum(ends, 0.0)], axis=-1)
  with np.errstate(divide="ignore"):
    log_transitions = jnp.asarray(np.log(with_end), jnp.float32)
    log_initial = jnp.asarray(np.log(mdp.initial), jnp.float32)
  rewards = jnp.asarray(mdp.rewards, jnp.float32)

  def observe(state):
    return jax.nn.one_hot(state, num_states)

  def reset(key):
    state = jax.random.categorical(key, log_initial).astype(jnp.int32)
    return (state, jnp.int32(0)), observe(state)

  def step(key, state, action):
    index, time = state
    successor = jax.random.categorical(key, log_transitions[index, action])
    successor = successor.astype(jnp.int32)
    terminated = successor == num_states
    # After termination the state is not used again; any valid index will do.
    successor = jnp.where(terminated, index, successor)
    time = time + 1
    return base.Transition(
      state=(successor, time),
      observation=observe(successor),
      reward=rewards[index, action],
      terminated=terminated,
      truncated=time >= max_episode_steps,
    )

  return base.Environment(
    name=name,
    observation_shape=(num_states,),
    num_actions=num_actions,
    max_episode_steps=max_episode_steps,
    reset=reset,
    step=step,
  )


MDPS: dict[str, Callable[[], TabularMDP]] = {"chain": chain, "garnet": garnet}


def make(name: str) -> base.Environment:
  """Builds a tabular environment by name.

  Raises:
    ValueError: if there is no such MDP.
  """
  if name not in MDPS:
    raise ValueError(
      f"unknown tabular environment {name!r}; known: {', '.join(MDPS)}"
    )
  return make_environment(MDPS[name](), f"tabular:{name}")
