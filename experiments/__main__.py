"""The command lco-jax: each script under its name, with dashes.

lco-jax train-control --workdir=DIR \
    --config=experiments/configs/control.py:CartPole-v1

is `python -m experiments.train_control` with the same flags.
"""

import runpy
import sys

_SCRIPTS = {
  "train-control": "train a policy for control",
  "train-language": "train a small language model on a task",
  "train-llm": "train a pretrained language model",
  "train-verifier": "train a verifier on pairs of completions",
  "enjoy": "play a trained control policy",
  "generate": "complete texts with a language model",
  "compare": "compare algorithms over tasks and seeds",
  "stability-map": "map scores over learning rates and another axis",
  "report": "write a page about runs",
  "exact-laboratory": "compute losses and steps exactly, in bandits",
  "loss-landscape": "draw losses over the logits",
  "replay": "repeat an update that was not finite",
  "benchmark": "measure speed and memory",
  "compile-ahead": "compile a run for TPUs that are not there",
}


def main() -> None:
  """Runs the script that the first argument names; exits with 2 if none is."""
  name = sys.argv[1] if len(sys.argv) > 1 else ""
  if name in ("", "-h", "--help"):
    print("lco-jax COMMAND [--help] [flags]\n")
    for command, meaning in _SCRIPTS.items():
      print(f"  {command:18s}{meaning}")
    sys.exit(0 if name else 2)
  if name not in _SCRIPTS:
    print(
      f"error: no command {name!r}; known: {', '.join(_SCRIPTS)}",
      file=sys.stderr,
    )
    sys.exit(2)
  module = f"experiments.{name.replace('-', '_')}"
  sys.argv = [f"lco-jax {name}", *sys.argv[2:]]
  runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
