"""Checks the shapes that the names of arrays say, while tests run.

A name such as `x_BRLD` says that the array has four axes, and that B, R, L and D are
each of one size wherever they stand in the names of one call. As a function of
`commentree.models` returns, its arrays are looked at: arguments, what it computed, and
what it took from the functions around it.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

import commentree.models

MODELS = Path(commentree.models.__file__).parent
SUFFIX = re.compile(r"[a-z0-9]_([A-Z1]+)$")


class ShapeError(AssertionError):
  """An array's shape is not what its name says."""


@contextlib.contextmanager
def checked() -> Iterator[set[str]]:
  """Checks the calls of this thread.

  Yields:
    The checked functions, by name, as they return.

  Raises:
    ShapeError: out of the function whose arrays are not what their names say.
  """
  seen: set[str] = set()

  def on_event(frame: FrameType, event: str, _: Any) -> None:
    code = frame.f_code
    if event != "return" or not code.co_filename.startswith(str(MODELS)):
      return
    where = f"{Path(code.co_filename).name}:{code.co_firstlineno} {code.co_qualname}"
    if check(frame.f_locals, where):
      seen.add(code.co_qualname)

  before = sys.getprofile()
  sys.setprofile(on_event)
  try:
    yield seen
  finally:
    sys.setprofile(before)


def check(values: dict[str, Any], where: str) -> int:
  """Returns how many arrays have names that say their shapes.

  Args:
    values: anything, by name.
    where: said in errors.

  Raises:
    ShapeError: if an array has not as many axes as its name says, or one letter stands
      for two sizes.
  """
  sizes = {"1": (1, "its name")}
  found = 0
  for name, array in values.items():
    axes = SUFFIX.search(name)
    if axes is None or not isinstance(array, (jax.Array, np.ndarray)):
      continue
    found += 1
    if len(axes[1]) != array.ndim:
      raise ShapeError(f"{where}: {name} is of shape {array.shape}")
    for axis, size in zip(axes[1], array.shape):
      known, of = sizes.setdefault(axis, (size, name))
      if size != known:
        raise ShapeError(
          f"{where}: {axis} is {size} in {name}, of shape {array.shape}, and {known}"
          f" in {of}"
        )
  return found
