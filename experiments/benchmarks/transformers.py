"""Benchmark of PyTorch and transformers on the same step as `benchmarks.llm`.

Uses the same exported model, number of sequences and tokens, with random
prompts.
"""

import importlib.util
import pathlib
import tempfile

from experiments.common import timing
from lco_jax import pretrained

_PACKAGES = ("torch", "transformers")


def is_installed() -> bool:
  """Whether torch and transformers are installed."""
  return all(importlib.util.find_spec(name) for name in _PACKAGES)


def measure(
  own: pretrained.Pretrained,
  num_prompts: int,
  num_samples: int,
  prompt_length: int,
  completion_length: int,
  repeats: int,
) -> dict:
  """Measures generation and a likelihood update on all tokens.

  Args:
    own: the model.
    num_prompts: prompts per step.
    num_samples: completions per prompt.
    prompt_length: tokens of a prompt.
    completion_length: tokens of a completion.
    repeats: number of timed calls, of which the median counts.

  Returns:
    {name: value}, with the names of `benchmarks.llm`.

  Raises:
    ValueError: if a package is missing.
  """
  if not is_installed():
    raise ValueError(f"case: needs pip install {' '.join(_PACKAGES)}")
  import torch
  import transformers

  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "model"
    pretrained.export(own, own.params, path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
      path, dtype=torch.float32
    )
  vocab_size = own.config.vocab_size
  prompt = torch.randint(0, vocab_size, (num_prompts, prompt_length))
  length = prompt_length + completion_length
  whole = torch.randint(0, vocab_size, (num_prompts * num_samples, length))
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

  def generate():
    with torch.no_grad():
      done = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        top_k=0,
        top_p=1.0,
        min_new_tokens=completion_length,
        max_new_tokens=completion_length,
        num_return_sequences=num_samples,
      )
    if done.shape != whole.shape:
      raise AssertionError(f"transformers made {tuple(done.shape)}")

  def update():
    optimizer.zero_grad()
    model(input_ids=whole, labels=whole).loss.backward()
    optimizer.step()

  made = num_prompts * num_samples * completion_length
  generating, updating = (
    timing.measure(function, repeats).median for function in (generate, update)
  )
  return {
    "generation_tokens_per_second": round(made / generating, 1),
    "generation_seconds": round(generating, 3),
    "update_tokens_per_second": round(made / updating, 1),
    "update_seconds": round(updating, 3),
    "step_seconds": round(generating + updating, 3),
    "threads": torch.get_num_threads(),
    "torch": torch.__version__,
    "transformers": transformers.__version__,
  }
