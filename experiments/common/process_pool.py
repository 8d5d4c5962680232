"""Pool of training processes, shared by the scripts that compare runs.

Each run is a training script in its own process and directory, so a failure
does not affect others. A run with a summary is done; an interrupted run resumes
from its checkpoint.
"""

import concurrent.futures
import contextlib
import math
import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.common import command_line, expected_time, plugins
from lco_jax import environments, tasks
from lco_jax.reporting import conditions
from lco_jax.runs import run_directory
from lco_jax.trainers import llm, llm_task
from lco_jax.trainers import settings as settings_lib

# Where the package `experiments` is.
_ROOT = pathlib.Path(__file__).parent.parent.parent
# The training script of each configuration, by the name of its file.
_SCRIPTS = {
  "control": "train_control",
  "language": "train_language",
  "llm": "train_llm",
}
_RUNNING: set[subprocess.Popen] = set()
_STOPPING = threading.Event()


class Run(NamedTuple):
  """A training run.

  Attributes:
    script: SCRIPT in `python -m experiments.SCRIPT`.
    config: FILE:NAME.
    settings: NAME=VALUE of the config.
    workdir: directory of the run.
    ends_with: the file that the run writes last.
  """

  script: str
  config: str
  settings: Sequence[str]
  workdir: pathlib.Path
  ends_with: str = "summary.json"

  @property
  def done(self) -> bool:
    """Whether the run is complete."""
    return (self.workdir / self.ends_with).exists()

  def estimate_work(self) -> int:
    """Estimates its work in samples that it draws and learns from.

    Drawing a sample is counted as much as one pass of learning from it.
    """
    base, _, task = self.config.partition(":")
    settings = _read_settings(base, task, self.settings)
    return conditions.plan_length(settings) * (1 + settings["num_epochs"])


@contextlib.contextmanager
def hold(workdir: pathlib.Path, settings: Mapping) -> Iterator[None]:
  """Creates or reopens and locks a comparison's directory; ends runs on exit.

  SIGTERM or Ctrl-C lets the runs save their state; a second Ctrl-C kills them.

  Args:
    workdir: the directory.
    settings: settings that must not change between calls. Plug-ins must not
      change either, but there may be new ones.

  Raises:
    ScriptError: if the directory has other settings, is locked or not writable;
      if the process is asked to stop; or if the comparison fails.
  """

  def stop(number, frame):
    signal.signal(signal.SIGINT, _kill_all)
    command_line.say(
      "stopping when the runs have saved their state; Ctrl-C again kills them"
    )
    again = " ".join([*plugins.make_flags(), f"--workdir={workdir}"])
    raise command_line.ScriptError(
      f"stopped; continue with {again}", command_line.STOPPED
    )

  signal.signal(signal.SIGTERM, stop)
  signal.signal(signal.SIGINT, stop)
  with contextlib.ExitStack() as stack:
    stack.callback(_stop_all)
    try:
      if (workdir / "config.json").exists():
        plugins.check_run(workdir, may_add=True)
        stored = run_directory.read_config(workdir)
        known = {k: v for k, v in stored.items() if k == "plugins"}
        run_directory.check_same_config(workdir, {**settings, **known})
      else:
        run_directory.create(workdir, {**settings, **plugins.settings()})
      stack.enter_context(run_directory.lock(workdir))
      run_directory.write_json(
        workdir / "config.json", {**settings, **plugins.settings()}
      )
    except ValueError as error:
      raise command_line.ScriptError(error) from error
    try:
      yield
    except (OSError, ValueError) as error:
      raise command_line.ScriptError(error, command_line.FAILED) from error


def find_script(config: str) -> str:
  """Finds the training script of a configuration, FILE or FILE:NAME.

  Raises:
    ScriptError: if there is none.
  """
  file = pathlib.Path(config.partition(":")[0]).stem
  if file not in _SCRIPTS:
    known = ", ".join(f"{name}.py" for name in _SCRIPTS)
    raise command_line.ScriptError(
      f"base: want a file called one of {known}, got {config!r}"
    )
  return _SCRIPTS[file]


def make_runs(
  config: str,
  settings: Sequence[str],
  rates: Sequence[float],
  workdir: pathlib.Path,
) -> list[Run]:
  """Makes the runs of an algorithm.

  One program trains all rates side by side. A pretrained model may fill the
  memory at one rate, so that each of its rates has a run of its own.

  Args:
    config: FILE:NAME.
    settings: NAME=VALUE, without rates.
    rates: of the policy.
    workdir: directory of the algorithm.
  """
  script = find_script(config)
  groups = [[rate] for rate in rates] if script == "train_llm" else [rates]
  runs = []
  for group in groups:
    given = ",".join(f"{rate:g}" for rate in group)
    cell = find_cell(config, workdir, group[-1])
    runs.append(
      Run(
        script,
        config,
        [*settings, f"policy_learning_rates=({given},)"],
        cell.parent,
        f"{cell.name}/summary.json",
      )
    )
  return runs


