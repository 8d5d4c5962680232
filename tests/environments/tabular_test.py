import jax
import jax.numpy as jnp
import numpy as np

from lco_jax import targets
from lco_jax.environments import tabular
from tests import oracles


def test_chain_by_hand():
  """Right all the way is worth γ⁵; left at once is worth 0.1."""
  mdp = tabular.chain(6)
  q = tabular.optimal_q_values(mdp, 0.9)
  np.testing.assert_allclose(q[0], [0.1, 0.9**5])
  np.testing.assert_allclose(q[-1, 1], 1.0)
  # Impatience reverses the choice.
  assert tabular.optimal_q_values(mdp, 0.5)[0].argmax() == 0


def test_q_values_satisfy_bellman():
  mdp = tabular.garnet()
  rng = np.random.default_rng(1)
  policy = rng.dirichlet(np.ones(4), size=12)
  q = tabular.q_values(mdp, policy, 0.95)
  values = (policy * q).sum(-1)
  np.testing.assert_allclose(q, mdp.rewards + 0.95 * mdp.transitions @ values)
  best = tabular.optimal_q_values(mdp, 0.95)
  np.testing.assert_allclose(
    best, mdp.rewards + 0.95 * mdp.transitions @ best.max(-1), rtol=1e-9
  )
  assert (best >= q - 1e-9).all()


def test_simulation_agrees_with_the_exact_return():
  mdp = tabular.garnet(termination=0.3)
  environment = tabular.make_environment(mdp, "garnet", max_episode_steps=60)
  policy = np.random.default_rng(0).dirichlet(np.ones(4), size=12)
  log_policy = jnp.log(jnp.asarray(policy, jnp.float32))
  discount = 0.9

  def episode(key):
    reset_key, key = jax.random.split(key)
    state, _ = environment.reset(reset_key)

    def step(carry, key):
      state, weight, total = carry
      action_key, step_key = jax.random.split(key)
      action = jax.random.categorical(action_key, log_policy[state[0]])
      transition = environment.step(step_key, state, action)
      total += weight * transition.reward
      weight = jnp.where(transition.terminated, 0.0, weight * discount)
      return (transition.state, weight, total), None

    start = (state, jnp.float32(1.0), jnp.float32(0.0))
    (_, _, total), _ = jax.lax.scan(step, start, jax.random.split(key, 60))
    return total

  returns = jax.vmap(episode)(jax.random.split(jax.random.key(0), 20_000))
  error = 4 * np.std(returns) / np.sqrt(20_000)
  exact = tabular.expected_return(mdp, policy, discount)
  assert abs(np.mean(returns) - exact) < error


def test_stepping_to_the_optimal_target_improves_every_state(float64):
  """One exact LCO step is mirror descent: V never falls, and it converges."""
  mdp, discount, beta = tabular.garnet(), 0.9, 1.0
  logits = np.zeros((12, 4))
  best = tabular.optimal_q_values(mdp, discount).max(-1)
  previous = None
  for _ in range(60):
    policy = oracles.softmax(logits)
    q = tabular.q_values(mdp, policy, discount)
    values = (policy * q).sum(-1)
    if previous is not None:
      assert (values >= previous - 1e-10).all()
    previous = values
    logits = np.asarray(
      targets.optimal_logits(
        jnp.asarray(logits), jnp.asarray(q - values[:, None]), beta
      )
    )
  np.testing.assert_allclose(previous, best, atol=1e-4)


def test_policy_gradient_against_finite_differences():
  mdp = tabular.garnet()
  logits = np.random.default_rng(2).normal(size=(12, 4))
  found = tabular.policy_gradient(mdp, oracles.softmax(logits), 0.95)
  expected = oracles.gradient(
    lambda z: tabular.expected_return(mdp, oracles.softmax(z), 0.95), logits
  )
  np.testing.assert_allclose(found, expected, atol=1e-7)
