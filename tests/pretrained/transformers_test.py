"""Families of models against transformers itself; make test-slow."""

import importlib.util
import json

import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import networks, pretrained
from tests.pretrained import chat_templates, tiny_families

pytestmark = [
  pytest.mark.slow,
  pytest.mark.third_party,
  pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None
    or importlib.util.find_spec("torch") is None,
    reason="needs pip install transformers torch",
  ),
]


def _save_by_transformers(folder, texts, name):
  """transformers' own files of a model, and its logits."""
  import torch
  import transformers

  config = transformers.AutoConfig.for_model(
    **tiny_families.CONFIGS[name], eos_token_id=None, bos_token_id=None
  )
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  weights = {
    key: torch.tensor(tiny_families.make_weight(key, tuple(value.shape)))
    for key, value in model.state_dict().items()
    if not (config.tie_word_embeddings and key == "lm_head.weight")
  }
  model.load_state_dict(weights, strict=False)
  model.tie_weights()
  model.generation_config = transformers.GenerationConfig()
  model.save_pretrained(folder)
  for file in ("tokenizer.json", "tokenizer_config.json"):
    (folder / file).write_text((texts / file).read_text())
  return _run(model)


def _run(model):
  import torch

  with torch.no_grad():
    return model(torch.tensor([tiny_families.TOKENS])).logits[0].numpy()


def _compute(model):
  network = networks.make_language_model(model.config)
  read = jnp.asarray([tiny_families.TOKENS], jnp.int32)
  return network.apply(model.params, read, jnp.zeros(1, jnp.int32))[0][0]


@pytest.mark.parametrize("name", tiny_families.CONFIGS)
def test_logits_of_files_by_transformers(tmp_path, texts, name):
  """We read its files, and it reads ours: the same logits."""
  import transformers

  expected = _save_by_transformers(tmp_path / "theirs", texts, name)
  model = pretrained.load(str(tmp_path / "theirs"))
  np.testing.assert_allclose(_compute(model), expected, atol=2e-5)
  pretrained.export(model, model.params, tmp_path / "ours")
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "ours"
  ).eval()
  assert (
    type(again).__name__
    == (
      json.loads((tmp_path / "theirs" / "config.json").read_text())[
        "architectures"
      ][0]
    )
  )
  np.testing.assert_allclose(_run(again), expected, atol=2e-5)


def test_batches_of_an_export_can_be_padded(tmp_path, texts):
  """The export has a padding token, which many models have not."""
  import transformers

  _save_by_transformers(tmp_path / "theirs", texts, "llama")
  model = pretrained.load(str(tmp_path / "theirs"))
  pretrained.export(model, model.params, tmp_path / "ours")
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
  batch = tokenizer(["hello", "hello hello 1"], padding=True)
  shorter, longer = batch["attention_mask"]
  assert len(shorter) == len(longer) and sum(shorter) < sum(longer)
  for text in ("hello  World 12\n<|stop|>é", "<|start|>user\nhi<|stop|>"):
    assert tokenizer(text)["input_ids"] == model.tokenizer.encode(text)
  messages = chat_templates.CONVERSATIONS["turns"]
  assert tokenizer.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=True
  ) == model.tokenizer.chat(messages)


@pytest.mark.parametrize("name", chat_templates.TEMPLATES)
def test_chat_templates(monkeypatch, name):
  """The texts that are kept for the other tests are transformers' still."""
  import datetime

  import tokenizers
  import transformers
  from transformers.utils import chat_template_utils

  from tests.pretrained import chat_template_test

  class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
      return cls.fromisoformat(chat_templates.DATE)

  monkeypatch.setattr(chat_template_utils, "datetime", Fixed)
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()),
    chat_template=chat_templates.TEMPLATES[name],
    **chat_templates.SPECIAL,
  )
  for talk, messages in chat_templates.CONVERSATIONS.items():
    found = tokenizer.apply_chat_template(
      messages, tokenize=False, add_generation_prompt=True
    )
    assert found == chat_template_test._GOLDEN[name][talk]
