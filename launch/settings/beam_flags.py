"""Apache Beam on the command line: its options, and what it says when it fails."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
from collections.abc import Iterator, Sequence

from commentree.errors import UserError

# TensorFlow makes text of what a Python function of a `tf.data.Dataset` raises.
_TOLD_BY_TENSORFLOW = re.compile(r"\b(?:UserError|StorageError): (.+)")

INTERRUPTED = 130  # exit code after Ctrl-C


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Returns (our own flags, those behind `--`, which are Beam's)."""
  own = list(argv)
  if "--" not in own:
    return own, []
  at = own.index("--")
  return own[:at], own[at + 1 :]


def require(what: str) -> None:
  """Makes sure that Apache Beam is there, and keeps its remarks to itself.

  It remarks on libraries of clouds that were not asked for, and logs what it raises.

  Raises:
    UserError: naming the extra, if it is not installed.
  """
  if importlib.util.find_spec("apache_beam") is None:
    raise UserError(
      f"{what} needs Apache Beam: pip install 'commentree[beam]' (from a checkout,"
      " pip install -e '.[beam]')"
    )
  logging.disable(logging.ERROR)


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
  """Brings a user's mistake, found by a worker, out of what Beam wraps it in."""
  try:
    yield
  except Exception as error:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
      cause = cause.__cause__ or cause.__context__
    if cause is not None:
      raise cause from error
    if told := _TOLD_BY_TENSORFLOW.search(str(error)):
      raise UserError(told[1]) from error
    raise