def find_cell(config: str, workdir: pathlib.Path, rate: float) -> pathlib.Path:
  """Names the directory of a rate, in one of the runs of `make_runs`."""
  if find_script(config) == "train_llm":
    workdir = workdir / f"run_{rate:g}"
  return workdir / f"rate_{rate:g}"


def split_settings(text: str) -> list[str]:
  """Splits "NAME=VALUE,NAME=VALUE", where values may contain commas.

  A value that has the form NAME=VALUE itself stands in single or double
  quotes, which are taken away.

  Raises:
    ScriptError: if the text does not have that form.
  """
  return [
    re.sub(r"""=(["'])(.*)\1$""", r"=\2", setting)
    for setting in _split_quoted(text)
  ]


def _split_quoted(text: str) -> list[str]:
  """Splits as `split_settings`, and leaves the quotes."""
  settings = []
  for piece in re.split(r",\s*(?=\w+=)", text):
    if settings and _is_open(settings[-1]):
      settings[-1] += f",{piece.rstrip()}"
    else:
      settings.append(piece.strip())
  for setting in filter(None, settings):
    if not re.match(r"\w+=", setting):
      raise command_line.ScriptError(
        f"settings: want NAME=VALUE, got {setting!r}"
      )
    if _is_open(setting):
      raise command_line.ScriptError(f"settings: no closing quote: {setting}")
  return [setting for setting in settings if setting]


def _is_open(setting: str) -> bool:
  """Whether the value begins with a quote, and does not end with it."""
  value = setting.partition("=")[2]
  is_quoted = value.startswith(("'", '"'))
  return is_quoted and (len(value) < 2 or value[-1] != value[0])


def join_settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """Joins `common_settings` and `settings` of a comparison or map.

  Of two settings with one name, that of `settings` holds.

  Args:
    config: of the comparison or map.

  Raises:
    ScriptError: if a text does not have the form NAME=VALUE,NAME=VALUE.
  """
  joined = dict(config)
  given = [joined.pop("common_settings", ""), joined["settings"]]
  found = {
    setting.partition("=")[0]: setting
    for text in given
    for setting in _split_quoted(text)
  }
  return joined | {"settings": ",".join(found.values())}


def check_run(base: str, task: str, settings: Sequence[str]) -> dict[str, Any]:
  """Checks a run's task, settings and model before it starts.

  Args:
    base: configuration file of a training script.
    task: environment or task.
    settings: NAME=VALUE each.

  Returns:
    All settings of the run, with the hashes of its files. Lists that were given
    stay texts.

  Raises:
    ScriptError: naming an unknown task, setting, algorithm or model, or a value
      of another type.
  """
  found = _read_settings(base, task, settings)
  try:
    match find_script(base):
      case "train_control":
        environments.make(task, found["action_bins"])
      case "train_language":
        tasks.make(task)
      case "train_llm":
        llm.build(found)
        found = dict(llm_task.identify_files(found))
  except (OSError, ValueError) as error:
    raise command_line.ScriptError(error) from error
  return found


def find_files(runs: Sequence[Mapping]) -> dict[str, dict[str, str]]:
  """Finds the part of a comparison's settings that identifies its files.

  Args:
    runs: settings of all runs, from `check_run`.

  Returns:
    {"files": {path: SHA-256}} of rows and rewards; empty without files.
  """
  found = {
    path: digest
    for own in runs
    for path, digest in own.get("files", {}).items()
  }
  return {"files": found} if found else {}


def _read_settings(
  base: str, task: str, settings: Sequence[str]
) -> dict[str, Any]:
  """Reads all settings of a run, as `check_run`, but leaves its task alone."""
  find_script(base)
  given = dict(setting.partition("=")[::2] for setting in settings)
  try:
    config = runpy.run_path(command_line.locate_config(base))["get_config"](
      task
    )
  except (OSError, ValueError) as error:
    raise command_line.ScriptError(error) from error
  for name, value in given.items():
    if name not in config:
      raise command_line.ScriptError(f"{name}={value}: {base} has no {name}")
    if name == "algorithm":
      try:
        settings_lib.check_algorithm(value, config.tuned)
      except ValueError as error:
        raise command_line.ScriptError(error) from error
  try:
    for name, value in given.items():
      config[name] = _parse(value, config.get_type(name))
    return settings_lib.resolve(config)
  except (TypeError, ValueError) as error:
    raise command_line.ScriptError(f"{name}={value}: {error}") from error


def _parse(text: str, kind: type) -> Any:
  """Reads the value of a setting; tuples are left to the run."""
  if text == "None":
    return None
  if kind is bool:
    known = dict.fromkeys(("true", "t", "1"), True)
    known |= dict.fromkeys(("false", "f", "0"), False)
    if text.lower() not in known:
      raise ValueError("want True or False")
    return known[text.lower()]
  if kind in (int, float):
    return _read_number(text, kind)
  return text if kind is str else (text,)


