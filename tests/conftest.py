"""Before any test imports JAX."""

import gc
import os
import signal

import hypothesis
import pytest

from commentree import compat
from commentree.launch.settings import library_noise

library_noise.disable_libtpu_without_tpu()

# Programs of tests run for moments: what takes time is XLA's compiling them. With these
# flags a small model's gradients compile in 0.6 s instead of 6, its initialization in 3
# instead of 6. `XLA_FLAGS= make test` tests with the flags that users have.
os.environ.setdefault("XLA_FLAGS", " ".join(compat.quick_compile_flags()))

# A shell that starts `make test &` has its children ignore SIGINT, `nohup` SIGHUP, and
# what is ignored stays so in all that they start: tests that send one would wait in
# vain. A handler, unlike that, is not passed on: a test's child has the default one.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
  signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long an example takes says more of the machine's other work than of ours.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_collection_finish():
  """Spares the collector of garbage what lives as long as the process.

  Tracing makes objects by the million, and most are there when it looks for them.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def strict_shapes():
  """As the trainer has it: arrays of other ranks are not broadcast unasked."""
  import jax

  with jax.numpy_rank_promotion("raise"):
    yield
