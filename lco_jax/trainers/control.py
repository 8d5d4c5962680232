"""Control runs from their settings: building, training, evaluating.

Settings are plain values, from `settings.resolve`.
"""

import contextlib
import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from lco_jax import algorithms, environments, networks, types
from lco_jax.control import evaluation, host_rollout, normalization, training
from lco_jax.environments import gymnasium_env
from lco_jax.reporting import curves, statistics
from lco_jax.runs import run_directory, runner
from lco_jax.trainers import run as run_lib
from lco_jax.trainers import settings as settings_lib
from lco_jax.training import program

# Keeps the evaluation's random numbers apart from the training's.
_EVALUATION_STREAM = 20_000
_LOGGED = ["episode_return_mean", "episodes", "policy_loss"]


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts of a run.

  Attributes:
    setup: environment, networks, loss and options.
    training: of policy and value network.
    num_updates: of each seed.
  """

  setup: training.Setup
  training: program.Training
  num_updates: int

  @property
  def policy(self) -> types.Apply:
    """(parameters that act, observation) → logits."""
    return training.make_policy(self.setup)


def build(
  settings: Mapping,
  environment: environments.Environment
  | environments.HostEnvironment
  | None = None,
) -> Run:
  """Builds a run; a ValueError names the setting that is wrong.

  Args:
    settings: of the run.
    environment: to train in; None for the one that the settings name.
  """
  policy_options = settings_lib.options(
    settings, algorithms.options_by_name(algorithms.CONTROL)
  )
  settings_lib.check_all_actions(policy_options, True, "GAE")
  row = algorithms.CONTROL[settings["algorithm"]]
  settings_lib.check(settings, ("total_steps", "eval_episodes"))
  options = settings_lib.take(settings, training.Options)
  steps_per_update = options.num_envs * options.num_steps
  num_updates = settings["total_steps"] // steps_per_update
  if num_updates < 1:
    raise ValueError(
      f"total_steps {settings['total_steps']} is less than one update of"
      f" num_envs × num_steps = {steps_per_update}"
    )
  if environment is None:
    environment = environments.make(
      settings["environment"],
      settings_lib.take(settings, environments.Options).action_bins,
    )
  elif settings["action_bins"] is not None:
    raise ValueError(
      "action_bins: for ids; an environment object has its own actions"
    )
  if isinstance(environment, environments.Environment):
    environments.check_environment(environment)
  actor_critic = networks.make_actor_critic(
    environment.observation_shape,
    environments.logits_shape(environment),
    settings["hidden_sizes"],
    settings["activation"],
    environments.legal_actions(environment),
  )
  setup = training.Setup(
    environment, actor_critic, row, row.policy_loss(**policy_options), options
  )
  if setup.on_host and settings["policy_learning_rates"]:
    raise ValueError(
      f"policy_learning_rates: {environment.name} runs on the host and takes"
      " one policy_learning_rate"
    )
  optimizer_steps = num_updates * options.num_epochs * options.num_minibatches
  own = training.make_training(
    setup,
    {
      part: settings_lib.make_optimizer(settings, part, optimizer_steps)
      for part in ("policy", "value")
    },
  )
  return Run(setup, own, num_updates)


def prepare(
  stack: contextlib.ExitStack,
  launch: run_lib.Launch,
  environment: environments.Environment
  | environments.HostEnvironment
  | None = None,
) -> Run:
  """Builds a run, checks it, and opens its directory.

  Args:
    stack: holds the directory.
    launch: of the run.
    environment: to train in; None for the one that the settings name.

  Raises:
    ValueError: if anything is wrong, before anything is written.
  """
  run = build(launch.settings, environment)
  run_lib.make_mesh(launch.settings, run.training)
  run_lib.open_directory(stack, launch)
  return run


def execute(
  stack: contextlib.ExitStack, launch: run_lib.Launch, run: Run
) -> run_lib.Outcome:
  """Trains and evaluates a run, and writes what it came to.

  Args:
    stack: closes environments on the host.
    launch: of the run.
    run: from `prepare`.

  Raises:
    InputError, FaultError, CheckpointError, StoppedError: as of `run.start`
      and `run.finish`.
  """
  make_collector = None
  if run.setup.on_host:

    def make_collector(mesh, seeds, update):
      collector = host_rollout.HostCollector(
        run.setup.environment,
        run.policy,
        run.training,
        mesh,
        seeds,
        update,
        run.setup.return_discount,
      )
      stack.callback(collector.close)
      return collector

  started = run_lib.start(launch, run.training, make_collector=make_collector)
  result = run_lib.finish(started, run.num_updates)
  reported = []
  if jax.process_index() == 0:
    with run_lib.input_errors():
      found = evaluate_all(run, launch.settings, result.params)
      reported = [
        (cell, report(started, cell, result, found))
        for cell in run_lib.cells(launch.workdir, launch.settings)
      ]
  return run_lib.Outcome(started, result, reported)


def acting_params(params: Mapping[str, types.Params]) -> types.Params:
  """The parts of a run's parameters that its policy reads."""
  return {
    part: params[part]
    for part in ("policy", normalization.OBSERVATIONS)
    if part in params
  }


