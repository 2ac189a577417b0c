"""Host-to-host messages over JAX's key-value store.

It goes through the key-value store of JAX's coordination service, which lives on host
0: that works in threads, has time limits, and lets no device wait. Every host calls
each function equally often with the same names, in the same order per name.
"""

from __future__ import annotations

import collections
import contextlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

from commentree import compat, errors
from commentree.errors import HostLostError, UserError

T = TypeVar("T")

# Longer than any host takes from one point that all pass to the next, hung disks aside.
WAIT_SECONDS = 1800.0

# Python sees signals between calls into the store, not within them.
_POLL_SECONDS = 5.0
_LOOK_SECONDS = 0.2
_USER_ERRORS = {
  name: error
  for name, error in vars(errors).items()
  if isinstance(error, type) and issubclass(error, UserError)
}

_lock = threading.Lock()
_counts: collections.Counter[str] = collections.Counter()


def gather_to_host0(
  name: str, text: str, seconds: float = WAIT_SECONDS
) -> list[str] | None:
  """Tells host 0 something; returns what each host said there, None elsewhere.

  Args:
    name: what it is about.
    text: what this host says, less than 4 MB.
    seconds: how long host 0 waits for the others.

  Raises:
    HostLostError: on host 0, if one says nothing in that time.
  """
  if jax.process_count() == 1:
    return [text]
  key = _next_key(name)
  if jax.process_index() > 0:
    _store().key_value_set(f"{key}/{jax.process_index()}", text)
    return None
  said = [text]
  end = time.monotonic() + seconds
  for process in range(1, jax.process_count()):
    said.append(_get(f"{key}/{process}", f"host {process}", name, end))
    _store().key_value_delete(f"{key}/{process}")
  return said


def broadcast(name: str, text: str | None = None, seconds: float = WAIT_SECONDS) -> str:
  """Returns what host 0 says.

  Args:
    name: what it is about.
    text: what to say; looked at on host 0 alone.
    seconds: how long the others wait.

  Raises:
    HostLostError: if host 0 says nothing in that time.
  """
  if jax.process_count() == 1:
    assert text is not None
    return text
  key = _next_key(name)
  if jax.process_index() == 0:
    assert text is not None
    # Kept there for good: a late host must still find it.
    _store().key_value_set(key, text)
    return text
  return _get(key, "host 0", name, time.monotonic() + seconds)


def allgather(name: str, text: str, seconds: float = WAIT_SECONDS) -> list[str]:
  """Returns what every host says, by its index."""
  said = gather_to_host0(f"{name} (each)", text, seconds)
  heard = broadcast(f"{name} (all)", json.dumps(said), seconds)
  return json.loads(heard)


def barrier(name: str, seconds: float = WAIT_SECONDS) -> None:
  """Returns once all hosts have called it, so that they begin together what follows.

  CPU collectives fail where one host comes to their first use half a minute after
  another, which is what compiling side by side on a busy machine makes of them.

  Args:
    name: what they have done.
    seconds: how long they wait for each other.

  Raises:
    HostLostError: if one does not come in that time.
  """
  allgather(name, "", seconds)


def wait_for_all(name: str, meanwhile: Callable[[], None]) -> None:
  """Returns once all hosts have called it, however long that takes.

  Args:
    name: what they have done; unlike elsewhere, each name is for one call.
    meanwhile: called again and again; what it raises ends the waiting.
  """
  if jax.process_count() == 1:
    return
  if jax.process_index() > 0:
    set_flag(f"{name}/{jax.process_index()}")
  else:
    for process in range(1, jax.process_count()):
      _await_flag(f"{name}/{process}", meanwhile)
    set_flag(f"{name}/all")
  _await_flag(f"{name}/all", meanwhile)


def _await_flag(name: str, meanwhile: Callable[[], None]) -> None:
  while flag(name) is None:
    meanwhile()
    time.sleep(_LOOK_SECONDS)


def set_flag(name: str, text: str = "up") -> None:
  """Says something that every host may look for; who says it first is heard.

  Args:
    name: what it is about; it can be said once.
    text: what to say.
  """
  if jax.process_count() > 1:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was faster
      _store().key_value_set(f"commentree/flag/{name}", text)


def flag(name: str) -> str | None:
  """Returns what some host said by `set_flag`, None if none has yet."""
  if jax.process_count() == 1:
    return None
  try:
    return _store().key_value_try_get(f"commentree/flag/{name}")
  except jax.errors.JaxRuntimeError as error:
    if "NOT_FOUND" in str(error):
      return None
    raise HostLostError(
      f"the coordinator does not answer ({str(error).splitlines()[0][:120]}):"
      " start again on every host"
    ) from error


def run_on_host0(name: str, decide: Callable[[], T]) -> T:
  """Returns on every host what host 0 alone works out.

  Args:
    name: what it is about.
    decide: called on host 0; what it returns must survive JSON.

  Raises:
    UserError: on every host, if `decide` raised it.
    HostLostError: on the others, if it raised anything else.
  """
  if jax.process_count() == 1:
    return decide()
  if jax.process_index() > 0:
    return _open(json.loads(broadcast(name)))
  try:
    result = decide()
  except UserError as error:
    broadcast(name, json.dumps({"kind": type(error).__name__, "message": str(error)}))
    raise
  except BaseException as error:
    message = f"host 0 failed in {name}: {type(error).__name__}: see its messages"
    broadcast(name, json.dumps({"kind": "HostLostError", "message": message}))
    raise
  broadcast(name, json.dumps({"result": result}))
  return result


def run_on_all_hosts(name: str, act: Callable[[], T]) -> T:
  """Returns on every host what `act` returned there, if it did so on all.

  Args:
    name: what it is about.
    act: called on every host; may end at different times.

  Raises:
    UserError: on every host, if `act` raised it on one.
  """
  result, error = None, None
  try:
    result = act()
  except UserError as raised:
    error = raised
  if error is not None and jax.process_count() == 1:
    raise error
  mine = error and {"kind": type(error).__name__, "message": str(error)}
  for said in map(json.loads, allgather(name, json.dumps(mine))):
    if said is not None:
      _open(said)
  return cast(T, result)


def _open(answer: dict[str, Any]) -> Any:
  if "kind" in answer:
    raise _USER_ERRORS[answer["kind"]](answer["message"])
  return answer["result"]


def _next_key(name: str) -> str:
  with _lock:
    _counts[name] += 1
    return f"commentree/{name}/{_counts[name]}"


def _get(key: str, who: str, name: str, end: float) -> str:
  while True:
    wait = min(_POLL_SECONDS, max(0.1, end - time.monotonic()))
    try:
      return _store().blocking_key_value_get(key, int(wait * 1000))
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise HostLostError(
          f"the coordinator does not answer ({str(error).splitlines()[0][:120]}):"
          " start again on every host"
        ) from error
    if time.monotonic() >= end:
      raise HostLostError(
        f"{who} has not answered in time ({name}): see its messages, and start again"
        " on every host"
      )


def _store() -> Any:
  client = compat.coordination_client()
  assert client is not None, "several processes, but jax.distributed is not set up"
  return client
