"""Damage to files, drawn from a fixed seed: what a flaky disk or a joker leaves."""

import random

from commentree.errors import UserError

HOSTILE = (b"[]", b"{}", b"null", b"-1", b"1e999", b'"', b"\0", b"\xff", b"[" * 50)


def mutated(content: bytes, count: int, seed: int = 0, tokens=HOSTILE):
  """Yields damaged copies of a file."""
  rng = random.Random(seed)
  for _ in range(count):
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
      start = rng.randrange(len(damaged) + 1)
      end = min(len(damaged), start + rng.choice((1, 4, 40, 400)))
      kind = rng.randrange(5)
      if kind == 0 and start < len(damaged):
        damaged[start] ^= 1 << rng.randrange(8)
      elif kind == 1:
        del damaged[start:end]
      elif kind == 2:
        damaged[start:start] = damaged[start:end]
      elif kind == 3:
        damaged[start : start + rng.randrange(8)] = rng.choice(tokens)
      else:
        other = rng.randrange(len(damaged) + 1)
        damaged[start:end] = damaged[other : other + end - start]
    yield bytes(damaged)


def refused(action) -> str | None:
  """Returns the user error that an action ends with; None if it succeeds."""
  try:
    action()
  except UserError as error:
    return str(error)
  return None