def evaluate(
  run: Run, params: types.Params, num_episodes: int, seed: int, greedy: bool
) -> tuple[str, np.ndarray]:
  """Evaluates policies, in Gymnasium's original where there is one.

  Args:
    run: from `build`.
    params: from `acting_params`, [learners, ...].
    num_episodes: of each policy.
    seed: of the evaluation.
    greedy: whether to take the likeliest action, or to sample.

  Returns:
    (where, returns float[learners, episodes]).
  """
  environment = run.setup.environment
  if isinstance(environment, environments.HostEnvironment):
    original = environment
  else:
    original = gymnasium_env.make_twin(environment)
  if original is not None:
    returns = evaluation.on_host(
      original, run.policy, params, seed, num_episodes, greedy
    )
    return "gymnasium", returns
  key = jax.random.fold_in(jax.random.key(seed), _EVALUATION_STREAM)
  returns = evaluation.in_graph(
    environment, run.policy, params, key, num_episodes, greedy
  )
  return "in-graph", returns


def evaluate_all(
  run: Run, settings: Mapping, params: Mapping[str, types.Params]
) -> dict[str, tuple[str, np.ndarray]]:
  """Evaluates all learners at the end of a run, greedily and sampled.

  Args:
    run: from `build`.
    settings: of the run.
    params: {part: parameters [learners, ...]}.

  Returns:
    {name in summary.json: (where, mean returns float[learners])}.
  """
  found = {}
  for name, greedy in (("evaluation", True), ("evaluation_sampled", False)):
    where, returns = evaluate(
      run,
      acting_params(params),
      settings["eval_episodes"],
      settings["seed"],
      greedy,
    )
    found[name] = where, returns.mean(axis=1)
  return found


def report(
  started: run_lib.Started,
  cell: run_lib.Cell,
  result: runner.Result,
  evaluations: Mapping[str, tuple[str, np.ndarray]],
) -> dict:
  """Makes the summary of a cell; writes it and the picture.

  Args:
    started: the run.
    cell: of it.
    result: of the run.
    evaluations: from `evaluate_all`.

  Returns:
    The content of summary.json.
  """
  settings = cell.settings
  logged = started.read_metrics(cell, _LOGGED)
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
    "final_return": statistics.summarize(curves.compute_final_scores(*returns)),
  } | {
    name: {
      "backend": where,
      "episodes": settings["eval_episodes"],
      **statistics.summarize(scores[cell.learners]),
    }
    for name, (where, scores) in evaluations.items()
  }
  if cell.workdir is not None:
    curves.save_learning_curve(
      cell.workdir / run_directory.PICTURE,
      *curves.bin_returns(
        logged["env_steps"], *returns, gone=np.isnan(logged["policy_loss"])
      ),
      title=f"{settings['algorithm']} on {settings['environment']}",
    )
    # Last: with it the run is complete.
    run_directory.write_json(cell.workdir / "summary.json", summary)
  return summary
