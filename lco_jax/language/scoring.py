"""Scoring of completions in worker processes, with a time limit each.

Verifiers are third-party code: they may hang or crash their process. Then the
completion scores 0 and the process is replaced.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from typing import Any, NamedTuple, Protocol

import numpy as np
import pebble

from lco_jax.tasks import rewards

# Attempts to score a completion whose worker processes end early.
_TRIES = 3
# Seconds between checks that the worker processes are alive.
_POLL_SECONDS = 1.0


class ScoringError(RuntimeError):
  """Completions cannot be scored."""


class Grader(Protocol):
  """Scores completions: a `TextTask`, or the rewards of a `RowTask`.

  It is pickled for other processes. `rewards.Grader` has more: the number of
  its values, and whether a completion that takes too long ends the run.
  """

  def load(self) -> None:
    """Imports what scoring needs."""

  def score(self, entry: dict[str, Any], completion: str) -> Any:
    """Computes a score, or a list of them."""


class Score(NamedTuple):
  """Scores of a completion.

  Attributes:
    values: one, or one for each reward; 0 where scoring failed.
    failed: whether the verifier failed or exceeded the time limit.
  """

  values: tuple[float, ...]
  failed: bool

  @property
  def value(self) -> float:
    """The first, which decides whether a completion is correct: at ≥ 1."""
    return self.values[0]


class PendingScore(NamedTuple):
  """A submitted completion without a score yet.

  Attributes:
    entry: the problem.
    completion: text.
    future: will hold the score.
    pool: process pool that it was submitted to.
  """

  entry: dict[str, Any]
  completion: str
  future: concurrent.futures.Future
  pool: pebble.ProcessPool


class Scorer(contextlib.AbstractContextManager):
  """Scores completions in parallel."""

  def __init__(
    self,
    grader: Grader,
    num_workers: int,
    seconds: float,
  ):
    """Starts the processes.

    Args:
      grader: what scores completions.
      num_workers: number of processes.
      seconds: time limit per completion.

    Raises:
      RuntimeError: in a process that another scorer is starting.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
      raise RuntimeError(
        "a process that scores completions has imported your script, which"
        " begins to train again; put the call of train_llm under"
        " `if __name__ == '__main__':`"
      )
    self._grader, self._num_workers = grader, num_workers
    self._seconds = seconds
    self._num_values = getattr(grader, "num_values", 1)
    # Forking this process would copy locks that JAX's threads hold.
    self._context = multiprocessing.get_context("forkserver")
    self._context.set_forkserver_preload(["lco_jax.language.scoring_server"])
    _start_server()
    self._pool = self._make_pool()

  def submit(self, entry: dict[str, Any], completion: str) -> PendingScore:
    """Submits a completion for scoring; `collect` waits for the score."""
    arguments = {"args": (entry, completion), "timeout": self._seconds}
    try:
      future = self._pool.schedule(self._grader.score, **arguments)
    except RuntimeError:  # The pool is broken; see `_score`.
      self._stop()
      self._pool = self._make_pool()
      future = self._pool.schedule(self._grader.score, **arguments)
    return PendingScore(entry, completion, future, self._pool)

  def collect(self, pending: Sequence[PendingScore]) -> list[Score]:
    """Waits for the scores, in the order of `pending`.

    Raises:
      ScoringError: if worker processes end before they score anything, or a
        user's reward is at fault.
    """
    return [self._score(own) for own in pending]

  def _score(self, pending: PendingScore) -> Score:
    for _ in range(_TRIES):
      try:
        found = _await_score(pending)
        values = np.array(found, np.float64, ndmin=1)
        failed = np.isnan(values)
        values = np.where(failed, 0.0, values).tolist()
        return Score(tuple(values), failed=bool(failed.any()))
      except BrokenProcessPool:
        # An idle process ended, for example because memory ran out. That breaks
        # the pool and is not the completion's fault.
        pending = self.submit(pending.entry, pending.completion)
      except rewards.RewardError as error:
        raise ScoringError(str(error)) from error
      except Exception as error:  # The verifier raised it, or ended.
        if not getattr(self._grader, "stops", False):
          return Score((0.0,) * self._num_values, failed=True)
        line = f"{type(error).__name__}: {error}"
        if isinstance(error, TimeoutError):
          line = f"no value after {self._seconds:g} s (scoring_seconds)"
        place = self._grader.describe(pending.entry)
        raise ScoringError(f"{place}: {line}") from error
    raise ScoringError(
      "the processes that score completions end before they score any; is"
      " there enough memory, and is a script's call of train_llm under"
      " `if __name__ == '__main__':`?"
    )

  def _make_pool(self) -> pebble.ProcessPool:
    return pebble.ProcessPool(
      max_workers=self._num_workers,
      context=self._context,
      initializer=_init_worker,  # Loading does not count as scoring time.
      initargs=(self._grader,),
    )

  def _stop(self) -> None:
    self._pool.stop()
    self._pool.join()

  def __exit__(self, *_):
    """Ends the processes."""
    self._stop()


def _await_score(pending: PendingScore) -> float:
  """Waits for the score of a completion.

  A broken pool fails only the futures that its processes have received; the
  rest would never finish, so this function polls the pool.

  Raises:
    BrokenProcessPool: if the processes ended.
    Exception: raised by the verifier, or a timeout.
  """
  future = pending.future
  while not future.done():
    if not pending.pool.active:
      raise BrokenProcessPool("the processes ended")
    concurrent.futures.wait([future], timeout=_POLL_SECONDS)
  return future.result()


def _start_server() -> None:
  """Starts the server that forks the workers, with SIGTERM blocked.

  Schedulers send SIGTERM to all processes of a job. The training process then
  saves its state, and until the current chunk ends it still needs scores.
  """
  resource_tracker.ensure_running()  # Starting it later unblocks SIGTERM.
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
  try:
    forkserver.ensure_running()
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _init_worker(grader):
  # Ignore signals to the job's process group, but not the pool's SIGTERM.
  os.setsid()
  signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
  grader.load()
