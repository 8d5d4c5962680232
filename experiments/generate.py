r"""Completes prompts with a pretrained model and reports log-likelihoods.

python -m experiments.generate --model=smollm2 --prompts=IN.jsonl \
    --out=OUT.jsonl --max_new_tokens=24
python -m experiments.generate --model=RUN_DIR --interactive

IN has a line {"text": ...} per prompt. OUT gets a line per prompt with its
tokens, their negative log-likelihoods in nats, the likeliest next tokens, the
greedy completion and, with --temperature, sampled completions.
"""

import functools
import itertools
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.common import command_line, plugins
from lco_jax import networks, pretrained
from lco_jax.language import generation, text_completion
from lco_jax.runs import checkpointing
from lco_jax.trainers import policies, policy_reading

_TOP = 20  # Number of likeliest next tokens in the output.
# Unpaired surrogates, which JSON can express but UTF-8 cannot encode.
_SURROGATE = re.compile("[\ud800-\udfff]")

_MODEL = flags.DEFINE_string(
  "model",
  None,
  "smollm2 or gemma3-270m (from Python packages), a GGUF file, a folder of"
  " safetensors, an id of the hub that has been downloaded, or the directory of"
  " a language run (its first seed).",
)
_PROMPTS = flags.DEFINE_string(
  "prompts", None, 'File with a line {"text": ...} per prompt.'
)
_OUT = flags.DEFINE_string("out", None, "File to write, a line per prompt.")
_INTERACTIVE = flags.DEFINE_bool(
  "interactive",
  False,
  "Talk on the terminal: each line that you type is answered; with --chat the"
  " conversation is remembered. Ctrl-D ends it.",
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  "max_new_tokens", 24, "Maximal tokens of a completion.", lower_bound=1
)
_CHAT = flags.DEFINE_bool(
  "chat", False, "Whether texts are user messages for the chat template."
)
_TEMPERATURE = flags.DEFINE_float(
  "temperature", None, "Temperature of additional samples; None for no samples."
)
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", 1, "Samples per prompt.", lower_bound=1
)
_SEED = flags.DEFINE_integer(
  "seed", 0, "Random seed of the samples.", lower_bound=0
)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size",
  16,
  "Sequences per batch; all samples of a prompt share a batch.",
  lower_bound=1,
)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Dtype of the computation."
)


_PRE_TOKENIZER = flags.DEFINE_string(
  "pre_tokenizer",
  None,
  "How a GGUF file's tokenizer splits text, if the file does not say.",
)
_END_TOKENS = flags.DEFINE_list(
  "end_tokens", [], "Texts of more tokens that end an answer."
)
_DATE = flags.DEFINE_string(
  "date", pretrained.Options().date, "What chat templates are told the date is."
)


def main() -> None:
  """Reads the prompts, runs the model and writes the completions."""
  try:
    for name in ("num_samples", "seed"):
      if flags.FLAGS[name].present and _TEMPERATURE.value is None:
        raise ValueError(
          f"--{name} needs --temperature: there are no samples without it"
        )
    given = [name for name in ("prompts", "out") if flags.FLAGS[name].present]
    if _INTERACTIVE.value:
      for name in (*given, "num_samples"):
        if flags.FLAGS[name].present:
          raise ValueError(f"--{name} does not go with --interactive")
      _talk(_make_answer(_load(_MODEL.value)))
      return
    for name in ("prompts", "out"):
      if name not in given:
        raise ValueError(f"--{name} must be given")
    out = pathlib.Path(_OUT.value)
    texts = list(_read_texts(pathlib.Path(_PROMPTS.value)))
    if not texts:
      raise ValueError(f"--prompts {_PROMPTS.value}: has no texts")
    if not out.parent.is_dir():
      raise ValueError(f"--out {out}: no such folder as {out.parent}")
    if out.is_dir():
      raise ValueError(f"--out {out}: is a folder")
    own = _load(_MODEL.value)
    if isinstance(own, policies.LanguagePolicy):
      rows = _complete_small(own, texts)
    else:
      rows = _complete_texts(own, texts)
  except (ValueError, checkpointing.CheckpointError) as error:
    raise command_line.ScriptError(error) from error
  partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
  try:
    with partial.open("w", encoding="utf-8") as file:
      for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.replace(out)
  except OSError as error:
    partial.unlink(missing_ok=True)
    raise command_line.ScriptError(
      f"--out {out} cannot be written: {error}", command_line.FAILED
    ) from error
  print(f"{len(rows)} texts: {out}")


