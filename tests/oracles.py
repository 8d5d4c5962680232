"""Independent float64 oracles: plain NumPy values, numerical gradients."""

import numpy as np


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def mse(z, target):
  return 0.5 * ((z - target) ** 2).sum(-1)


def lch(z, target):
  return np.log(np.cosh(z - target)).sum(-1)


def kl(p, q):
  return (p * np.log(p / q)).sum(-1)


def kld(z, target):
  return kl(softmax(target), softmax(z))


def gradient(f, x, step=1e-6):
  """Central differences of the sum of f at x."""
  x = np.asarray(x, np.float64)
  result = np.zeros_like(x)
  for index in np.ndindex(x.shape):
    up, down = x.copy(), x.copy()
    up[index] += step
    down[index] -= step
    result[index] = (np.sum(f(up)) - np.sum(f(down))) / (2 * step)
  return result
