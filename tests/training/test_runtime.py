from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import pytest

from commentree import compat
from commentree.training import runtime


def test_arrays_of_different_ranks_do_not_meet_by_guess(tmp_path):
  runtime.set_flags(str(tmp_path))
  with pytest.raises(ValueError, match="rank_promotion"):
    jnp.ones((2, 3)) + jnp.ones(3)


def test_random_numbers_are_drawn_by_each_device_for_itself(tmp_path):
  jax.config.update("jax_threefry_partitionable", False)
  runtime.set_flags(str(tmp_path))
  assert compat.jax_setting("jax_threefry_partitionable")


def test_compiled_programs_go_where_set_or_to_the_users_cache(tmp_path, monkeypatch):
  runtime.set_flags(str(tmp_path / "here"))
  assert compat.jax_setting("jax_compilation_cache_dir") == str(tmp_path / "here")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert runtime.cache_folder(None) == tmp_path / "commentree" / "compiled"
  monkeypatch.delenv("XDG_CACHE_HOME")
  home = pathlib.Path.home()
  assert runtime.cache_folder(None) == home / ".cache" / "commentree" / "compiled"
