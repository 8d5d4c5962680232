"""Flags of the scripts, and one clear line when they are wrong."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from experiments.common import help as help_lib
from experiments.common import plugins
from lco_jax.runs import clusters, distributed, peers, run_directory
from lco_jax.trainers import extension, idle_settings
from lco_jax.trainers import settings as settings_lib

_PACKAGE = pathlib.Path(__file__).parent.parent
# That of the script that runs, if it has one.
_DEFAULT_CONFIGS: list[str] = []
# What absl, ml_collections and a config file raise for a wrong command line.
_WRONG_FLAGS = (
  flags.Error,
  AttributeError,
  ImportError,
  KeyError,
  SyntaxError,
  TypeError,
  ValueError,
)


# Exit statuses beside 0, done.
WRONG_INPUT = 2
FAILED = 1  # In training; what was written before stays usable.
STOPPED = 75  # By a signal, with the state saved: try again with --resume.
INTERRUPTED = 130  # By Ctrl-C, at once: as the shell has it.
_INTERRUPTED_LINE = "interrupted; what was written before stays usable"


def _define_plugins(values: flags.FlagValues) -> None:
  flags.DEFINE_list(
    "plugins",
    [],
    "Files (.py) or modules that register your own environments, tasks,"
    " policy losses and rewards; imported before --config is read.",
    flag_values=values,
  )


_define_plugins(flags.FLAGS)


class ScriptError(Exception):
  """Something that one line explains: no trace is shown.

  Attributes:
    status: the exit status.
    everywhere: whether all processes of a job end so, at the same point.
  """

  def __init__(
    self, message: object, status: int = WRONG_INPUT, everywhere: bool = False
  ):
    super().__init__(str(message))
    self.status, self.everywhere = status, everywhere


class StopSignal:
  """Notes a request to end (SIGTERM, Ctrl-C), and lets the process go on.

  A second Ctrl-C ends it at once. A thread listens, since the main one may wait
  for a compiled program, and Python calls no handler meanwhile.
  """

  def __init__(self):
    self._received = False
    listen, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, lambda *_: None)
    threading.Thread(target=self._listen, args=(listen,), daemon=True).start()

  def _listen(self, pipe: int) -> None:
    interrupts = 0
    while True:
      for number in os.read(pipe, 16):
        if number not in (signal.SIGTERM, signal.SIGINT):
          continue
        self._received = True
        interrupts += number == signal.SIGINT
        if interrupts == 1 and number == signal.SIGINT:
          say(
            "stopping when this chunk of updates or this evaluation is done;"
            " Ctrl-C again ends at once"
          )
        elif interrupts > 1:
          say(_INTERRUPTED_LINE)
          os._exit(INTERRUPTED)

  def __call__(self) -> bool:
    """Whether the signal has come."""
    return self._received


def define_config(or_else: str | None = None) -> flags.FlagHolder:
  """Defines --config, --workdir, --resume, --resume_update, --profile.

  Args:
    or_else: a boolean flag with which --workdir may be left out.
  """
  flags.DEFINE_string(
    "workdir", None, "New or empty directory of the run; or the run to resume."
  )
  if or_else is None:
    flags.mark_flag_as_required("workdir")
  else:
    flags.register_multi_flags_validator(
      ["workdir", or_else],
      lambda values: values["workdir"] is not None or values[or_else],
      message="Flag --workdir must have a value other than None.",
    )
  flags.DEFINE_bool(
    "resume",
    False,
    "Go on with the run in --workdir; --config may be left out.",
  )
  flags.DEFINE_integer(
    "resume_update", None, "Checkpoint to resume; the newest if left out."
  )
  flags.DEFINE_integer(
    "extend_to",
    None,
    "Go on with a finished run to this length: environment steps of each seed"
    " in control, else updates. Needs --resume.",
  )
  flags.DEFINE_bool(
    "profile", False, "Trace one chunk with jax.profiler, into --workdir."
  )
  return config_flags.DEFINE_config_file(
    "config",
    None,
    "FILE:NAME of environment or task; then --config.NAME=VALUE to change it.",
  )


def define_default_config(default: str, meaning: str) -> flags.FlagHolder:
  """Defines --config of a script that has a default for it.

  The default is read with the command line: wrong settings of it are then
  errors of the command line, too.

  Args:
    default: FILE:NAME.
    meaning: of the flag.
  """
  _DEFAULT_CONFIGS.append(default)
  return config_flags.DEFINE_config_file("config", None, meaning)


def define_distributed() -> None:
  """Defines --distributed and what describes the job."""
  flags.DEFINE_bool(
    "distributed",
    False,
    "One of several processes. SLURM, Open MPI, TPU pods and GKE are detected;"
    " elsewhere give --coordinator, --num_processes, --process_id.",
  )
  flags.DEFINE_string(
    "coordinator", None, "HOST:PORT at which process 0 listens, and only there."
  )
  flags.DEFINE_integer("num_processes", None, "Processes of the job.")
  flags.DEFINE_integer("process_id", None, "Number of this one, from 0.")
  flags.DEFINE_float(
    "start_timeout", 300.0, "Seconds to wait for all processes to start."
  )
  flags.DEFINE_float(
    "heartbeat_timeout", 60.0, "Seconds of silence after which one is lost."
  )


def define_mesh() -> None:
  """Defines --mesh."""
  flags.DEFINE_string(
    "mesh",
    None,
    "Devices along each axis: seeds and data divide the data, fsdp both data"
    " and parameters, tensor the layers; e.g. data:2,fsdp:4. A run may be"
    " resumed with another one.",
  )
  flags.DEFINE_bool(
    "gather_weights",
    None,
    "Whether weights that fsdp divides are gathered once to generate, not for"
    " each token; by default if they take at most half of a device's memory.",
  )


@contextlib.contextmanager
def job(values: flags.FlagValues, settings: Mapping) -> Iterator[None]:
  """The job of several processes that the flags speak of, if they do.

  Args:
    values: of the command line's flags.
    settings: of the run; must be the same in all processes.

  Raises:
    ValueError: if a flag is wrong, or no cluster is detected.
    ScriptError: if a process does not come.
  """
  names = ("coordinator", "num_processes", "process_id")
  given = [name for name in names if getattr(values, name) is not None]
  if not values.distributed:
    if given:
      raise ValueError(f"--{given[0]} needs --distributed")
    yield
    return
  if given and len(given) < len(names):
    missing = next(name for name in names if name not in given)
    raise ValueError(f"--{missing} must be given with --{given[0]}")
  described = (
    distributed.Job(*(getattr(values, name) for name in names))
    if given
    else clusters.detect()
  )
  same = [settings, values.resume, values.resume_update, jax.__version__]
  try:
    with distributed.joined(
      described,
      hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest(),
      values.start_timeout,
      values.heartbeat_timeout,
    ):
      yield
  except peers.PeerError as error:
    raise ScriptError(error, FAILED) from error


def read_settings(
  values: flags.FlagValues, config: ml_collections.ConfigDict | None
) -> dict:
  """The settings of the run: those of the flags, or of the run to resume.

  Args:
    values: of the command line's flags.
    config: of --config; if it is given, the run directory is not read.

  Returns:
    Plain values as JSON keeps them, so that they compare with a file's.

  Raises:
    ValueError: if there are none.
  """
  if values.resume_update is not None and not values.resume:
    raise ValueError("--resume_update needs --resume")
  if values.extend_to is not None and not values.resume:
    raise ValueError("--extend_to needs --resume")
  if values.extend_to is not None and values.resume_update is not None:
    raise ValueError(
      "--extend_to goes on from a run's end; leave out --resume_update"
    )
  if values.extend_to is not None and config is not None:
    raise ValueError(
      "--extend_to goes on with the run's own settings; leave out --config"
    )
  if values.resume and values.workdir is None:
    raise ValueError("--resume needs --workdir")
  if config is None and not values.resume:
    raise ValueError("--config must be given: FILE:NAME")
  if config is None:
    workdir = pathlib.Path(values.workdir)
    plugins.check_run(workdir)
    settings = run_directory.read_config(workdir)
    if values.extend_to is not None:
      settings = extension.extend(settings, values.extend_to)
    return settings
  return (
    json.loads(json.dumps(settings_lib.resolve(config))) | plugins.settings()
  )


def find_given_settings() -> list[str]:
  """Finds the names of the settings that the command line gives."""
  words = (re.match(r"--?(?:no)?config\.(\w+)", word) for word in sys.argv)
  return [word[1] for word in words if word]


def say_idle(settings: Mapping, names: Sequence[str], prefix: str = "") -> None:
  """Prints which of some settings of a run have no effect, and why."""
  for line in idle_settings.find_idle(settings, names) if names else ():
    print(f"{prefix}without effect: {line}", flush=True)


def run(
  main: Callable, choices: Sequence[str] = (), several: bool = False
) -> None:
  """Runs a script; what one line explains ends with that line.

  Args:
    main: the script, called once flags are parsed. A ScriptError that it raises
      is shown as one line; any other error is a defect and keeps its trace.
    choices: words of which the command line must have one, which `main` is then
      called with; without any, it must have none.
    several: whether it may have any number of words, which `main` gets.
  """

  def parse(argv: Sequence[str]) -> list[str]:
    argv = _locate_configs(argv)
    try:
      if help_lib.is_requested(argv):
        _show_help(argv)
      plugins.load(_find_plugins(argv))
      rest = flags.FLAGS(argv)
    except _WRONG_FLAGS as error:
      fail(error)
    except KeyboardInterrupt:
      fail(_INTERRUPTED_LINE, INTERRUPTED)
    wanted = 2 if choices else 1
    if len(rest) > wanted and not several:
      fail(f"unexpected argument {rest[wanted]!r}")
    if choices and (len(rest) < wanted or rest[1] not in choices):
      fail(f"what to run must be one of: {', '.join(choices)}")
    if flags.FLAGS["verbosity"].using_default_value:
      # As information, jax tells of every accelerator that it did not find.
      flags.FLAGS.verbosity = logging.WARNING
    return rest

  def guarded(argv):
    try:
      main(*argv[1:])
    except ScriptError as error:
      if error.everywhere and jax.process_index():
        sys.exit(error.status)  # The first process says it for all.
      fail(error, error.status)
    except KeyboardInterrupt:
      fail(_INTERRUPTED_LINE, INTERRUPTED)

  app.run(guarded, flags_parser=parse)


def _show_help(argv: Sequence[str]) -> None:
  """Prints what the script takes, and exits."""
  given = [word for word in argv if word not in ("-h", "-help", "--help")]
  config = None
  try:
    plugins.load(_find_plugins(given))
    try:
      flags.FLAGS(given)
    except flags.IllegalFlagValueError as error:
      # For help, flags that a run needs may be left out.
      if "must have a value" not in str(error):
        raise
    if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
      config = flags.FLAGS["config"].value
      config.keys()  # Raises what loading the file raised.
  except (*_WRONG_FLAGS, OSError) as error:
    fail(error)
  help_lib.show(flags.FLAGS, config, sys.modules["__main__"].__doc__ or "")
  sys.exit(0)


def locate_config(text: str) -> str:
  """Finds a config file of this package, wherever a command is run.

  Args:
    text: FILE or FILE:NAME. A FILE that exists is taken as it is.
  """
  file, colon, name = text.partition(":")
  own = _PACKAGE.parent / file
  is_here = pathlib.Path(file).exists()
  if is_here or own.parent != _PACKAGE / "configs" or not own.exists():
    return text
  return f"{own}{colon}{name}"


def _locate_configs(argv: Sequence[str]) -> list[str]:
  """Locates the values of --config=VALUE and --config VALUE, or the default."""
  words = list(argv)
  if not any(re.match(r"--?config(=|$)", word) for word in words[1:]):
    words[1:1] = [f"--config={default}" for default in _DEFAULT_CONFIGS]
  for index, word in enumerate(words):
    flag, equals, value = word.partition("=")
    if flag not in ("--config", "-config"):
      continue
    if equals:
      words[index] = f"{flag}={locate_config(value)}"
    elif index + 1 < len(words):
      words[index + 1] = locate_config(words[index + 1])
  return words


def _find_plugins(argv: Sequence[str]) -> list[str]:
  """Reads --plugins alone: they must be there when --config is read."""
  values = flags.FlagValues()
  _define_plugins(values)
  values(argv, known_only=True)
  return values.plugins


def run_with_stack(main: Callable[[contextlib.ExitStack], None]) -> None:
  """Runs a script that gets a stack, which ends with it."""

  def with_stack():
    with contextlib.ExitStack() as stack:
      main(stack)

  run(with_stack)


def say(line: str) -> None:
  """Writes a line on standard error, below a progress bar, if it is open."""
  with contextlib.suppress(OSError, ValueError):
    print(f"\n{line}", file=sys.stderr, flush=True)


def fail(error: Exception | str, status: int = WRONG_INPUT) -> None:
  """Prints one line on standard error and exits; a stop is no error."""
  message = str(error.args[0] if isinstance(error, KeyError) else error)
  lines = [line.strip() for line in message.splitlines() if line.strip()]
  line = lines[-1] if lines else "unknown"
  # What ml_collections says of a setting that is not there.
  meant = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', line)
  alone = re.fullmatch(r"""["']+(\w+)["']+""", line)
  if meant:
    line = f"{meant[2]}: no such setting; did you mean {meant[1]}?"
  elif alone:  # It knows none that is similar.
    line = f"{alone[1]}: no such setting; --help lists them"
  is_error = status not in (STOPPED, INTERRUPTED)
  print(f"{'error: ' if is_error else ''}{line}", file=sys.stderr)
  sys.exit(status)
