"""Chat templates: which one a model uses, and how it is rendered.

They are programs from untrusted files, so Jinja's sandbox renders them. What
they can use is that of transformers' `apply_chat_template`, except the clock: a
run's prompts must not change from one day to the next, so that `strftime_now`
reads a date of the configuration.
"""

import datetime
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from lco_jax.pretrained import model_file

# What templates are told the date is, unless a setting says otherwise.
DATE = "2025-01-01"


def choose(path: pathlib.Path, given: Any) -> str | None:
  """Chooses the template among those that a file gives.

  Args:
    path: of the file, for errors.
    given: None, a template, or a list of {"name", "template"}.

  Raises:
    ModelFileError: if it is of another kind, or no template of several is the
      default.
  """
  if given is None or isinstance(given, str):
    return given
  named = given if isinstance(given, list) else [None]
  if not all(
    isinstance(own, Mapping)
    and isinstance(own.get("name"), str)
    and isinstance(own.get("template"), str)
    for own in named
  ):
    raise model_file.ModelFileError(
      path, "chat_template is neither a text nor a list of named texts"
    )
  templates = {own["name"]: own["template"] for own in named}
  if "default" not in templates:
    raise model_file.ModelFileError(
      path, f"chat_template: none of {', '.join(templates)} is the default"
    )
  return templates["default"]


def check_date(date: str) -> datetime.datetime:
  """Reads a date, YYYY-MM-DD.

  Raises:
    ValueError: if it is none.
  """
  try:
    return datetime.datetime.combine(
      datetime.date.fromisoformat(date), datetime.time()
    )
  except (TypeError, ValueError):
    raise ValueError(
      f"date: want YYYY-MM-DD, such as {DATE}; got {date!r}"
    ) from None


def render(
  template: str,
  messages: Sequence[Mapping[str, Any]],
  special: Mapping[str, str],
  date: str,
  add_generation_prompt: bool = True,
) -> str:
  """Renders a conversation.

  Args:
    template: Jinja source.
    messages: {"role": ..., "content": ...} in order.
    special: special tokens by name, such as bos_token.
    date: YYYY-MM-DD, of strftime_now.
    add_generation_prompt: whether an answer of the assistant is to follow.

  Raises:
    Exception: whatever the template raises.
  """
  return _compile(template, date).render(
    # Copies of plain values: a template can change nothing.
    messages=json.loads(json.dumps(list(messages))),
    tools=None,
    documents=None,
    add_generation_prompt=add_generation_prompt,
    **special,
  )


class _Generation(jinja2.ext.Extension):
  """Reads {% generation %} blocks, which mark the assistant's words."""

  tags = {"generation"}  # Jinja reads this attribute.

  def parse(self, parser):
    """Replaces a block by its content."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
    return jinja2.nodes.Scope(body).set_lineno(line)


@functools.cache
def _compile(template: str, date: str) -> jinja2.Template:
  """Compiles a template with the helpers that model templates expect."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, jinja2.ext.loopcontrols],
  )

  def refuse(message):
    raise jinja2.TemplateError(message)

  def to_json(
    value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
  ):
    # Jinja's own filter escapes HTML.
    return json.dumps(
      value,
      ensure_ascii=ensure_ascii,
      indent=indent,
      separators=separators,
      sort_keys=sort_keys,
    )

  environment.globals["raise_exception"] = refuse
  environment.globals["strftime_now"] = check_date(date).strftime
  environment.filters["tojson"] = to_json
  return environment.from_string(template)
