"""The cases of `experiments.benchmark llm`."""

from experiments.benchmarks import losses, steps, transformers
from lco_jax import algorithms, pretrained
from lco_jax.training import cpu_backend

# Those that PyTorch and transformers take, too, where they are installed.
PEERS = {
  f"{name}, transformers": case
  for name, case in steps.CASES.items()
  if case.shortest is None
}


def measure(case: str, model: str, algorithm: str, repeats: int) -> dict:
  """A case of whole steps, of PEERS, or of a loss alone.

  Args:
    case: its name.
    model: as of `pretrained.load`; of steps and PEERS.
    algorithm: a key of `algorithms.ALGORITHMS`.
    repeats: calls; medians are returned.

  Returns:
    {name: figure}; extra memory is the peak of the whole process above that
    before the first call, or of an accelerator above what was in use then.

  Raises:
    ValueError: if the case, the model or the algorithm is unknown, or a package
      missing.
  """
  alone = losses.CASES | losses.LARGE_CASES
  whole = steps.CASES | steps.LARGE_CASES
  known = (*whole, *PEERS, *alone)
  if case not in known:
    names = ", ".join(map(repr, known))
    raise ValueError(f"case: unknown {case!r}; known: {names}")
  algorithms.list_options(algorithm)  # Raises if it is unknown.
  row = algorithms.ALGORITHMS[algorithm]
  if case in alone:
    return losses.measure(alone[case], row, repeats)
  cpu_backend.keep_memory()  # As in runs; the peer has it, too.
  own = pretrained.load(model)
  if case in PEERS:
    peer = PEERS[case]
    return transformers.measure(
      own,
      peer.num_prompts,
      peer.num_samples,
      steps.PROMPT_LENGTH,
      peer.longest,
      repeats,
    )
  return steps.measure(whole[case], own, row, repeats)


def cases() -> list[str]:
  """Those that can be measured here, what is to be compared side by side."""
  found = []
  for name in steps.CASES:
    peer = f"{name}, transformers"
    has_peer = peer in PEERS and transformers.is_installed()
    found += [name, peer] if has_peer else [name]
  return [*found, *losses.CASES]