def _load(name: str) -> pretrained.Pretrained | policies.LanguagePolicy:
  """Loads a model, or what a run has learned."""
  directory = pathlib.Path(name)
  is_run = (directory / "checkpoints").is_dir()
  if not is_run and not policy_reading.is_saved(directory):
    return pretrained.load(
      name,
      pretrained.Options(
        _PRE_TOKENIZER.value, tuple(_END_TOKENS.value), _DATE.value
      ),
    )
  for flag in ("pre_tokenizer", "end_tokens", "date"):
    if flags.FLAGS[flag].present:
      raise ValueError(f"--{flag} does not go with a run: its own holds")
  plugins.check_run(directory)
  policy = policy_reading.load_policy(directory)
  if isinstance(policy, policies.TextPolicy):
    if not flags.FLAGS["chat"].present:  # As in training.
      flags.FLAGS.chat = policy.asking.chat
    return policy.pretrained
  if isinstance(policy, policies.LanguagePolicy):
    for flag in ("max_new_tokens", "chat", "dtype", "batch_size"):
      if flags.FLAGS[flag].present:
        raise ValueError(
          f"--{flag} is for pretrained models; {name} is a run on a small task"
        )
    return policy
  raise ValueError(
    f"--model {name}: is a control run; play it with experiments.enjoy"
  )


def _complete_small(
  own: policies.LanguagePolicy, texts: list[str]
) -> list[dict]:
  """Completes texts with a small model, and makes an output row for each."""
  greedy, key = own.complete(texts), jax.random.key(_SEED.value)
  samples = []
  if _TEMPERATURE.value is not None:
    samples = [
      own.complete(texts, jax.random.fold_in(key, index), _TEMPERATURE.value)
      for index in range(_NUM_SAMPLES.value)
    ]
  return [
    {"text": text, "greedy_text": greedy[row]}
    | ({"samples": [{"text": own[row]} for own in samples]} if samples else {})
    for row, text in enumerate(texts)
  ]


def _make_answer(
  own: pretrained.Pretrained | policies.LanguagePolicy,
) -> Callable[[list[str]], str]:
  """Makes the function from all texts of a conversation to the next one."""
  if isinstance(own, policies.LanguagePolicy):
    return functools.partial(_answer_small, own)
  model = networks.make_language_model(own.config_with(dtype=_DTYPE.value))
  completer = text_completion.Completer(
    model, own.tokenizer.end, _MAX_NEW_TOKENS.value, batch_size=1
  )
  params = jax.device_put(own.params)
  temperature = _TEMPERATURE.value or 0.0

  def answer(said):
    text = said[-1]
    if _CHAT.value:
      roles = itertools.cycle(("user", "assistant"))
      text = own.tokenizer.chat(
        [
          {"role": role, "content": text}
          for role, text in zip(roles, said, strict=False)
        ]
      )
    tokens = own.tokenizer.encode(text, begins=not _CHAT.value)
    if len(tokens) + _MAX_NEW_TOKENS.value > own.context_length:
      raise ValueError(f"the conversation is longer than {own.context_length}")
    key = jax.random.fold_in(jax.random.key(_SEED.value), len(said))
    ((found,),) = completer.complete(
      params, [tokens], key[None, None], generation.Sampling(temperature)
    )
    return own.tokenizer.decode(found)

  return answer


