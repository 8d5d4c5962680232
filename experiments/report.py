"""Writes a report of runs: an HTML page, figures and tables.

python -m experiments.report --out=DIR RUN_DIR...

Reads the run directories at or below the given directories, such as a
comparison's or a stability map's. Runs with equal settings but different seeds
are merged into one run.
"""

import pathlib

from absl import flags

from experiments.common import command_line
from lco_jax.reporting import recorded, report

_OUT = flags.DEFINE_string("out", None, "Directory to write to.")
flags.mark_flag_as_required("out")


def main(*directories: str) -> None:
  """Reads the runs, writes the report and prints the scores."""
  if not directories:
    raise command_line.ScriptError("name at least one run directory")
  out = pathlib.Path(_OUT.value)
  try:
    paths = recorded.find([pathlib.Path(name) for name in directories])
    begun = [run for run in map(recorded.load, paths) if run is not None]
    if not begun:
      raise ValueError(f"{', '.join(directories)}: no run has an update yet")
    out.mkdir(parents=True, exist_ok=True)
  except (ValueError, OSError) as error:
    raise command_line.ScriptError(error) from error
  try:
    runs = recorded.joined(begun)
    report.write(runs, out)
  except (OSError, ValueError) as error:
    raise command_line.ScriptError(f"--out {out}: {error}") from error
  print((out / "scores.md").read_text())
  for line in report.describe_differences(runs):
    print(line)
  print(f"report: {out / 'report.html'}")


if __name__ == "__main__":
  command_line.run(main, several=True)
