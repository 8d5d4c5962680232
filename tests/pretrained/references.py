"""Real models through the script, beside what transformers computes."""

import json
import pathlib

import numpy as np

from tests import scripts


def read_cases(name: str) -> list[dict]:
  """Reads the cases of a file in tests/data."""
  path = pathlib.Path(__file__).parent.parent / "data" / name
  return json.loads(path.read_text())["cases"]


def complete(model: str, cases: list[dict], folder: pathlib.Path) -> list[dict]:
  """Completes the cases' texts with experiments.generate."""
  asked = folder / "in.jsonl"
  asked.write_text("\n".join(json.dumps({"text": c["text"]}) for c in cases))
  done = scripts.run(
    "generate",
    f"--model={model}",
    f"--prompts={asked}",
    f"--out={folder / 'out.jsonl'}",
    "--max_new_tokens=24",
    timeout=900,
  )
  assert done.returncode == 0, done.stderr
  lines = (folder / "out.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def compare(found: dict, expected: dict) -> None:
  """Compares tokens, likelihoods, next tokens and greedy completions."""
  for name in ("text", "ids", "last_top20_ids"):
    assert found[name] == expected[name], name
  greedy = expected["greedy_ids"]
  assert found["greedy_ids"][: len(greedy)] == greedy
  np.testing.assert_allclose(
    found["last_top20_logits"], expected["last_top20_logits"], atol=1e-3
  )
  np.testing.assert_allclose(
    found["token_nll"], expected["token_nll"], atol=1e-3
  )
