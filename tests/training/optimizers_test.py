import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lco_jax.training import optimizers

pytestmark = pytest.mark.third_party  # optax casts implicitly.


@pytest.mark.parametrize(
  ("name", "start", "middle", "end"),
  [("constant", 1, 1, 1), ("linear", 1, 0.5, 0), ("cosine", 1, 0.5, 0)],
)
def test_schedules(name, start, middle, end):
  schedule = optimizers.make_schedule(name, 0.1, 100)
  np.testing.assert_allclose(
    [schedule(0), schedule(50), schedule(100)],
    0.1 * np.array([start, middle, end]),
    atol=1e-7,
  )


@pytest.mark.parametrize("rate", [-1.0, 0.0, float("nan"), float("inf")])
def test_learning_rate_must_be_positive_and_finite(rate):
  with pytest.raises(ValueError, match="learning_rate"):
    optimizers.make_schedule("linear", rate, 10)


def test_wrong_names_and_options_are_named():
  constant = optax.constant_schedule(0.1)
  with pytest.raises(ValueError, match="learning_rate_schedule"):
    optimizers.make_schedule("steep", 0.1, 10)
  for name in ("nope", "clip_by_global_norm", "lbfgs", "__doc__"):
    with pytest.raises(ValueError, match=f"{name!r}"):
      optimizers.make_optimizer(name, constant, None)
  with pytest.raises(ValueError, match="sgd"):
    optimizers.make_optimizer("sgd", constant, None, nope=1)
  for norm in (0.0, -1.0, float("nan")):
    with pytest.raises(ValueError, match="max_gradient_norm"):
      optimizers.make_optimizer("adam", constant, norm)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lion", "rmsprop"])
def test_optimizers_by_name(name):
  optimizer = optimizers.make_optimizer(
    name, optax.constant_schedule(0.1), None
  )
  params = {"w": jnp.ones(3)}
  updates, _ = optimizer.update(params, optimizer.init(params), params)
  assert (updates["w"] < 0).all()


def test_gradients_are_clipped_before_the_optimizer():
  optimizer = optimizers.make_optimizer(
    "sgd", optax.constant_schedule(1.0), 0.5
  )
  params = {"w": jnp.zeros(2)}
  updates, _ = optimizer.update(
    {"w": jnp.array([30.0, 40.0])}, optimizer.init(params), params
  )
  np.testing.assert_allclose(updates["w"], [-0.3, -0.4], rtol=1e-5)


def test_a_rate_rises_before_it_falls():
  """In a line to the top and then as without it, over the steps left."""
  schedule = optimizers.make_schedule("linear", 0.1, 110, warmup_steps=10)
  rates = np.array([schedule(step) for step in range(111)])
  np.testing.assert_allclose(rates[0], 0.1 / 11, rtol=1e-6)
  np.testing.assert_allclose(np.diff(rates[:11], 2), 0, atol=1e-7)
  plain = optimizers.make_schedule("linear", 0.1, 100)
  np.testing.assert_allclose(
    rates[10:], [plain(step) for step in range(101)], atol=1e-7
  )
  for steps in (-1, 110):
    with pytest.raises(ValueError, match="learning_rate_warmup"):
      optimizers.make_schedule("linear", 0.1, 110, warmup_steps=steps)


def test_a_rate_of_its_own_is_as_that_of_a_schedule():
  """A relative schedule times the state's rate, whatever the optimizer has."""
  params = {"w": jnp.ones(3)}
  gradients = {"w": jnp.array([1.0, -2.0, 3.0])}

  def steps(optimizer, state):
    for _ in range(3):
      updates, state = optimizer.update(gradients, state, params)
    return updates["w"]

  def make(rate):
    schedule = optimizers.make_schedule("linear", rate, 10)
    return optimizers.make_optimizer(
      "adamw", schedule, 0.5, weight_decay=0.1, b1=0.8
    )

  expected = steps(make(0.03), make(0.03).init(params))
  own = optimizers.make_own_rate(make(1.0))
  state = optax.tree.set(own.init(params), step_size=jnp.float32(0.03))
  np.testing.assert_allclose(steps(own, state), expected, rtol=1e-6)
  with pytest.raises(KeyError):
    optax.tree.set(make(1.0).init(params), step_size=jnp.float32(0.03))

  # Learners with a rate each, in one program.
  def learn(rate):
    return steps(own, optax.tree.set(own.init(params), step_size=rate))

  found = jax.vmap(learn)(jnp.float32([0.01, 0.03]))
  for position, rate in enumerate((0.01, 0.03)):
    expected = steps(make(rate), make(rate).init(params))
    np.testing.assert_allclose(found[position], expected, rtol=1e-6)
