r"""Compiles a run's programs for TPUs that are not there.

python -m experiments.compile_ahead --topology=v5e:8x8 \
    --mesh=fsdp:16,tensor:4 \
    --config=experiments/configs/compile_ahead.py:llama-3.1-8b

takes the config of any training script, and needs libtpu (pip install
"jax[tpu]") but no TPU and no weights: --config.model may name a folder with a
config.json alone. It prints a JSON line for each program; bytes, FLOPs and
seconds are those of one chip. It ends with 1 if a program does not fit.
"""

import json
import os

# Before jax starts: a TPU of this machine is not used.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from absl import flags
from ml_collections import config_flags

from experiments.common import command_line, training_run
from lco_jax.trainers import ahead
from lco_jax.trainers import settings as settings_lib
from lco_jax.training import accelerators

_TOPOLOGY = flags.DEFINE_string(
  "topology", "v5e:8x8", "Chips to compile for: CHIP:SIZExSIZE."
)
_PROMPT_LENGTH = flags.DEFINE_integer(
  "prompt_length", 256, "Tokens of a prompt of a pretrained model."
)
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "FILE:NAME as of any training script."
)
command_line.define_mesh()


def main() -> None:
  """Compiles the programs, one after the other."""
  with training_run.prepared():
    if _CONFIG.value is None:
      raise ValueError("--config must be given: FILE:NAME")
    settings = json.loads(json.dumps(settings_lib.resolve(_CONFIG.value)))
    chip, devices = accelerators.describe_topology(_TOPOLOGY.value)
    too_large = []
    for program in ahead.list_programs(
      settings,
      devices,
      flags.FLAGS.mesh,
      _PROMPT_LENGTH.value,
      flags.FLAGS.gather_weights,
    ):
      found = ahead.compile_ahead(program, chip, len(devices))
      if not found["fits"]:
        too_large.append(program.name)
      print(
        json.dumps(
          {
            "topology": _TOPOLOGY.value,
            "mesh": flags.FLAGS.mesh,
            "jax": jax.__version__,
            **found,
          }
        ),
        flush=True,
      )
  for name in too_large[:1]:
    command_line.fail(
      f"{' and '.join(too_large)}: less than {ahead.SPARE:.0%} of a chip's"
      f" memory stays free; what helps {name}:"
      f" {'; '.join(ahead.suggest(settings, name))}",
      command_line.FAILED,
    )


if __name__ == "__main__":
  command_line.run(main)
