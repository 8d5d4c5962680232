r"""Plays a trained control policy: its returns, and an episode to look at.

python -m experiments.enjoy --run=DIR
python -m experiments.enjoy --run=DIR --seed=3 --video=episode.gif

Without further flags, the returns are those of the run's summary.json.
"""

import pathlib

import jax
import numpy as np
from absl import flags

from experiments.common import command_line, plugins
from lco_jax import environments
from lco_jax.control import video
from lco_jax.environments import gymnasium_env
from lco_jax.reporting import statistics, tables
from lco_jax.runs import checkpointing
from lco_jax.trainers import control, policy_reading
from lco_jax.trainers import run as run_lib

_RUN = flags.DEFINE_string(
  "run", None, "Directory of a control run; RUN/rate_... of one with several."
)
flags.mark_flag_as_required("run")
_SEED = flags.DEFINE_integer("seed", None, "Only this of the run's seeds.")
_EPISODES = flags.DEFINE_integer(
  "episodes", None, "Episodes of each seed; the run's own number if left out."
)
_SAMPLED = flags.DEFINE_bool(
  "sampled", False, "Sample actions in place of taking the likeliest."
)
_VIDEO = flags.DEFINE_string(
  "video", None, "GIF of one episode of the first seed; needs a renderer."
)


def main() -> None:
  """Evaluates the run's policies, prints their returns, and draws one."""
  directory = pathlib.Path(_RUN.value)
  try:
    learned, seeds = _read(directory)
    _show_returns(learned, seeds)
    if _VIDEO.value is not None:
      _draw(directory, seeds[0])
  except (ValueError, checkpointing.CheckpointError) as error:
    raise command_line.ScriptError(error) from error


def _read(directory: pathlib.Path) -> tuple[policy_reading.Learned, list[int]]:
  """Reads a run, and which of its seeds to play; checks all flags."""
  if _EPISODES.value is not None and _EPISODES.value < 1:
    raise ValueError(f"--episodes must be ≥ 1, got {_EPISODES.value}")
  if _VIDEO.value is not None:
    out = pathlib.Path(_VIDEO.value)
    if out.suffix != ".gif" or not out.absolute().parent.is_dir():
      raise ValueError(f"--video {out}: want NAME.gif in a folder that exists")
  plugins.check_run(directory)
  learned = policy_reading.read_learned(directory)
  if not isinstance(learned.run, control.Run):
    raise ValueError(
      f"--run {directory}: is a language run; complete texts with"
      " experiments.generate"
    )
  seeds = run_lib.seeds_of(learned.settings)
  if _SEED.value is None:
    return learned, list(seeds)
  if _SEED.value not in seeds:
    raise ValueError(
      f"--seed {_SEED.value}: the run has seeds {seeds[0]} to {seeds[-1]}"
    )
  return learned, [_SEED.value]


def _show_returns(learned: policy_reading.Learned, seeds: list[int]) -> None:
  """Prints the mean return of each seed."""
  settings = learned.settings
  episodes = _EPISODES.value or settings["eval_episodes"]
  # All learners, as at the end of training: random numbers depend on them.
  where, returns = control.evaluate(
    learned.run,
    control.acting_params(learned.params),
    episodes,
    settings["seed"],
    greedy=not _SAMPLED.value,
  )
  first = run_lib.seeds_of(settings)[0]
  found = np.array(
    [returns[learned.first + seed - first].mean() for seed in seeds]
  )
  how = "sampled" if _SAMPLED.value else "greedy"
  print(
    f"{settings['algorithm']} on {settings['environment']}, {how},"
    f" {episodes} episodes a seed ({where})"
  )
  for seed, value in zip(seeds, found, strict=True):
    print(f"seed {seed:3d}  {value:10.2f}")
  if len(seeds) > 1:
    print(
      "\n".join(
        tables.format_scores(
          "return", [("all seeds", statistics.summarize(found))]
        )
      )
    )


def _draw(directory: pathlib.Path, seed: int) -> None:
  """Writes an episode of a seed's policy as a GIF."""
  policy = policy_reading.load_policy(directory, seed)
  environment = policy.environment
  if not isinstance(environment, environments.HostEnvironment):
    environment = gymnasium_env.make_twin(environment) or environment
  act = jax.jit(
    lambda observation, key: policy.act(
      observation, key if _SAMPLED.value else None
    )
  )
  episode = video.play(environment, act, seed)
  out = pathlib.Path(_VIDEO.value)
  try:
    video.save_gif(out, episode.images)
  except OSError as error:
    raise command_line.ScriptError(
      f"--video {out} cannot be written: {error}", command_line.FAILED
    ) from error
  print(
    f"video: {out} (seed {seed}, {len(episode.images) - 1} steps, return"
    f" {episode.total:g})"
  )


if __name__ == "__main__":
  command_line.run(main)
