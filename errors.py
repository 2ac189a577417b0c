"""Exceptions for what a user or an operator can mend, and the exit codes they give.

Command line entry points print a `UserError` as one line and exit with its code; every
other exception is a defect of ours and keeps its traceback.

Exit codes, which supervisors and schedulers go by:

  0    done
  1    a defect of ours: a traceback
  2    a mistake of the user's: starting again changes nothing
  74   storage refused (EX_IOERR): what is kept, such as a checkpoint, is named
  75   a host was lost, hung or never came (EX_TEMPFAIL): start again on every host
  130  interrupted (SIGINT), a checkpoint was saved
  143  preempted (SIGTERM), a checkpoint was saved: start again to resume
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable

# What moves a cursor, turns text round or cannot be encoded.
_UNPRINTABLE = re.compile(
  "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
  """Returns a text that is fit for a terminal, with what is not as Python writes it."""
  return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


class UserError(Exception):
  """A user's mistake, in one line: what is wrong, where, and how to mend it."""

  exit_code = 2


class StorageError(UserError):
  """A disk or bucket that keeps refusing; the run can go on once it does not."""

  exit_code = 74


class HostLostError(UserError):
  """Another host of the run died, hung or never came; all start again."""

  exit_code = 75


def exit_code_of(error: BaseException | None) -> int:
  """Returns the exit code of a command that ends with an exception, or without."""
  if error is None:
    return 0
  if isinstance(error, SystemExit):
    return error.code if isinstance(error.code, int) else int(error.code is not None)
  return error.exit_code if isinstance(error, UserError) else 1


_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# To start again changes nothing about these.
_MISTAKES = (
  *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL),
  *(errno.EACCES, errno.EPERM, errno.EROFS),
)


def is_disk_full(error: BaseException) -> bool:
  """Whether an error says that a disk, or a quota, is full."""
  return getattr(error, "errno", None) in _FULL_DISK


def refused_write(error: OSError, message: str) -> UserError:
  """Returns what to raise where a disk refused to write.

  Args:
    error: the disk's.
    message: the line for the user.

  Returns:
    A StorageError; a plain UserError where starting again changes nothing, as for a
    folder that is not the user's.
  """
  kind = UserError if error.errno in _MISTAKES else StorageError
  return kind(message)


def suggestion(name: object, known: Iterable[str]) -> str:
  """A question whether the nearest known name was meant, or nothing."""
  close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
  return f"; did you mean {close[0]}?" if close else ""
