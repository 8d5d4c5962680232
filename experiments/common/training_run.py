"""A training script from its flags to its end, with one line for each error."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import jax
from absl import flags

from experiments.common import command_line, plugins
from lco_jax.language import scoring
from lco_jax.runs import checkpointing, runner
from lco_jax.trainers import run as run_lib

# Flags of `command_line.define_mesh`, which only some scripts have.
_OF_MESHES = ("mesh", "gather_weights")


def make_launch(settings: Mapping) -> run_lib.Launch:
  """Makes a launch from the flags of `command_line.define_config`.

  Args:
    settings: of the run, from `command_line.read_settings`.

  Raises:
    ValueError: if the run to resume began with other plug-ins.
  """
  values = flags.FLAGS
  workdir = pathlib.Path(values.workdir)
  if values.resume and jax.process_index() == 0:
    plugins.check_run(workdir)
  if jax.process_index() == 0:
    command_line.say_idle(settings, command_line.find_given_settings())
  return run_lib.Launch(
    settings,
    workdir,
    resume=values.resume,
    resume_update=values.resume_update,
    profile=values.profile,
    **{name: values[name].value for name in _OF_MESHES if name in values},
    tell=lambda line: print(line, flush=True),
  )


@contextlib.contextmanager
def prepared() -> Iterator[None]:
  """Turns what wrong input raises into one line, before a run begins.

  Raises:
    ScriptError: for wrong input, a damaged checkpoint, or a full disk.
  """
  try:
    yield
  except (ValueError, checkpointing.CheckpointError) as error:
    raise command_line.ScriptError(error) from error
  except OSError as error:
    raise _unwritable(error) from error


@contextlib.contextmanager
def executed(launch: run_lib.Launch) -> Iterator[run_lib.Launch]:
  """Runs a run until it ends or a signal comes; errors become one line.

  Args:
    launch: of the run.

  Yields:
    The launch, stopped by SIGTERM and Ctrl-C.

  Raises:
    ScriptError: if the run does not come to its end. A ValueError is a defect
      here, and keeps its trace.
  """
  try:
    yield dataclasses.replace(launch, should_stop=command_line.StopSignal())
  except run_lib.InputError as error:
    raise command_line.ScriptError(error) from error
  except runner.StoppedError as stopped:
    raise command_line.ScriptError(
      f"{stopped}; its state is saved: go on with"
      f" {' '.join(['--resume', *plugins.make_flags()])}"
      f" --workdir={launch.workdir}",
      command_line.STOPPED,
      everywhere=True,
    ) from stopped
  except run_lib.FaultError as error:
    line = str(error)
    if run_lib.can_replay(error.settings):
      line += (
        "; to look into it: python -m experiments.replay"
        f" {' '.join([*plugins.make_flags(), f'--workdir={error.workdir}'])}"
      )
    raise command_line.ScriptError(
      line, command_line.FAILED, everywhere=True
    ) from error
  except (checkpointing.CheckpointError, scoring.ScoringError) as error:
    raise command_line.ScriptError(error, command_line.FAILED) from error
  except OSError as error:
    raise _unwritable(error) from error


def _unwritable(error: OSError) -> command_line.ScriptError:
  return command_line.ScriptError(
    f"workdir {flags.FLAGS.workdir} cannot be written to: {error}",
    command_line.FAILED,
  )
