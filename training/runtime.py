"""JAX's global switches, thrown once at the start of a run, and nowhere else."""

from __future__ import annotations

import os
import pathlib

import jax

_MIN_CACHED_COMPILE_SECONDS = 0.1


def set_flags(compile_cache_dir: str | None) -> None:
  """Sets what a run relies on.

  - Random numbers that do not depend on how arrays are sharded, each device drawing
    its own: meshes of any shape draw the same dropout and the same parameters.
  - An error, not a guess, where arrays of different ranks meet.
  - Compiled programs kept on disk, so that a restart does not compile again.

  Args:
    compile_cache_dir: where compiled programs lie; the user's cache folder if None.
  """
  jax.config.update("jax_threefry_partitionable", True)
  jax.config.update("jax_numpy_rank_promotion", "raise")
  jax.config.update("jax_compilation_cache_dir", str(cache_folder(compile_cache_dir)))
  jax.config.update(
    "jax_persistent_cache_min_compile_time_secs", _MIN_CACHED_COMPILE_SECONDS
  )


def cache_folder(compile_cache_dir: str | None) -> pathlib.Path:
  """Returns the folder of compiled programs."""
  if compile_cache_dir is not None:
    return pathlib.Path(compile_cache_dir).expanduser().absolute()
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(home).expanduser() / "commentree" / "compiled"


def is_chief() -> bool:
  """Whether this process is the one that writes reports."""
  return jax.process_index() == 0
