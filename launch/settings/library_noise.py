"""Libraries loaded without their opening remarks, or not at all."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from commentree.launch.settings.configurables import RunConfig

# Where Linux shows TPUs (up to v4, and later ones), NVIDIA's and AMD's GPUs.
_ACCELERATORS = (
  "/dev/accel*",
  "/dev/vfio/[0-9]*",
  "/dev/nvidia[0-9]*",
  "/dev/kfd",
  "/dev/dxg",
)


def disable_libtpu_without_tpu() -> None:
  """Has JAX leave libtpu alone where there is no TPU; to be called before JAX loads.

  JAX would load it, to find no TPU: it complains on stderr, and takes a lock that
  other processes on the machine then miss. Where there is an accelerator of any kind,
  or JAX_PLATFORMS is set, nothing is changed.
  """
  if "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None:
    return
  if not any(glob.glob(pattern) for pattern in _ACCELERATORS):
    os.environ["JAX_PLATFORMS"] = "cpu"


@contextlib.contextmanager
def _stderr_silenced() -> Iterator[None]:
  """Sends the process's stderr, C++ included, nowhere."""
  sys.stderr.flush()
  kept = os.dup(2)
  with open(os.devnull, "wb") as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  finally:
    sys.stderr.flush()
    os.dup2(kept, 2)
    os.close(kept)


def load_tensorflow() -> None:
  """Imports TensorFlow, which reads files here and computes nothing.

  Its libraries write of CPU features and missing GPUs before any setting of theirs
  applies. Accelerators are left to JAX: TensorFlow would take their memory.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  with _stderr_silenced():
    import tensorflow as tf

    show_errors_alone()
    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")


def load_tensorflow_for(run: RunConfig) -> None:
  """Imports TensorFlow where a run takes it: it takes seconds.

  SeqIO does, and so do paths in a bucket. See `load_tensorflow`.
  """
  from commentree.tasks import named_tasks

  if named_tasks.needs_seqio(run.data) or "://" in repr(run):
    load_tensorflow()
  show_errors_alone()


def show_errors_alone() -> None:
  """Hides what libraries log through absl below errors: our reports go elsewhere."""
  from absl import logging

  logging.set_verbosity(logging.ERROR)
