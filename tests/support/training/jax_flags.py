"""What `train` sets for its process, put back for the tests that share it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

_FLAGS = (
  "jax_threefry_partitionable",
  "jax_numpy_rank_promotion",
  "jax_compilation_cache_dir",
  "jax_persistent_cache_min_compile_time_secs",
)


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Leaves JAX's flags as they were."""
  before = {flag: getattr(jax.config, flag) for flag in _FLAGS}
  try:
    yield
  finally:
    for flag, value in before.items():
      jax.config.update(flag, value)
