"""TensorFlow, loaded without its opening remarks."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


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
  applies. Accelerators are left to JAX: TensorFlow would take their memory. Of what
  libraries log through absl, errors alone are shown: our own reports go elsewhere.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  with _stderr_silenced():
    import tensorflow as tf
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
