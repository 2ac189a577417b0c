"""Reading checkpoints so that all hosts take the same one, and knowing damage.

A file that is missing or holds nonsense is damage, and stays so; one that the storage
refuses to hand out now may be read in a minute; and one of another model is neither.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from commentree.differences import listed
from commentree.errors import HostLostError, StorageError, UserError
from commentree.training import partitioning
from commentree.training.checkpointing import checksums, orbax_noise, storage
from commentree.training.cluster import hosts
from commentree.training.state import PyTree

T = TypeVar("T")
Say = Callable[[str], None]

_SHOWN_DIFFERENCES = 4
_ATTEMPTS = 3


def why_unreadable(
  path: epath.Path, read: Callable[[], T], attempts: int, say: Say
) -> tuple[T | None, str | None]:
  """Returns what `read` returns, or what damage it met.

  Args:
    path: what it reads, to be named.
    read: reads on this host alone.
    attempts: most tries, if the storage refuses.
    say: tells the user a line.

  Raises:
    StorageError: if the storage refuses as often.
    UserError: if `read` raises it.
  """

  def may_pass(error: BaseException) -> bool:
    return storage.refused(error) and not storage.damaged(error)

  what = f"{path} cannot be read"
  for look in (1, 2):
    try:
      return storage.retried(what, read, attempts, say, may_pass), None
    except Exception as error:
      if isinstance(error, UserError) or not storage.damaged(error):
        raise
      if look == 2:
        return None, storage.reason(error)
    # Network file systems may show a new folder without its files for a moment.
    time.sleep(storage.pause(1))
  raise AssertionError("unreachable")


def read_together(
  path: epath.Path, read: Callable[[], T], attempts: int, say: Say
) -> tuple[T | None, str | None]:
  """Returns on every host what `read` returned there, or on every host what damage.

  Args:
    path: what it reads, to be named.
    read: reads this host's part; called on all hosts.
    attempts: most tries, if the storage refuses.
    say: tells the user a line.

  Raises:
    StorageError: on every host, if the storage refuses one as often.
    HostLostError: on the others, if a host met a defect of ours.
  """
  refusals, damages = 0, 0
  while True:
    result, kind, reason, defect = None, "read", "", None
    try:
      result = read()
    except Exception as error:
      reason = storage.reason_here(error)
      if storage.damaged(error):
        kind = "damaged"
      elif storage.refused(error):
        kind = "refused"
      else:
        kind, defect = "failed", error
    mine = json.dumps([kind, reason])
    said = [json.loads(text) for text in hosts.allgather(f"{path.name} read", mine)]
    if defect is not None:
      raise defect
    reasons = {kind: reason for kind, reason in said if kind != "read"}
    if not reasons:
      return result, None
    del result
    if "failed" in reasons:
      raise HostLostError(f"{reasons['failed']}: see its messages")
    damages += "damaged" in reasons
    if damages == 2:
      return None, reasons["damaged"]
    refusals += "refused" in reasons
    if refusals == attempts:
      raise StorageError(
        f"{path} cannot be read ({reasons['refused']}; tried {attempts} times): mend"
        " the storage and start again"
      )
    wait = storage.pause(max(1, refusals))
    if "refused" in reasons:
      say(f"{path} cannot be read ({reasons['refused']}): trying again in {wait:g} s")
    time.sleep(wait)


def check_tree(
  path: epath.Path, saved: PyTree, like: PyTree, *, exact: bool = True
) -> None:
  """Makes sure that a checkpoint holds what is to be read from it.

  Args:
    path: the checkpoint, to be named.
    saved: what Orbax says of it.
    like: arrays or their shapes, as nested dictionaries.
    exact: whether types must be the same, and nothing more be there.

  Raises:
    UserError: naming arrays that are missing, or of another shape or type.
  """
  there = partitioning.flatten_names(saved)
  here = partitioning.flatten_names(like)
  differing = []
  for name, leaf in here.items():
    if name not in there:
      differing.append(f"{name} is not there")
    elif tuple(there[name].shape) != tuple(leaf.shape):
      differing.append(
        f"{name} has shape {tuple(there[name].shape)} there, {tuple(leaf.shape)} here"
      )
    elif exact and np.dtype(there[name].dtype) != np.dtype(leaf.dtype):
      differing.append(f"{name} is {there[name].dtype} there, {leaf.dtype} here")
  if exact:
    differing += [f"{name} is only there" for name in there if name not in here]
  if not differing:
    return
  mend = (
    ", vocabulary and optimizer, or another MODEL_DIR" if exact else " and vocabulary"
  )
  raise UserError(
    f"{path} is of another model: {listed(differing, _SHOWN_DIFFERENCES)}: use the"
    f" same sizes{mend}"
  )


def read_params(path: epath.Path, like: PyTree) -> PyTree:
  """Reads the parameters of a checkpoint, on all hosts; see `restore_params`."""
  lines: list[str] = []
  orbax_noise.silence()
  handler = ocp.PyTreeCheckpointHandler()
  with contextlib.closing(handler):

    def inspect() -> None:
      if not (path / "state").is_dir():
        raise UserError(f"{path} is no checkpoint: name a checkpoint_<step> folder")
      checksums.check_files(path)
      saved = handler.metadata(path / "state").tree
      if not isinstance(saved, Mapping) or "target" not in saved:
        raise UserError(f"{path} holds no parameters under 'target'")
      check_tree(path, saved["target"], like, exact=False)

    tree = {"target": like}
    args = ocp.args.PyTreeRestore(
      item=tree,
      restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
      partial_restore=True,
    )

    def read() -> Any:
      checksums.check_share(path)
      return handler.restore(path / "state", args=args)["target"]

    _, reason = hosts.run_on_host0(
      "look at parameters",
      lambda: why_unreadable(path, inspect, _ATTEMPTS, lines.append),
    )
    if reason is None:
      params, reason = read_together(path, read, _ATTEMPTS, lines.append)
  if reason is not None:
    raise UserError(f"{path} cannot be read ({reason}): name another checkpoint")
  return params
