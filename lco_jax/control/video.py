"""Episodes as pictures: one episode of a policy, drawn by its environment."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from lco_jax import environments, types

# Milliseconds between pictures: browsers show a GIF no faster than the first,
# and a short episode is shown slowly, so that it can be followed.
_FASTEST, _SLOWEST, _SHORT_EPISODE = 30, 200, 5_000
# An action of one observation: (observation float[O], key) → int32[] or [D].
Act = Callable[[Array, types.PRNGKey], Array]


class Episode(NamedTuple):
  """An episode that was drawn.

  Attributes:
    images: uint8[H, W, 3] each, the first state included.
    total: undiscounted return.
  """

  images: Sequence[np.ndarray]
  total: float


def play(
  environment: environments.Environment | environments.HostEnvironment,
  act: Act,
  seed: int,
) -> Episode:
  """Plays and draws one episode.

  Args:
    environment: to play in.
    act: chooses actions.
    seed: of the environment and of sampled actions.

  Raises:
    ValueError: if the environment cannot be drawn.
  """
  try:
    if isinstance(environment, environments.HostEnvironment):
      return _play_on_host(environment, act, seed)
    return _play_in_graph(environment, act, seed)
  except Exception as error:  # Users' and others' drawing code raises anything.
    line = next(iter(str(error).splitlines()), type(error).__name__)
    raise ValueError(f"{environment.name} cannot be drawn: {line}") from error


def save_gif(path: pathlib.Path, images: Sequence[np.ndarray]) -> None:
  """Writes pictures as an animated GIF.

  Args:
    path: of the file.
    images: uint8[H, W, 3] each, of one size.
  """
  from PIL import Image  # Drawing is optional.

  pace = max(_FASTEST, min(_SLOWEST, _SHORT_EPISODE // len(images)))
  first, *others = (Image.fromarray(image) for image in images)
  first.save(
    path,
    format="GIF",
    save_all=True,
    append_images=others,
    duration=pace,
    loop=0,
  )


def _play_on_host(
  environment: environments.HostEnvironment, act: Act, seed: int
) -> Episode:
  if environment.make_drawn is None:
    raise ValueError("it has no make_drawn")
  own, key = environment.make_drawn(), jax.random.key(seed)
  observation, _ = own.reset(seed=seed)
  images, total, ended = [own.render()], 0.0, False
  while not ended:
    key, action_key = jax.random.split(key)
    (encoded,) = environment.encode(np.asarray(observation)[None])
    action = np.asarray(act(encoded, action_key))
    observation, reward, terminated, truncated, _ = own.step(action)
    images.append(own.render())
    total, ended = total + float(reward), terminated or truncated
  own.close()
  return Episode(images, total)


def _play_in_graph(
  environment: environments.Environment, act: Act, seed: int
) -> Episode:
  if environment.draw is None:
    raise ValueError("it has no function draw")
  key, reset_key = jax.random.split(jax.random.key(seed))
  step = jax.jit(environment.step)
  state, observation = environment.reset(reset_key)
  states, returns, ended = [state], [0.0], False
  while not ended:
    key, action_key, step_key = jax.random.split(key, 3)
    found = step(step_key, state, act(observation, action_key))
    state, observation = found.state, found.observation
    states.append(state)
    returns.append(returns[-1] + float(found.reward))
    ended = bool(found.terminated | found.truncated)
  return Episode(list(environment.draw(states, returns)), returns[-1])
