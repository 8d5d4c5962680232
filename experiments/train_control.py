"""Trains a policy for control and evaluates it.

python -m experiments.train_control --workdir=DIR \
    --config=experiments/configs/control.py:CartPole-v1 \
    --config.algorithm=lco_mse
"""

import contextlib
import math
import pathlib

import jax
from absl import flags

from experiments import command_line
from lco_jax import (
  checkpointing,
  control,
  cpu_backend,
  environments,
  evaluation,
  metric_writer,
  networks,
  objectives,
  optimizers,
  placement,
  run_directory,
  runner,
  training,
  types,
)
from lco_jax.environments import gymnasium_env
from lco_jax.reporting import curves, statistics, tables

_CONFIG = command_line.define_config()
_COUNTS = (
  "num_seeds",
  "total_steps",
  "eval_episodes",
  "num_envs",
  "num_steps",
  "num_epochs",
  "num_minibatches",
  "keep_checkpoints",
)
_RATES = ("policy_learning_rate", "value_learning_rate")
_NORMS = ("policy_max_gradient_norm", "value_max_gradient_norm")
# Keeps the evaluation's random numbers apart from the training's.
_EVALUATION_STREAM = 20_000
# Every name that is an option of some algorithm.
_OPTIONS = sorted(
  {
    option
    for algorithm in objectives.POLICY_LOSSES
    for option in objectives.options_of(algorithm)
  }
)


def parse_options(text: str) -> dict[str, float]:
  """Keyword arguments of an optimizer from "name=number,name=number".

  Raises:
    ValueError: if the text is not of that form.
  """
  try:
    pairs = [item.split("=") for item in text.split(",") if item]
    return {name.strip(): float(value) for name, value in pairs}
  except ValueError:
    raise ValueError(
      f'optimizer_options: want "name=number,...", got {text!r}'
    ) from None


def build(settings: dict):
  """Builds the environment, its networks, the training and its length.

  Args:
    settings: plain values, from `command_line.resolve`.

  Returns:
    (Environment, ActorCritic, Training, number of updates).

  Raises:
    ValueError: naming the setting that is wrong.
  """
  policy_loss = objectives.make_policy_loss(
    settings["algorithm"],
    **{k: settings[k] for k in _OPTIONS if settings[k] is not None},
  )
  for name in _COUNTS:
    if settings[name] < 1:
      raise ValueError(f"{name} must be ≥ 1, got {settings[name]}")
  if not settings["checkpoint_seconds"] >= 0:
    raise ValueError(
      f"checkpoint_seconds must be ≥ 0, got {settings['checkpoint_seconds']}"
    )
  updates_per_chunk = settings["updates_per_chunk"]
  if updates_per_chunk is not None and updates_per_chunk < 1:
    raise ValueError(f"updates_per_chunk must be ≥ 1, got {updates_per_chunk}")
  if not 0 <= settings["seed"] < 2**31:
    raise ValueError(f"seed must be in [0, 2³¹), got {settings['seed']}")
  for name in _RATES:
    if not 0 < settings[name] < math.inf:
      raise ValueError(
        f"{name} must be positive and finite, got {settings[name]}"
      )
  for name in _NORMS:
    if not 0 <= settings[name] < math.inf:
      raise ValueError(f"{name} must be ≥ 0 and finite, got {settings[name]}")
  steps_per_update = settings["num_envs"] * settings["num_steps"]
  num_updates = settings["total_steps"] // steps_per_update
  if num_updates < 1:
    raise ValueError(
      f"total_steps {settings['total_steps']} is less than one update of"
      f" num_envs × num_steps = {steps_per_update}"
    )
  environment = environments.make(settings["environment"])
  actor_critic = networks.make_actor_critic(
    environment.observation_shape,
    environment.num_actions,
    settings["hidden_sizes"],
    settings["activation"],
  )
  objective = objectives.make_objective(
    actor_critic.policy,
    actor_critic.value,
    policy_loss,
    settings["entropy_coefficient"],
    settings["value_clip"],
  )
  optimizer_steps = (
    num_updates * settings["num_epochs"] * settings["num_minibatches"]
  )
  task = control.make_training(
    environment,
    actor_critic,
    objective,
    {
      part: optimizers.make_optimizer(
        settings["optimizer"],
        optimizers.make_schedule(
          settings["learning_rate_schedule"],
          settings[f"{part}_learning_rate"],
          optimizer_steps,
        ),
        settings[f"{part}_max_gradient_norm"] or None,
        **parse_options(settings["optimizer_options"]),
      )
      for part in ("policy", "value")
    },
    **{
      name: settings[name]
      for name in (
        "num_envs",
        "num_steps",
        "num_epochs",
        "num_minibatches",
        "discount",
        "gae_lambda",
        "beta",
        "nonpositive_beta_multiple",
        "normalize_advantages",
      )
    },
  )
  return environment, actor_critic, task, num_updates