def _answer_small(own: policies.LanguagePolicy, said: list[str]) -> str:
  """Completes the last text with a small model, sampled if so asked."""
  if _TEMPERATURE.value is None:
    return own.complete(said[-1:])[0]
  key = jax.random.fold_in(jax.random.key(_SEED.value), len(said))
  return own.complete(said[-1:], key, _TEMPERATURE.value)[0]


def _talk(answer: Callable[[list[str]], str]) -> None:
  """Answers each line of standard input on standard output, until its end."""
  said = []
  for line in sys.stdin:
    if not line.strip():
      continue
    try:
      reply = answer([*said, line.rstrip("\n")])
    except ValueError as error:
      print(f"error: {error}", file=sys.stderr, flush=True)
      continue
    said += [line.rstrip("\n"), reply]
    print(reply, flush=True)


def _read_texts(path: pathlib.Path) -> Iterator[str]:
  """Yields the texts of a JSON Lines file.

  Raises:
    ValueError: naming the file and the line with an error.
  """
  try:
    # Do not use splitlines: texts may contain other line separators.
    lines = path.read_text(encoding="utf-8").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f"--prompts {path}: cannot be read: {error}") from None
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
      text = None
    if not isinstance(text, str) or not text or _SURROGATE.search(text):
      raise ValueError(
        f'--prompts {path}, line {number}: not {{"text": ...}} with a text'
      )
    yield text


def _complete_texts(own: pretrained.Pretrained, texts: list[str]) -> list[dict]:
  """Completes the texts and makes an output row for each."""
  if _TEMPERATURE.value is not None:
    sampling = generation.Sampling(_TEMPERATURE.value)
  if _CHAT.value:
    texts = [
      own.tokenizer.chat([{"role": "user", "content": text}]) for text in texts
    ]
  prompts = [own.tokenizer.encode(t, begins=not _CHAT.value) for t in texts]
  room = own.context_length - _MAX_NEW_TOKENS.value
  for text, tokens in zip(texts, prompts, strict=True):
    if len(tokens) > room:
      raise ValueError(
        f"--max_new_tokens {_MAX_NEW_TOKENS.value}: a text of"
        f" {len(tokens)} tokens leaves no room in {own.context_length}:"
        f" {text[:40]!r}"
      )
  model = networks.make_language_model(own.config_with(dtype=_DTYPE.value))
  completer = text_completion.Completer(
    model, own.tokenizer.end, _MAX_NEW_TOKENS.value, _BATCH_SIZE.value
  )
  params = jax.device_put(own.params)

  def complete(keys, sampling):
    each = jnp.stack([jax.random.split(key, len(prompts)) for key in keys])
    return completer.complete(params, prompts, each, sampling)

  readings = completer.read(params, prompts, min(_TOP, own.config.vocab_size))
  key = jax.random.key(_SEED.value)
  (greedy,) = complete([key], generation.Sampling(temperature=0.0))
  samples = []
  if _TEMPERATURE.value is not None:
    indices = range(_NUM_SAMPLES.value)
    samples = complete(
      [jax.random.fold_in(key, index) for index in indices], sampling
    )
  return [
    {
      "text": texts[row],
      "ids": prompts[row],
      "token_nll": _round(readings[row].token_nll),
      "last_top20_ids": readings[row].top_tokens.tolist(),
      "last_top20_logits": _round(readings[row].top_logits),
      "greedy_ids": greedy[row],
      "greedy_text": own.tokenizer.decode(greedy[row]),
    }
    | (
      {
        "samples": [
          {"ids": own_ids[row], "text": own.tokenizer.decode(own_ids[row])}
          for own_ids in samples
        ]
      }
      if samples
      else {}
    )
    for row in range(len(prompts))
  ]


def _round(values: np.ndarray) -> list[float]:
  """Rounds to the precision of float32."""
  return [round(float(value), 6) for value in values]


if __name__ == "__main__":
  flags.mark_flag_as_required("model")
  command_line.run(main)
