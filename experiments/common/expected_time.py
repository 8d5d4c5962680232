"""The expected time of many runs, from the course of the first one."""

import pathlib
import threading
import time
from collections.abc import Mapping

from lco_jax.reporting import conditions
from lco_jax.runs import run_directory

_EVERY_SECONDS = 2.0
# Share of a run between two looks at it that its speed is computed from.
_SHARE = 0.05


def announce(
  work: Mapping[pathlib.Path, float], jobs: int, over: threading.Event
) -> None:
  """Prints the expected time of all runs as soon as one of them has a speed.

  Args:
    work: of each run to train, by its directory; in any unit.
    jobs: number of parallel runs.
    over: ends the waiting.
  """
  print(f"{len(work)} runs, {jobs} at a time", flush=True)
  began, first = time.perf_counter(), {}
  while not over.wait(_EVERY_SECONDS):
    now = time.perf_counter()
    for workdir in work:
      share = read_share(workdir)
      if share is None or share == 1:
        continue
      at, before = first.setdefault(workdir, (now, share))
      if share - before >= _SHARE:
        rest = (1 - share) * (now - at) / (share - before)
        # No number of jobs makes the longest run shorter.
        most = max(sum(work.values()) / jobs, *work.values())
        total = (now - began + rest) * most / work[workdir]
        print(f"expected time: about {format_duration(total)}", flush=True)
        return


def read_share(workdir: pathlib.Path) -> float | None:
  """Reads which share of its training a run has done; None before the first.

  Args:
    workdir: of a run, which may have parts at several learning rates.
  """
  found = [workdir, *sorted(workdir.glob("rate_*"))]
  for path in found:
    try:
      settings = run_directory.read_config(path)
      with open(path / "metrics.csv") as file:
        *_, last = file
      done = float(last.split(",")[1])
    except (OSError, ValueError, IndexError):
      continue  # Not there yet, or in the middle of a line.
    return min(1.0, done / conditions.plan_length(settings))
  return None


def format_duration(seconds: float) -> str:
  """Formats a duration: 40 s, 5 min or 2 h 10 min."""
  minutes = round(seconds / 60)
  return (
    f"{minutes // 60} h {minutes % 60} min"
    if minutes > 60
    else (f"{minutes} min" if seconds > 90 else f"{seconds:.0f} s")
  )
