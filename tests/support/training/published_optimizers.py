"""Optimizers as their papers state them, in NumPy, one array at a time.

Each takes an array, its gradients step by step and the learning rate of each step, and
returns the array after them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Rate = Callable[[int], float]


def adafactor(x: np.ndarray, gradients: Sequence[np.ndarray], rate: Rate) -> np.ndarray:
  """Shazeer & Stern 2018, algorithms 4 and 5, with T5's settings.

  No momentum; updates are clipped at a root mean square of 1 and scaled by that of the
  parameter; the second moment's decay is 1 - t^-0.8; a matrix is factored if both its
  sides have at least 128.
  """
  x = np.asarray(x, np.float64)
  rows, columns, whole = 0.0, 0.0, 0.0
  for t, gradient in enumerate(gradients, 1):
    g = np.asarray(gradient, np.float64)
    decay = 1 - t**-0.8
    square = g**2 + 1e-30
    if x.ndim == 2 and min(x.shape) >= 128:
      rows = decay * rows + (1 - decay) * square.sum(axis=1)
      columns = decay * columns + (1 - decay) * square.sum(axis=0)
      second = np.outer(rows, columns) / np.sum(rows)
    else:
      whole = decay * whole + (1 - decay) * square
      second = whole
    u = g / np.sqrt(second)
    u = u / max(1.0, _rms(u))
    x = x - rate(t - 1) * max(1e-3, _rms(x)) * u
  return x


def adamw(
  x: np.ndarray, gradients: Sequence[np.ndarray], rate: Rate, decay: float
) -> np.ndarray:
  """Loshchilov & Hutter 2019, algorithm 2."""
  x = np.asarray(x, np.float64)
  first, second = 0.0, 0.0
  for t, gradient in enumerate(gradients, 1):
    g = np.asarray(gradient, np.float64)
    first = 0.9 * first + 0.1 * g
    second = 0.999 * second + 0.001 * g**2
    ratio = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    x = x - rate(t - 1) * (ratio + decay * x)
  return x


def lamb(
  x: np.ndarray, gradients: Sequence[np.ndarray], rate: Rate, decay: float
) -> np.ndarray:
  """You et al. 2020, algorithm 2."""
  x = np.asarray(x, np.float64)
  first, second = 0.0, 0.0
  for t, gradient in enumerate(gradients, 1):
    g = np.asarray(gradient, np.float64)
    first = 0.9 * first + 0.1 * g
    second = 0.999 * second + 0.001 * g**2
    ratio = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-6)
    direction = ratio + decay * x
    norms = np.linalg.norm(x), np.linalg.norm(direction)
    trust = norms[0] / norms[1] if min(norms) > 0 else 1.0
    x = x - rate(t - 1) * trust * direction
  return x


def nesterov(
  x: np.ndarray, gradients: Sequence[np.ndarray], rate: Rate, momentum: float
) -> np.ndarray:
  """Sutskever et al. 2013, in the form that looks ahead from the parameters."""
  x = np.asarray(x, np.float64)
  velocity = np.zeros_like(x)
  for t, gradient in enumerate(gradients):
    g = np.asarray(gradient, np.float64)
    velocity = momentum * velocity + g
    x = x - rate(t) * (g + momentum * velocity)
  return x


def schedule_free_sgd(
  x: np.ndarray, gradients: Sequence[np.ndarray], rate: float, beta: float
) -> tuple[np.ndarray, np.ndarray]:
  """Defazio et al. 2024: (where gradients are taken, the average)."""
  z = average = y = np.asarray(x, np.float64)
  for t, gradient in enumerate(gradients, 1):
    z = z - rate * np.asarray(gradient, np.float64)
    average = (1 - 1 / t) * average + z / t
    y = (1 - beta) * z + beta * average
  return y, average


def _rms(x: np.ndarray) -> float:
  return float(np.sqrt(np.mean(x**2)))
