"""Tokenizers of pretrained models, with their special tokens.

`gguf_tokenizer` and `folder_tokenizer` make them from files.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import tokenizers

from lco_jax.checks import setting
from lco_jax.pretrained import chat_template, model_file

# Names of special tokens in tokenizer_config.json and in chat templates.
SPECIAL_NAMES = (
  "bos_token",
  "eos_token",
  "unk_token",
  "sep_token",
  "pad_token",
  "cls_token",
  "mask_token",
)


@dataclasses.dataclass(frozen=True)
class Options:
  """Settings of texts that a model's files leave open."""

  pre_tokenizer: str | None = setting(
    None,
    "how a GGUF file's tokenizer splits text, by llama.cpp's name; None takes"
    " the file's",
  )
  end_tokens: tuple[str, ...] = setting(
    (), "texts of tokens that end an answer, beside those that the files name"
  )
  date: str = setting(
    chat_template.DATE, "YYYY-MM-DD, what chat templates are told the date is"
  )

  def __post_init__(self):
    chat_template.check_date(self.date)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A tokenizer with its model's special tokens and chat template.

  Attributes:
    path: source file, for error messages.
    rules: tokenizer of the `tokenizers` package.
    end: tokens that end a text; training uses the first.
    begin: token before every text; None if there is none.
    template: Jinja source of the chat template; None if there is none.
    special: texts of special tokens by name, such as bos_token, whether or not
      the tokenizer adds them.
    date: YYYY-MM-DD, what the chat template is told the date is.
  """

  path: pathlib.Path
  rules: tokenizers.Tokenizer
  end: tuple[int, ...]
  begin: int | None
  template: str | None
  special: Mapping[str, str] = dataclasses.field(default_factory=dict)
  date: str = chat_template.DATE

  @property
  def size(self) -> int:
    """Largest number of a token plus 1, special ones included."""
    return max(self.vocabulary.values(), default=-1) + 1

  @property
  def vocabulary(self) -> dict[str, int]:
    """All tokens, {text of the token: its number}."""
    return self.rules.get_vocab(with_added_tokens=True)

  @property
  def padding(self) -> int:
    """Token that fills short texts of a batch; the first end by default."""
    number = self.rules.token_to_id(self.special.get("pad_token", ""))
    return self.end[0] if number is None else number

  def encode(self, text: str, begins: bool = True) -> list[int]:
    """Encodes a text, which may contain special tokens.

    Args:
      text: the text.
      begins: whether to prepend the `begin` token, if there is one; False for
        chats, because the template writes it.
    """
    tokens = self.rules.encode(text, add_special_tokens=False).ids
    if self.begin is None or not begins:
      return tokens
    return [self.begin, *tokens]

  def decode(self, tokens: Sequence[int]) -> str:
    """Decodes tokens to text, without special tokens."""
    return self.rules.decode(list(tokens), skip_special_tokens=True)

  def chat(
    self, messages: Sequence[Mapping[str, str]], answers: bool = True
  ) -> str:
    """Renders a conversation as text.

    Args:
      messages: {"role": system, user or assistant, "content": text} in order.
      answers: whether the text ends where the assistant's next answer begins.

    Raises:
      ModelFileError: if the model has no template, or it cannot be rendered.
    """
    if self.template is None:
      raise model_file.ModelFileError(self.path, "has no chat template")
    try:
      return chat_template.render(
        self.template, messages, self.special, self.date, answers
      )
    except Exception as error:  # Templates are programs and may raise anything.
      raise model_file.ModelFileError(
        self.path, f"chat template: {error}"
      ) from error

  def find_turn_end(self) -> int | None:
    """Finds the token that the chat template writes behind an answer.

    Returns:
      None if there is no template, it cannot render an answer, or no special
      token follows the answer.
    """
    answer = "lorem ipsum"
    messages = [
      {"role": "user", "content": "dolor"},
      {"role": "assistant", "content": answer},
    ]
    try:
      _, found, rest = self.chat(messages, answers=False).rpartition(answer)
    except model_file.ModelFileError:
      return None
    tokens = self.rules.encode(rest.lstrip(), add_special_tokens=False).ids
    added = self.rules.get_added_tokens_decoder()
    if found and tokens and tokens[0] in added and added[tokens[0]].special:
      return tokens[0]
    return None

  def token(self, number: int) -> str:
    """Text of a token."""
    return self.rules.id_to_token(number)


def find_ends(
  path: pathlib.Path,
  rules: tokenizers.Tokenizer,
  numbers: Sequence[int | None],
  options: Options,
) -> tuple[int, ...]:
  """Lists all tokens that end a text.

  Args:
    path: source file, for error messages.
    rules: the tokenizer.
    numbers: what the files name; None is left out.
    options: with more of them.

  Raises:
    ModelFileError: if there is none, or one is no token.
  """
  more = []
  for text in options.end_tokens:
    more.append(rules.token_to_id(text))
    if more[-1] is None:
      raise model_file.ModelFileError(
        path, f"end_tokens: {text!r} is no token of this model"
      )
  ends = [number for number in (*numbers, *more) if number is not None]
  known = set(rules.get_vocab(with_added_tokens=True).values())
  for end in ends:
    whole = isinstance(end, int) and not isinstance(end, bool)
    if not whole or end not in known:
      raise model_file.ModelFileError(path, f"end-of-text {end!r} is no token")
  if not ends:
    raise model_file.ModelFileError(
      path, "names no end-of-text token; set end_tokens"
    )
  return tuple(dict.fromkeys(ends))