def evaluate(
  environment: types.Environment,
  policy: types.Apply,
  params: types.Params,
  num_episodes: int,
  seed: int,
  greedy: bool,
) -> dict:
  """Evaluates in Gymnasium's original where there is one.

  Args:
    environment: that of training.
    policy: its policy network.
    params: policies' parameters [seeds, ...].
    num_episodes: of each policy.
    seed: of the evaluation.
    greedy: whether to take the likeliest action, or to sample.

  Returns:
    The evaluation's part of summary.json.
  """
  if environment.name in gymnasium_env.TWINS:
    num_policies = len(jax.tree.leaves(params)[0])
    copies = gymnasium_env.make_vector(
      environment.name, num_policies * num_episodes
    )
    returns = evaluation.on_host(copies, policy, params, seed, greedy)
    copies.close()
    backend = "gymnasium"
  else:
    key = jax.random.fold_in(jax.random.key(seed), _EVALUATION_STREAM)
    returns = evaluation.in_graph(
      environment, policy, params, key, num_episodes, greedy
    )
    backend = "in-graph"
  return {
    "backend": backend,
    "episodes": num_episodes,
    **statistics.summarize(returns.mean(axis=1)),
  }


def main() -> None:
  """Trains, evaluates, and writes the run directory."""
  with contextlib.ExitStack() as stack:
    _train(stack)


def _train(stack: contextlib.ExitStack) -> None:
  """Runs the script; what it holds of the run directory is on the stack."""
  workdir = pathlib.Path(flags.FLAGS.workdir)
  resume = flags.FLAGS.resume
  try:
    settings = command_line.read_settings(_CONFIG.value)
    cpu_backend.divide_cores(settings["num_seeds"])
    environment, actor_critic, task, num_updates = build(settings)
    where = placement.place(
      settings["num_seeds"], task.num_streams, jax.local_devices()
    )
    metric_writer.check_wandb(settings["wandb_project"])
    if not resume:
      run_directory.create(workdir, settings)
    stack.enter_context(run_directory.locked(workdir))
    seeds = range(settings["seed"], settings["seed"] + settings["num_seeds"])
    checkpoints = checkpointing.Checkpoints(
      workdir / "checkpoints",
      checkpointing.fingerprint(settings),
      settings["keep_checkpoints"],
    )
    start = None
    if resume:
      start = runner.find_start(
        checkpoints, task, seeds, where, flags.FLAGS.resume_update
      )
    writers = metric_writer.make_writers(
      workdir,
      seeds,
      settings,
      resume_after=(start.update if start else 0) if resume else None,
      steps_per_update=task.steps_per_update,
    )
  except (ValueError, OSError, checkpointing.CheckpointError) as error:
    raise command_line.ScriptError(error) from error
  try:
    result = runner.run(
      task,
      seeds,
      where,
      num_updates,
      writers,
      checkpoints=checkpoints,
      checkpoint_seconds=settings["checkpoint_seconds"],
      start=start,
      should_stop=command_line.StopSignal(),
      updates_per_chunk=settings["updates_per_chunk"],
    )
  except runner.StoppedError as stopped:
    raise command_line.ScriptError(
      f"{stopped}; go on with --resume --workdir={workdir}",
      command_line.STOPPED,
    ) from stopped
  except training.NonFiniteError as error:
    raise command_line.ScriptError(
      f"training stopped at {error}", command_line.FAILED
    ) from error
  except checkpointing.CheckpointError as error:
    raise command_line.ScriptError(error, command_line.FAILED) from error
  except OSError as error:
    raise command_line.ScriptError(
      f"workdir {workdir} cannot be written to: {error}", command_line.FAILED
    ) from error
  logged = run_directory.read_metrics(
    workdir, ["episode_return_mean", "episodes"]
  )
  returns = (logged["episode_return_mean"], logged["episodes"])
  evaluations = [
    evaluate(
      environment,
      actor_critic.policy,
      result.params["policy"],
      settings["eval_episodes"],
      seed=settings["seed"],
      greedy=greedy,
    )
    for greedy in (True, False)
  ]
  summary = {
    "env": settings["environment"],
    "algorithm": settings["algorithm"],
    "num_seeds": settings["num_seeds"],
    "total_steps": result.total_steps,
    "compile_seconds": result.compile_seconds,
    "train_seconds": result.train_seconds,
    "steps_per_second": result.steps_per_second,
    "final_return": statistics.summarize(curves.final_return(*returns)),
    "evaluation": evaluations[0],
    "evaluation_sampled": evaluations[1],
  }
  run_directory.write_json(workdir / "summary.json", summary)
  picture = workdir / "learning_curve.png"
  curves.save_learning_curve(
    picture,
    *curves.binned(logged["env_steps"], *returns),
    title=f"{settings['algorithm']} on {settings['environment']}",
  )
  print(tables.run_summary(summary))
  print(f"learning curve: {picture}")


if __name__ == "__main__":
  command_line.run(main)
