"""The secret by which the hosts of a run know each other.

`commentree launch` makes one for each start and hands it over in the environment, which
other users of a machine cannot read, as they can a command line. The secret itself is
never sent: each side proves that it knows it, over numbers that the other has just
drawn, so that what was recorded proves nothing later.

It keeps out whoever does not know it. It does not keep out whoever can change what is
sent between the hosts: messages after the first are neither encrypted nor signed.
"""

from __future__ import annotations

import hmac
import os
import pathlib
import secrets
from collections.abc import Mapping

from commentree.errors import UserError

VARIABLE = "COMMENTREE_HOST_SECRET"
FILE_VARIABLE = "COMMENTREE_HOST_SECRET_FILE"

# How to make one in a shell.
MAKE = "openssl rand -hex 32"

_RANDOM_BYTES = 32
_MIN_BYTES = 16


def make() -> str:
  """Returns a new secret, in hexadecimal digits."""
  return secrets.token_hex(_RANDOM_BYTES)


def nonce() -> str:
  """Returns a number that cannot be guessed and that is used once."""
  return secrets.token_hex(_RANDOM_BYTES)


def read(environ: Mapping[str, str] | None = None) -> bytes:
  """Returns the secret that this process was given; empty without one.

  Args:
    environ: the environment; this process's own without.

  Raises:
    UserError: if its file cannot be read, or it is too short.
  """
  environ = os.environ if environ is None else environ
  if secret := environ.get(VARIABLE, "").strip().encode():
    return _checked(secret, VARIABLE)
  path = environ.get(FILE_VARIABLE)
  if not path:
    return b""
  try:
    secret = pathlib.Path(path).read_bytes().strip()
  except OSError as error:
    raise UserError(
      f"{FILE_VARIABLE}={path}: {error.strerror}; put the run's secret there, the same"
      " on every host"
    ) from error
  return _checked(secret, f"{FILE_VARIABLE}={path}")


def proof(secret: bytes, who: str, *said: bytes) -> str:
  """Returns what shows that somebody who knows the secret said all this.

  Args:
    secret: the secret; may be empty, and then proves nothing.
    who: which side says it, so that no answer can be sent back as one's own.
    said: the numbers that both sides drew, and what else must not be changed.
  """
  text = b"\0".join([who.encode(), *said])
  return hmac.new(secret, text, "sha256").hexdigest()


def proves(given: str, secret: bytes, who: str, *said: bytes) -> bool:
  """Whether `given` is that proof; takes the same time for every wrong one."""
  expected = proof(secret, who, *said).encode()
  return hmac.compare_digest(given.encode(), expected)


def _checked(secret: bytes, source: str) -> bytes:
  if len(secret) < _MIN_BYTES:
    raise UserError(
      f"{source}: the secret has {len(secret)} characters, fewer than {_MIN_BYTES};"
      f" make one by `{MAKE}`, the same for every host"
    )
  return secret
