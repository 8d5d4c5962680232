import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import advantages


def _gae_oracle(reward, value, next_value, terminated, done, gamma, lam):
  """The definition: a discounted sum of TD errors, episode by episode."""
  T, N = reward.shape
  delta = reward + gamma * (1 - terminated) * next_value - value
  result = np.zeros((T, N))
  for n in range(N):
    for t in range(T):
      weight = 1.0
      for k in range(t, T):
        result[t, n] += weight * delta[k, n]
        if done[k, n]:
          break
        weight *= gamma * lam
  return result


def _rollout(seed=0, T=12, N=5):
  rng = np.random.default_rng(seed)
  done = rng.random((T, N)) < 0.3
  terminated = done & (rng.random((T, N)) < 0.5)
  assert (done & ~terminated).any() and terminated.any()
  return [rng.normal(size=(T, N)) for _ in range(3)] + [terminated, done]


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_gae_against_an_oracle(lam, float64):
  rollout = _rollout()
  actual = advantages.generalized_advantage_estimation(
    *map(jnp.asarray, rollout), 0.9, lam
  )
  np.testing.assert_allclose(
    actual, _gae_oracle(*rollout, 0.9, lam), rtol=1e-12, atol=1e-12
  )


def test_gae_bootstraps_through_truncation_and_not_through_termination():
  def one_step(terminated):
    return advantages.generalized_advantage_estimation(
      jnp.ones((1, 1)),
      jnp.zeros((1, 1)),
      jnp.full((1, 1), 10.0),
      jnp.full((1, 1), terminated),
      jnp.full((1, 1), True),
      0.9,
      0.95,
    )

  np.testing.assert_allclose(one_step(terminated=True), 1.0)
  np.testing.assert_allclose(one_step(terminated=False), 1.0 + 0.9 * 10.0)


def test_monte_carlo_advantage_is_return_minus_value(float64):
  reward, value, next_value, terminated, done = map(jnp.asarray, _rollout())
  # Values of successors within an episode are the next row's.
  next_value = next_value.at[:-1].set(
    jnp.where(done[:-1], next_value[:-1], value[1:])
  )
  returns = advantages.discounted_returns(
    reward, next_value, terminated, done, 0.9
  )
  gae = advantages.generalized_advantage_estimation(
    reward, value, next_value, terminated, done, 0.9, 1.0
  )
  np.testing.assert_allclose(gae, returns - value, atol=1e-12)


def test_discounted_returns_by_hand():
  returns = advantages.discounted_returns(
    jnp.array([1.0, 2.0, 3.0, 4.0]),
    jnp.array([100.0, 100.0, 10.0, 20.0]),
    jnp.array([False, True, False, False]),
    jnp.array([False, True, True, False]),
    0.5,
  )
  # 1 + ½·2; 2, terminal; 3 + ½·10, truncated; 4 + ½·20, end of the rollout.
  np.testing.assert_allclose(returns, [2.0, 2.0, 8.0, 14.0])


def test_gae_rejects_wrong_shapes_and_masks():
  ones = jnp.ones((3, 2))
  no = jnp.zeros((3, 2), bool)
  with pytest.raises(AssertionError):
    advantages.generalized_advantage_estimation(
      ones, ones, jnp.ones((4, 2)), no, no, 0.9, 0.9
    )
  with pytest.raises(AssertionError):
    advantages.generalized_advantage_estimation(
      ones, ones, ones, ones, no, 0.9, 0.9
    )


def test_normalized():
  x = jnp.array([1.0, 2.0, 6.0])
  y = advantages.normalized(x, jnp.mean(x), jnp.var(x))
  np.testing.assert_allclose([y.mean(), y.std()], [0.0, 1.0], atol=1e-6)
  # Equal numbers whose rounded mean is another number.
  equal = jnp.full(2048, 1000.1, jnp.float32)
  mean = jnp.sum(equal) / 2048 + jnp.float32(6e-5)
  flat = advantages.normalized(equal, mean, jnp.mean((equal - mean) ** 2))
  np.testing.assert_array_equal(flat, 0.0)
  constant = advantages.normalized(jnp.ones(3), jnp.float32(1), jnp.float32(0))
  np.testing.assert_array_equal(constant, 0.0)


def test_group_relative():
  rewards = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
  relative = advantages.group_relative(jnp.asarray(rewards))
  expected = (rewards - rewards.mean(-1, keepdims=True)) / (
    rewards.std(-1, keepdims=True) + 1e-6
  )
  np.testing.assert_allclose(relative, expected, rtol=1e-4, atol=1e-5)


def test_group_relative_of_equal_rewards_is_exactly_zero():
  # 0.1 is not a float: the mean of seven need not equal each.
  rewards = jnp.full((2, 7), 0.1)
  np.testing.assert_array_equal(advantages.group_relative(rewards), 0.0)


def test_leave_one_out():
  rewards = np.random.default_rng(0).normal(size=(3, 5))
  actual = advantages.leave_one_out(jnp.asarray(rewards, jnp.float32))
  for i in range(5):
    others = np.delete(rewards, i, axis=-1).mean(-1)
    np.testing.assert_allclose(actual[:, i], rewards[:, i] - others, atol=1e-5)
  with pytest.raises(AssertionError):
    advantages.leave_one_out(jnp.ones((3, 1)))


def test_sampled_puts_the_advantage_at_the_action():
  dense = advantages.sampled(jnp.array([2.0, -1.0]), jnp.array([1, 0]), 3)
  np.testing.assert_array_equal(dense, [[0, 2, 0], [-1, 0, 0]])
  with pytest.raises(AssertionError):
    advantages.sampled(jnp.ones(2), jnp.ones(2), 3)
  with pytest.raises(AssertionError):
    advantages.sampled(jnp.ones(2), jnp.ones(3, jnp.int32), 3)


def test_zero_mean_completion_has_zero_mean_unless_the_floor_binds(float64):
  rng = np.random.default_rng(0)
  z = jnp.asarray(3.0 * rng.normal(size=(50, 6)))
  known = jnp.asarray(rng.normal(size=(50, 2)))
  indices = jnp.asarray([rng.choice(6, 2, replace=False) for _ in range(50)])
  completed = advantages.zero_mean_completion(z, known, indices)
  probs = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  mean = (probs * completed).sum(-1)
  at_known = np.take_along_axis(probs, np.asarray(indices), -1)
  np.testing.assert_allclose(
    np.take_along_axis(np.asarray(completed), np.asarray(indices), -1),
    known * (1 - at_known),
  )
  unknown = 1 - at_known.sum(-1)
  np.testing.assert_allclose(mean[unknown >= 0.1], 0.0, atol=1e-12)
  assert (unknown < 0.1).any() and (np.abs(mean[unknown < 0.1]) > 1e-9).all()
