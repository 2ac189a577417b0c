"""What hosts and their coordinator say to each other: JSON objects, one a line.

A connection begins with the coordinator's `Challenge` and the host's `Hello`, which
`host_secret` proves; the coordinator answers `Admitted`, likewise proven, or `Refused`.
A connection that asks for the purpose `jax` carries the bytes of JAX's own coordination
service from then on, and no further message.

Every line is checked against these types before anything looks at it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

PROTOCOL = "commentree hosts 2"

# A first message is far shorter; settings, which are compared, may be long.
FIRST_LINE_BYTES = 2**11
LINE_BYTES = 2**22

_Hex = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
_Index = Annotated[int, Meta(ge=0, lt=2**20)]
_Step = Annotated[int, Meta(ge=0, lt=2**62)]
_Seconds = Annotated[float, Meta(ge=0, le=1e9)]
_Name = Annotated[str, Meta(max_length=255, pattern="^[ -~]*$")]
_Word = Annotated[str, Meta(max_length=64, pattern="^[ -~]*$")]
_ExitCode = Annotated[int, Meta(ge=1, le=255)]

Purpose: TypeAlias = Literal["host", "jax"]


class _Message(
  msgspec.Struct,
  tag_field="type",
  tag=str.lower,
  forbid_unknown_fields=True,
):
  """A line."""


# ---- From the coordinator, before it knows who is there ------------------------------


class Challenge(_Message):
  """The first line of a connection.

  Attributes:
    protocol: `PROTOCOL`.
    nonce: to prove over.
    has_secret: whether the coordinator was given a secret.
  """

  protocol: str
  nonce: _Hex
  has_secret: bool


class Admitted(_Message):
  """The connection is a host's; `proof` shows that the coordinator knows the secret."""

  proof: _Hex


class Refused(_Message):
  """The connection ends.

  Attributes:
    reason: why.
    is_mistake: whether to try again is of no use.
  """

  reason: str
  is_mistake: bool = False


# ---- From a host ---------------------------------------------------------------------


class Hello(_Message):
  """Who a host is.

  Attributes:
    protocol: `PROTOCOL`.
    purpose: `host`: to tell how it gets on; `jax`: to reach JAX's service.
    index: which host it is.
    count: how many hosts it was told there are.
    name: of its machine.
    process: its process id.
    nonce: for the coordinator to prove over.
    proof: by `host_secret`, over both nonces and all of this.
  """

  protocol: str
  purpose: Purpose
  index: _Index
  count: _Index
  name: _Name
  process: Annotated[int, Meta(ge=0, lt=2**32)]
  nonce: _Hex
  proof: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] = ""

  def with_proof(self, proof: str) -> Hello:
    """Returns the same with that proof."""
    return msgspec.structs.replace(self, proof=proof)

  def to_prove(self) -> bytes:
    """What its proof covers, the coordinator's nonce aside."""
    return msgspec.json.encode(self.with_proof(""))


class Beat(_Message):
  """Where a host's main thread is, and for how long it has made no progress."""

  step: _Step
  what: _Word
  still_seconds: _Seconds


class Facts(_Message):
  """What must be equal on all hosts.

  Attributes:
    about: what it is, such as "settings".
    facts: values by name.
  """

  about: _Word
  facts: dict[str, Any]


class Failed(_Message):
  """A host ends by an error; the others are to end with this code."""

  code: _ExitCode
  message: Annotated[str, Meta(max_length=4096)]


class Done(_Message):
  """A host has come to the end of its work."""


# ---- From the coordinator, to hosts --------------------------------------------------


class Waiting(_Message):
  """Hosts that have not come yet."""

  missing: list[_Index]


class Go(_Message):
  """All hosts are there; their names."""

  names: list[_Name]


class AllHeard(_Message):
  """How long the host that was silent for longest has been so."""

  silent_seconds: _Seconds


class Agreed(_Message):
  """How the hosts' facts differ; empty if they do not."""

  difference: str


class End(_Message):
  """The run has to end; see `shutdown_notice.ShutdownNotice`."""

  text: str
  code: _ExitCode
  hosts: list[_Index]


class AllDone(_Message):
  """All hosts have come to the end of their work."""


FromHost: TypeAlias = Hello | Beat | Facts | Failed | Done
FromCoordinator: TypeAlias = (
  Challenge | Admitted | Refused | Waiting | Go | AllHeard | Agreed | End | AllDone
)

_from_host = msgspec.json.Decoder(FromHost)
_from_coordinator = msgspec.json.Decoder(FromCoordinator)


class MessageError(Exception):
  """A line that is no message; says what is wrong with it."""


def encode(message: FromHost | FromCoordinator) -> bytes:
  """Returns a message as a line."""
  return msgspec.json.encode(message) + b"\n"


def from_host(line: bytes) -> FromHost:
  """Returns what a host said.

  Raises:
    MessageError: if it is none of the messages above.
  """
  return _decoded(_from_host, line)


def from_coordinator(line: bytes) -> FromCoordinator:
  """Returns what the coordinator said.

  Raises:
    MessageError: if it is none of the messages above.
  """
  return _decoded(_from_coordinator, line)


def _decoded(decoder: msgspec.json.Decoder, line: bytes) -> Any:
  try:
    return decoder.decode(line)
  # Text nested too deeply gives a RecursionError.
  except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
    raise MessageError(str(error)) from error


class Lines:
  """Bytes that have come, and the whole lines among them; never more than a limit."""

  def __init__(self, limit: int):
    """Starts empty.

    Args:
      limit: most bytes of a line.
    """
    self.limit = limit
    self._buffer = bytearray()

  def add(self, data: bytes) -> list[bytes]:
    """Takes what has come; returns the lines that it ends.

    Raises:
      MessageError: if a line is too long.
    """
    self._buffer += data
    *lines, rest = self._buffer.split(b"\n")
    if max(map(len, [*lines, rest])) > self.limit:
      raise MessageError(f"a line of more than {self.limit} bytes")
    self._buffer = rest
    return [bytes(line) for line in lines]
