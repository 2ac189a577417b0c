"""One of several hosts that save and restore checkpoints together, for tests.

  python run_hosts.py '{"coordinator": …, "hosts": 2, "host": 0, "model_dir": …, …}'

It starts from the newest checkpoint, or from step 0, and takes the `saves`, a step
each; then it prints what it came to as JSON. Keys beside those: `fail` (the host whose
part of a save cannot be written, and how often), `hide` (the host that looks for
MODEL_DIR elsewhere), `hang` (the host whose writes never end), `damage` (the host that
cannot read the newest checkpoint).
"""

from __future__ import annotations

import errno
import json
import sys
import time

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from commentree.errors import UserError
from commentree.training.checkpointing import checkpoints, saving, storage
from commentree.training.config import CheckpointConfig
from commentree.training.state import TrainState


def state_of(step: int, mesh: Mesh, rows: int = 8) -> TrainState:
  """A state whose every number tells the step, one parameter spread over devices."""
  values = np.arange(rows, dtype=np.float32) + 100 * step
  spread = NamedSharding(mesh, PartitionSpec("data"))
  whole = NamedSharding(mesh, PartitionSpec())

  def array(values, sharding):
    return jax.make_array_from_callback(values.shape, sharding, lambda i: values[i])

  return TrainState(
    step=array(np.int32(step), whole),
    params={"spread": array(values, spread), "whole": array(values[:2], whole)},
    optimizer=(),
  )


def fail_parts(times: int) -> None:
  """Fills the disk for the next saves of this host."""
  write = saving.Writing._write_part
  left = [times]

  def full(self, tree):
    if left[0]:
      left[0] -= 1
      raise OSError(errno.ENOSPC, "No space left on device")
    write(self, tree)

  saving.Writing._write_part = full


def hang_parts() -> None:
  """Lets this host write for ever."""

  def hang(self, tree):
    self._copied.set()
    time.sleep(600)

  saving.Writing._write_part = hang


def damage_reading(handler, path) -> None:
  """Lets this host alone not find a file of a checkpoint."""
  restore = handler.restore

  def unreadable(folder, *args, **kwargs):
    if folder.parent == path:
      raise FileNotFoundError("d/1234")
    return restore(folder, *args, **kwargs)

  handler.restore = unreadable


def run(options, lines) -> dict:
  host = jax.process_index()
  model_dir = storage.as_path(options["model_dir"])
  if options.get("hide") == host:
    model_dir = model_dir.with_name("elsewhere")
  storage.check_shared(model_dir)
  saved = checkpoints.Checkpoints(
    model_dir, CheckpointConfig(keep=9, **options.get("checkpoint", {})), lines.append
  )
  mesh = Mesh(np.array(jax.devices()), ("data",))
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state_of(0, mesh),
  )
  if options.get("damage") == host:
    newest = checkpoints.steps_in(model_dir)[-1]
    damage_reading(saved._handler, checkpoints.path_of(model_dir, newest))
  restored = saved.restore(like)
  fail_host, times = options.get("fail", [None, 0])
  if fail_host == host:
    fail_parts(times)
  if options.get("hang") == host:
    hang_parts()
  for step in options["saves"]:
    saved.save(state_of(step, mesh), step, {f"stream {host}": step}, None)
  path = saved.wait()
  saved.close()
  outcome = {"newest": path and path.name}
  if restored is not None:
    expected = state_of(int(restored.state.step), mesh)
    jax.tree.map(
      lambda a, b: [
        np.testing.assert_array_equal(x.data, y.data)
        for x, y in zip(a.addressable_shards, b.addressable_shards)
      ],
      restored.state,
      expected,
    )
    outcome |= {"from": restored.path.name, "data": restored.data_state}
  return outcome


def main() -> None:
  options = json.loads(sys.argv[1])
  if options["hosts"] > 1:
    jax.distributed.initialize(
      options["coordinator"],
      options["hosts"],
      options["host"],
      initialization_timeout=60,
    )
  storage._PAUSES_SECONDS = (0.1,)
  storage._SHARED_SECONDS = 2.0
  saving._GRACE_SECONDS = storage._GRACE_SECONDS = 0.5
  lines: list[str] = []
  code = 0
  try:
    outcome = run(options, lines)
  except UserError as error:
    outcome, code = {"error": str(error)}, error.exit_code
  print(json.dumps({**outcome, "lines": lines}), flush=True)
  if code and options["host"] == 0:
    # Whoever outlives the host of JAX's coordination service is aborted by it.
    time.sleep(2.0)
  sys.exit(code)


if __name__ == "__main__":
  main()
