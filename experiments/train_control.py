r"""Trains a policy for control and evaluates it.

python -m experiments.train_control --workdir=DIR \
    --config=experiments/configs/control.py:CartPole-v1 \
    --config.algorithm=lco_mse
"""

import contextlib
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from absl import flags

from experiments.builders import control
from experiments.common import command_line, training_run
from lco_jax import environments, types
from lco_jax.control import evaluation, host_rollout, normalization
from lco_jax.control import training as control_training
from lco_jax.environments import gymnasium_env
from lco_jax.reporting import curves, statistics, tables
from lco_jax.runs import run_directory, runner
from lco_jax.training import cpu_backend

_CONFIG = command_line.define_config()
command_line.define_distributed()
# Keeps the evaluation's random numbers apart from the training's.
_EVALUATION_STREAM = 20_000


def evaluate(
  environment: environments.Environment | environments.HostEnvironment,
  policy: types.Apply,
  params: types.Params,
  num_episodes: int,
  seed: int,
  greedy: bool,
) -> tuple[str, np.ndarray]:
  """Evaluates in Gymnasium's original where there is one.

  Args:
    environment: that of training.
    policy: (parameters, observation) → logits.
    params: what it reads, [learners, ...].
    num_episodes: of each policy.
    seed: of the evaluation.
    greedy: whether to take the likeliest action, or to sample.

  Returns:
    (where, mean returns of the learners).
  """
  if isinstance(environment, environments.HostEnvironment):
    original = environment
  else:
    original = gymnasium_env.make_twin(environment)
  if original is not None:
    returns = evaluation.on_host(
      original, policy, params, seed, num_episodes, greedy
    )
    backend = "gymnasium"
  else:
    key = jax.random.fold_in(jax.random.key(seed), _EVALUATION_STREAM)
    returns = evaluation.in_graph(
      environment, policy, params, key, num_episodes, greedy
    )
    backend = "in-graph"
  return backend, returns.mean(axis=1)


def main(stack: contextlib.ExitStack) -> None:
  """Trains, evaluates, and writes the run directory, locked on the stack."""
  workdir = pathlib.Path(flags.FLAGS.workdir)
  with training_run.explained(workdir):
    settings = command_line.read_settings(flags.FLAGS, _CONFIG.value)
    alone = not flags.FLAGS.distributed
    cpu_backend.divide_cores(
      training_run.num_learners(settings) if alone else 1
    )
    stack.enter_context(command_line.job(flags.FLAGS, settings))
    setup, training, num_updates = control.build(settings)
    if setup.on_host and settings["policy_learning_rates"]:
      raise ValueError(
        f"policy_learning_rates: {setup.environment.name} runs on the host and"
        " takes one policy_learning_rate"
      )
    # Raises before anything is written.
    training_run.make_mesh(settings, training)
    training_run.open_directory(stack, workdir, settings, flags.FLAGS.resume)
  make_collector, policy = None, control_training.make_policy(setup)
  if setup.on_host:

    def make_collector(mesh, seeds, update):
      collector = host_rollout.HostCollector(
        setup.environment,
        policy,
        training,
        mesh,
        seeds,
        update,
        setup.return_discount,
      )
      stack.callback(collector.close)
      return collector

  result = training_run.train(
    workdir,
    settings,
    training,
    num_updates,
    should_stop=command_line.StopSignal(),
    resume=flags.FLAGS.resume,
    resume_update=flags.FLAGS.resume_update,
    make_collector=make_collector,
    profile=flags.FLAGS.profile,
  )
  if jax.process_index() == 0:
    with training_run.explained(workdir):
      _report(workdir, settings, setup.environment, policy, result)


def _report(
  workdir: pathlib.Path,
  settings: dict,
  environment: environments.Environment | environments.HostEnvironment,
  policy: types.Apply,
  result: runner.Result,
) -> None:
  """Evaluates all learners; writes and shows what each cell came to."""
  acting = {
    part: result.params[part]
    for part in ("policy", normalization.OBSERVATIONS)
    if part in result.params
  }
  evaluations = {
    name: evaluate(
      environment,
      policy,
      acting,
      settings["eval_episodes"],
      seed=settings["seed"],
      greedy=greedy,
    )
    for name, greedy in (("evaluation", True), ("evaluation_sampled", False))
  }
  for cell in training_run.cells(workdir, settings):
    own = {
      name: {
        "backend": backend,
        "episodes": settings["eval_episodes"],
        **statistics.summarize(returns[cell.learners]),
      }
      for name, (backend, returns) in evaluations.items()
    }
    _report_cell(cell.workdir, cell.settings, result, own)


def _report_cell(
  workdir: pathlib.Path,
  settings: Mapping,
  result: runner.Result,
  evaluations: dict,
) -> None:
  """Writes summary.json and the picture, and shows the table."""
  logged = run_directory.read_metrics(
    workdir, ["episode_return_mean", "episodes", "policy_loss"]
  )
  returns = (logged["episode_return_mean"], logged["episodes"])
  summary = {
    "env": settings["environment"],
    "algorithm": settings["algorithm"],
    "learning_rate": settings["policy_learning_rate"],
    "num_seeds": settings["num_seeds"],
    "total_steps": result.total_steps,
    "compile_seconds": result.compile_seconds,
    "train_seconds": result.train_seconds,
    "steps_per_second": result.steps_per_second,
    "final_return": statistics.summarize(curves.final_return(*returns)),
    **evaluations,
  }
  run_directory.write_json(workdir / "summary.json", summary)
  picture = workdir / "learning_curve.png"
  curves.save_learning_curve(
    picture,
    *curves.bin_returns(
      logged["env_steps"], *returns, gone=np.isnan(logged["policy_loss"])
    ),
    title=f"{settings['algorithm']} on {settings['environment']}",
  )
  print(tables.format_run(summary))
  print(f"learning curve: {picture}")


if __name__ == "__main__":
  command_line.run_with_stack(main)
