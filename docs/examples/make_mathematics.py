"""Writes rows of DeepMind's mathematics dataset, mathematics.jsonl.

The package needs older numpy and sympy, so it gets an environment of its own:

    python -m venv mathematics
    mathematics/bin/pip install mathematics_dataset 'numpy<1.24' 'sympy<1.6'
    mathematics/bin/python make_mathematics.py

Source: Saxton et al. 2019, arXiv:1904.01557.
"""

import json
import random

import numpy
from mathematics_dataset.modules import modules


def list_modules(tree, prefix=""):
  """Lists the kinds of problems, (name, function that makes one)."""
  for name, own in tree.items():
    if isinstance(own, dict):
      yield from list_modules(own, f"{prefix}{name}__")
    else:
      yield prefix + name, own


random.seed(0)
numpy.random.seed(0)
makers = dict(list_modules(modules.train(lambda entropy: entropy)))
with open("mathematics.jsonl", "w") as file:
  # All names: sorted(makers).
  for name in ("arithmetic__add_or_sub", "algebra__linear_1d"):
    for _ in range(500):
      problem = makers[name]()
      row = {"question": str(problem.question), "answer": str(problem.answer)}
      file.write(json.dumps(row) + "\n")
