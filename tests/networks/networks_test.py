import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import networks


@pytest.mark.parametrize("shape", [(4,), (10, 5), (10, 10, 4)])
def test_shapes_with_any_leading_axes(shape):
  net = networks.make_actor_critic(shape, 3, (16, 16), "tanh")
  params = net.init(jax.random.key(0))
  for leading in ((), (2,), (2, 5)):
    observation = jnp.ones((*leading, *shape))
    logits = net.policy(params["policy"], observation)
    assert logits.shape == (*leading, 3) and logits.dtype == jnp.float32
    assert net.value(params["value"], observation).shape == leading


def test_batched_is_one_by_one():
  net = networks.make_actor_critic((10, 10, 4), 3, (16,), "relu")
  params = net.init(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (2, 3, 10, 10, 4))
  np.testing.assert_allclose(
    net.policy(params["policy"], x)[1, 2],
    net.policy(params["policy"], x[1, 2]),
    rtol=1e-4,
    atol=1e-6,
  )


def test_policy_starts_near_uniform_and_shares_nothing_with_value():
  net = networks.make_actor_critic((4,), 3, (64, 64), "tanh")
  params = net.init(jax.random.key(0))
  logits = net.policy(params["policy"], jnp.ones(4))
  np.testing.assert_allclose(jax.nn.softmax(logits), 1 / 3, atol=0.02)
  kernels = [
    params[part]["params"]["Dense_0"]["kernel"] for part in ("policy", "value")
  ]
  assert not np.allclose(*kernels)


def test_wrong_settings_are_named():
  with pytest.raises(ValueError, match="activation"):
    networks.make_actor_critic((4,), 2, (8,), "nope")
  with pytest.raises(ValueError, match="hidden_sizes"):
    networks.make_actor_critic((4,), 2, (8, 0), "tanh")
