"""Why a run over several hosts has to end, as each of its hosts receives it."""

from __future__ import annotations

import dataclasses

from commentree import errors
from commentree.errors import UserError
from commentree.training.cluster.coordination.host_messages import End


@dataclasses.dataclass(frozen=True)
class ShutdownNotice:
  """The end of a run.

  Attributes:
    text: why, in one line.
    exit_code: that of every host's process.
    hosts: those it is about.
  """

  text: str
  exit_code: int = errors.HostLostError.exit_code
  hosts: tuple[int, ...] = ()

  @classmethod
  def from_message(cls, message: End) -> ShutdownNotice:
    """Reads what the coordinator sent."""
    return cls(message.text, message.code, tuple(message.hosts))

  def error(self) -> UserError:
    """The error that gives the same exit code."""
    for kind in (errors.HostLostError, errors.StorageError):
      if kind.exit_code == self.exit_code:
        return kind(self.text)
    return UserError(self.text)
