r"""A plug-in: an environment of each kind, a language task and a policy loss.

python -m experiments.train_control --workdir=DIR \
    --plugins=docs/examples/my_plugin.py \
    --config=experiments/configs/control.py:two_states \
    --config.algorithm=lco_huber --config.delta=2.0
"""

import gymnasium
import jax
import jax.numpy as jnp
import optax

import lco_jax
from lco_jax import environments, losses, numerics, tasks
from lco_jax.tasks import base


@lco_jax.register_environment("two_states")
def make_two_states():
  """Move to state 1 and stay: 1 of 2 actions, 8 steps, compiled."""
  length = 8

  def observe(place, time):
    return jnp.array([place, time / length], jnp.float32)

  def reset(key):
    place = jax.random.bernoulli(key).astype(jnp.int32)
    return (place, jnp.int32(0)), observe(place, 0)

  def step(key, state, action):
    del key  # Nothing is random.
    place, time = state[0] ^ action, state[1] + 1
    return environments.Transition(
      state=(place, time),
      observation=observe(place, time),
      reward=place.astype(jnp.float32),
      terminated=jnp.bool_(False),
      truncated=time >= length,
    )

  return environments.Environment(
    name="two_states",
    observation_shape=(2,),
    num_actions=2,
    max_episode_steps=length,
    reset=reset,
    step=step,
  )


@lco_jax.register_environment("guess")
class Guess(gymnasium.Env):
  """Say the number that is shown: a class of Gymnasium environments."""

  observation_space = gymnasium.spaces.Discrete(3)
  action_space = gymnasium.spaces.Discrete(3)

  def reset(self, *, seed=None, options=None):
    """Draws the number to show."""
    super().reset(seed=seed)
    self.shown = int(self.np_random.integers(3))
    return self.shown, {}

  def step(self, action):
    """Ends the episode; the reward is 1 for the number that was shown."""
    return self.shown, float(action == self.shown), True, False, {}


@lco_jax.register_task("copying")
def make_copying(length: int = 3) -> tasks.Task:
  """Repeat the digits of the prompt: 413> to 413."""
  characters = "0123456789>"
  zero, end_of_prompt = base.encode(characters, "0>")

  def draw(key):
    digits = zero + jax.random.randint(key, (length,), 0, 10, jnp.int32)
    prompt = jnp.append(digits, end_of_prompt)
    return base.make_problem(prompt, digits, jnp.int32(length))

  return tasks.Task(
    f"copying:{length}",
    characters,
    length + 1,
    length + 1,
    draw,
    base.exact_match,
  )


@lco_jax.register_policy_loss("lco_huber", has_target=True)
def make_lco_huber(delta: float = 1.0):
  """LCO on the sampled action's residual, with a Huber loss."""

  def policy_loss(logits, batch):
    # How far the action's logit has moved, in the mean over actions 0.
    moved = numerics.action_log_prob(logits, batch.action) - batch.old_log_prob
    moved = moved + losses.kl_divergence(batch.old_logits, logits)
    wanted = batch.advantage / batch.beta
    return optax.huber_loss(moved, wanted, delta=delta), {}

  return policy_loss
