"""Tries inputs on a surface, and makes inputs by mutation of its seeds."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import random
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence

from commentree.errors import UserError
from commentree.tests.fuzz import json_mutation
from commentree.tests.fuzz.surfaces import Surface

MAX_SECONDS = 5.0
MAX_BYTES = 2**19
# Share of mutations that leave JSON JSON, where there is any.
JSON_SHARE = 0.3

# What formats are made of; a mutation puts some of it anywhere.
_TOKENS = [
  b'"',
  b"{",
  b"}",
  b"[",
  b"]",
  b":",
  b",",
  b"null",
  b"true",
  b"-1",
  b"1e999",
  b"99999999999999999999",
  b'{"id": "a"}',
  b'"parent_id": null',
  b'"children": [',
  b'"replies": ""',
  b"\\ud800",
  b"\0",
  b"\n",
  b"\xff\xfe",
  b"\xef\xbb\xbf",
  b"&#",
  b"<reply id='a'>",
  b"</claim>",
  b"<a href=",
  b"\x28\xb5\x2f\xfd",
  b"\x1f\x8b\x08",
]


@dataclasses.dataclass
class Outcome:
  """What became of the inputs tried on a surface.

  Attributes:
    tried: how many.
    refused: those that a `UserError` refused.
    failures: by the place that failed: how often, and the first such input.
    slowest: seconds that the slowest took.
  """

  tried: int = 0
  refused: int = 0
  failures: dict[str, tuple[int, bytes]] = dataclasses.field(default_factory=dict)
  slowest: float = 0.0

  @property
  def failed(self) -> int:
    """How many inputs failed."""
    return sum(times for times, _ in self.failures.values())

  def fail(self, where: str, data: bytes) -> None:
    """Notes a failure."""
    times, first = self.failures.get(where, (0, data))
    self.failures[where] = (times + 1, first)


class Trial:
  """Tries one input after another on a surface, in a folder of its own."""

  def __init__(self, surface: Surface):
    self._folder = tempfile.TemporaryDirectory()
    folder = pathlib.Path(self._folder.name)
    (folder / "seeds").mkdir()
    (folder / "check").mkdir()
    self.seeds = surface.seeds(folder / "seeds")
    self._check = surface.check(folder / "check")
    self.outcome = Outcome()

  def __call__(self, data: bytes) -> None:
    """Tries an input; notes what became of it and raises nothing."""
    outcome = self.outcome
    outcome.tried += 1
    start = time.process_time()
    try:
      self._check(data)
    except UserError as error:
      outcome.refused += 1
      if "\n" in str(error):
        outcome.fail("a message of several lines", data)
    except Exception as error:
      *_, last = traceback.extract_tb(error.__traceback__)
      place = f"{pathlib.Path(last.filename).name}:{last.lineno}"
      outcome.fail(f"{type(error).__name__} at {place}: {str(error)[:80]}", data)
    seconds = time.process_time() - start
    outcome.slowest = max(outcome.slowest, seconds)
    if seconds > MAX_SECONDS:
      outcome.fail("too slow", data)

  def close(self) -> None:
    """Removes the folder."""
    self._folder.cleanup()


def mutations(
  seeds: Sequence[bytes], seed: int, tokens: Sequence[bytes] = _TOKENS
) -> Iterator[bytes]:
  """Yields the seeds, then mutations of them without end; the same for equal seeds.

  Args:
    seeds: what to start from.
    seed: of the draw.
    tokens: what mutations put in.
  """
  yield from seeds
  draw = random.Random(seed)
  recent = collections.deque(seeds, maxlen=200)
  while True:
    if draw.random() < JSON_SHARE:
      changed = json_mutation.mutate(draw.choice(seeds), draw)
      if changed is not None and len(changed) <= MAX_BYTES:
        yield changed
        continue
    # Not too far from what is read: all else is refused at the first check.
    data = bytearray(draw.choice(seeds if draw.random() < 0.5 else recent))
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
      place = draw.randrange(len(data) + 1)
      length = draw.choice((1, 1, 2, 8, 64))
      match draw.randrange(7):
        case 0 if data:
          data[place % len(data)] ^= 1 << draw.randrange(8)
        case 1 if data:
          data[place % len(data)] = draw.randrange(256)
        case 2:
          del data[place : place + length]
        case 3:
          data[place:place] = draw.choice(tokens)
        case 4:
          data[place:place] = data[place : place + length] * draw.choice((1, 2, 100))
        case 5:
          other = draw.choice(seeds)
          start = draw.randrange(len(other) + 1)
          data[place : place + length] = other[start : start + draw.choice((8, 200))]
        case 6:
          del data[place:]
    mutated = bytes(data[:MAX_BYTES])
    if draw.random() < 0.1:
      recent.append(mutated)
    yield mutated