def _read_number(text: str, kind: type) -> int | float:
  try:
    return kind(text)
  except ValueError:
    wanted = "a whole number" if kind is int else "a number"
    raise ValueError(f"want {wanted}") from None


def check_rates(rates: Sequence[float], jobs: int) -> None:
  """Checks the learning rates and the number of parallel runs.

  Raises:
    ScriptError: naming the wrong setting.
  """
  for rate in rates:
    if not (isinstance(rate, int | float) and 0 < rate < math.inf):
      raise command_line.ScriptError(
        f"policy_learning_rates must be positive and finite, got {rate!r}"
      )
  if not rates or len({f"{rate:g}" for rate in rates}) < len(rates):
    raise command_line.ScriptError(
      "policy_learning_rates must be a non-empty list without repetitions"
    )
  if jobs < 1:
    raise command_line.ScriptError(f"--jobs must be ≥ 1, got {jobs}")


def complete(
  runs: Sequence[Run], jobs: int, result: Callable[[Run], str] = lambda _: ""
) -> None:
  """Trains the incomplete runs in parallel; a failure ends all of them.

  Args:
    runs: all runs, complete or not.
    jobs: number of parallel runs.
    result: makes the text to print when a run is done.

  Raises:
    ScriptError: naming the failed run, with its error line.
  """
  for run in runs:
    if "extended_from" in _read_config(run.workdir):
      raise command_line.ScriptError(
        f"{run.workdir} was extended and is not comparable; delete it, and call"
        " this again to train it anew"
      )
  missing = [run for run in runs if not run.done]
  work = {run.workdir: run.estimate_work() for run in missing}
  _STOPPING.clear()
  started, over = time.perf_counter(), threading.Event()
  if len(missing) > 1:
    threading.Thread(
      target=expected_time.announce,
      args=(work, min(jobs, len(missing)), over),
      daemon=True,
    ).start()
  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    waiting = {pool.submit(_complete, run, jobs): run for run in missing}
    left = dict(work)
    try:
      for future in concurrent.futures.as_completed(waiting):
        future.result()
        over.set()  # From here on each line has the time that is left.
        run = waiting[future]
        del left[run.workdir]
        share = sum(left.values()) / sum(work.values())
        seconds = (time.perf_counter() - started) * share / (1 - share)
        print(
          f"[{len(work) - len(left)}/{len(work)}] {run.workdir} {result(run)}"
          f" ({expected_time.format_duration(seconds)} left)",
          flush=True,
        )
    except BaseException:
      over.set()
      for future in waiting:
        future.cancel()
      _stop_all()
      raise


def _read_config(workdir: pathlib.Path) -> dict[str, Any]:
  """Reads the settings of a run; nothing, if it is not begun."""
  if not (workdir / "config.json").exists():
    return {}
  return run_directory.read_config(workdir)


def _complete(run: Run, jobs: int) -> None:
  """Starts or resumes a run and waits for its end."""
  # If a killed script has left this run behind, wait for the run's end.
  while run_directory.in_use(run.workdir) and not _STOPPING.is_set():
    time.sleep(1.0)
  if run.done or _STOPPING.is_set():
    return
  # Not from the current directory, which may have an `experiments` of its own.
  command = [sys.executable, "-P", "-m", f"experiments.{run.script}"]
  command += [f"--config={run.config}", f"--workdir={run.workdir}"]
  command += [f"--config.{setting}" for setting in run.settings]
  command += plugins.make_flags()
  if (run.workdir / "config.json").exists():
    command.append("--resume")
  environment = dict(os.environ)
  # Plug-ins may import what lies beside them, in the current directory.
  paths = [str(_ROOT), environment.get("PYTHONPATH"), os.getcwd()]
  environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
  if jobs > 1:
    # Otherwise each run would claim the whole machine.
    environment.setdefault(
      "XLA_FLAGS", "--xla_force_host_platform_device_count=1"
    )
    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  process = subprocess.Popen(
    command,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,  # Ctrl-C reaches this process alone.
  )
  _RUNNING.add(process)
  if _STOPPING.is_set():  # `_stop_all` may have missed this new process.
    process.terminate()
  _, complaint = process.communicate()
  _RUNNING.discard(process)
  if process.returncode:
    last = complaint.strip().rpartition("\n")[2]
    status = f"ended with status {process.returncode}"
    line = last if last.startswith("error: ") else f"{status}: {last}"
    raise command_line.ScriptError(
      f"{run.workdir}: {line}", command_line.FAILED
    )


def _stop_all() -> None:
  """Ends all running processes and prevents new ones."""
  _STOPPING.set()
  for process in list(_RUNNING):
    process.terminate()


def _kill_all(number: int, frame: Any) -> None:
  """Kills all running processes, as the handler of a signal."""
  for process in list(_RUNNING):
    process.kill()
