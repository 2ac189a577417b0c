"""Saves to a storage that hangs, and ends as a command does, for a test."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
import time

import jax.numpy as jnp

from commentree.errors import UserError
from commentree.training.checkpointing import checkpoints, saving, storage
from commentree.training.config import CheckpointConfig
from commentree.training.state import TrainState


def hang_in_future(self, tree) -> None:
  """As Orbax does: its thread hangs, and who waits for it learns that time is up."""
  self._copied.set()
  threading.Thread(target=time.sleep, args=(600,)).start()
  time.sleep(self._left())
  raise TimeoutError("not written in time")


def hang(self) -> None:
  # Python waits for such threads at its end, too.
  concurrent.futures.ThreadPoolExecutor().submit(time.sleep, 600).result()


def main() -> int:
  saving._GRACE_SECONDS = storage._GRACE_SECONDS = 0.2
  saved = checkpoints.Checkpoints(
    storage.as_path(sys.argv[1]), CheckpointConfig(save_timeout_seconds=1.0), print
  )
  state = TrainState(jnp.int32(1), {"x": jnp.ones(3)}, ())
  try:
    saved.save(state, 1, {}, None)
    saved.wait()
    part = sys.argv[2]
    setattr(saving.Writing, part, hang if part == "_commit" else hang_in_future)
    saved.save(state, 2, {}, None)
    saved.wait()
  except UserError as error:
    print(error)
    return error.exit_code
  finally:
    saved.close()
  return 0


if __name__ == "__main__":
  sys.exit(main())
