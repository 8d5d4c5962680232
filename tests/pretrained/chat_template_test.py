"""Chat templates: rendered as transformers renders them, or refused."""

import datetime
import json
import pathlib

import jinja2
import pytest

from lco_jax import pretrained
from lco_jax.pretrained import chat_template
from tests.pretrained import chat_templates

_PATH = pathlib.Path("tokenizer_config.json")
# Of transformers; what a template raises begins with "error: ".
_GOLDEN = json.loads(
  (
    pathlib.Path(__file__).parent.parent / "data" / "chat_templates.json"
  ).read_text()
)


@pytest.mark.parametrize("talk", chat_templates.CONVERSATIONS)
@pytest.mark.parametrize("name", chat_templates.TEMPLATES)
def test_rendering_against_transformers(name, talk):
  template = chat_template.choose(_PATH, chat_templates.TEMPLATES[name])
  try:
    found = chat_template.render(
      template,
      chat_templates.CONVERSATIONS[talk],
      chat_templates.SPECIAL,
      chat_templates.DATE,
    )
  except jinja2.TemplateError as error:
    found = f"error: {error}"
  assert found == _GOLDEN[name][talk]


def test_the_date_is_the_one_that_is_given(monkeypatch):
  """A run's prompts are the same tomorrow."""

  class Tomorrow(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
      return cls(2099, 1, 1)

  template = "{{ strftime_now('%Y-%m-%d %H') }}"
  before = chat_template.render(template, [], {}, "2031-04-09")
  monkeypatch.setattr(datetime, "datetime", Tomorrow)
  chat_template._compile.cache_clear()
  assert before == "2031-04-09 00"
  assert chat_template.render(template, [], {}, "2031-04-09") == before
  with pytest.raises(ValueError, match="date: want YYYY-MM-DD"):
    pretrained.Options(date="9 April")


@pytest.mark.parametrize(
  "given",
  [
    3,
    {"default": "a"},
    [{"name": "default"}],
    [{"name": "default", "template": None}],
    [{"name": "other", "template": "a"}],
    [],
    ["a"],
  ],
)
def test_templates_of_another_kind(given):
  with pytest.raises(pretrained.ModelFileError, match="chat_template"):
    chat_template.choose(_PATH, given)


def test_templates_change_no_message():
  messages = [{"role": "user", "content": "a"}]
  template = "{% set _ = messages[0].update({'content': 'b'}) %}"
  with pytest.raises(jinja2.exceptions.SecurityError):
    chat_template.render(template, messages, {}, chat_template.DATE)
  assert messages == [{"role": "user", "content": "a"}]
