"""The private names of libraries that commentree uses, all of them.

Each function names the versions it was seen to work with; `tests/test_compat.py` fails
when a name goes, and when another file of ours uses a private name. Libraries are
imported within the functions: this module is imported where they are not wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# What the path of the file ends in from which Orbax logs writes that failed.
# Seen in orbax-checkpoint 0.12.8.
ORBAX_FUTURES_FILE = "orbax/checkpoint/_src/futures/future.py"


def coordination_client() -> Any:
  """Returns the client of JAX's coordination service, None before hosts have joined.

  Seen in jax 0.10.2 and 0.12.0.
  """
  from jax._src import distributed

  return distributed.global_state.client


def jax_setting(name: str) -> Any:
  """Returns the value of a setting such as `jax_platforms`.

  JAX has its users read the attribute, which its types do not know of.

  Seen in jax 0.10.2 and 0.12.0.
  """
  import jax

  return getattr(jax.config, name)


def cluster_kinds() -> list[type[Any]]:
  """Returns what JAX knows to start processes of a run, as its `ClusterEnv` classes.

  Seen in jax 0.10.2 and 0.12.0.
  """
  from jax._src import clusters

  return list(clusters.ClusterEnv._cluster_types)


def is_tpu_cluster(kind: type[Any]) -> bool:
  """Returns whether one of `cluster_kinds` is TPU metadata.

  Seen in jax 0.10.2 and 0.12.0.
  """
  from jax._src.clusters import cloud_tpu_cluster

  return issubclass(kind, cloud_tpu_cluster.BaseTpuCluster)


def is_tpu_machine() -> bool:
  """Returns whether JAX found at import that this is a TPU VM.

  Seen in jax 0.10.2 and 0.12.0.
  """
  from jax._src import cloud_tpu_init

  return cloud_tpu_init.running_in_cloud_tpu_vm


def bind_gloo(address: str) -> None:
  """Has Gloo, through which CPUs of several hosts compute, listen on an address.

  To be called after the hosts have joined and before JAX counts devices.

  Seen in jax 0.10.2 and 0.12.0.
  """
  from jax._src import xla_bridge
  from jax._src.lib import _jax

  def make_client():
    collectives = _jax.make_gloo_tcp_collectives(
      distributed_client=coordination_client(), hostname=address
    )
    return xla_bridge.make_cpu_client(collectives=collectives)

  xla_bridge.register_backend_factory(
    "cpu", make_client, priority=0, fail_quietly=False
  )


def let_orbax_use(prefix: str, kvstore: Callable[[str], dict[str, Any]]) -> None:
  """Lets Orbax write and read arrays where by itself it does not.

  Seen in orbax-checkpoint 0.12.8.

  Args:
    prefix: what such paths start with, such as `s3://`; further calls with it do
      nothing.
    kvstore: gives TensorStore's specification of a path's key-value store.
  """
  from orbax.checkpoint._src.path import gcs_utils
  from orbax.checkpoint._src.serialization import tensorstore_utils

  if prefix in _orbax_prefixes:
    return
  _orbax_prefixes.add(prefix)
  normalize = tensorstore_utils._normalize_path
  is_remote = tensorstore_utils._use_gcs_driver
  gcs_spec = gcs_utils.get_kvstore_for_gcs

  def normalize_path(path: str) -> str:
    # It takes one of two slashes away.
    return normalize(path).replace(prefix.replace("//", "/"), prefix)

  def use_driver(directory: str) -> bool:
    return directory.startswith(prefix) or is_remote(directory)

  def spec(path: str) -> dict[str, Any]:
    return kvstore(path) if path.startswith(prefix) else gcs_spec(path)

  tensorstore_utils._normalize_path = normalize_path
  tensorstore_utils._use_gcs_driver = use_driver
  gcs_utils.get_kvstore_for_gcs = spec


_orbax_prefixes: set[str] = set()


def gin_bindings() -> dict[tuple[str, str], dict[str, Any]]:
  """Returns what gin files and flags have set: parameters by scope and selector.

  Seen in gin-config 0.5.0.
  """
  from gin import config

  return config._CONFIG


def is_gin_constant(name: str) -> bool:
  """Returns whether gin knows a constant of this name.

  Seen in gin-config 0.5.0.
  """
  from gin import config

  return bool(config._CONSTANTS.matching_selectors(name))


def seek_gin_files_in_folders_alone() -> None:
  """Keeps gin from seeking files in importable packages, too.

  Seen in gin-config 0.5.0.
  """
  from gin import config

  del config._FILE_READERS[1:]


def call_before_waiting_for_threads(function: Callable[[], None]) -> None:
  """Has Python call a function once the main thread is done, before others are awaited.

  `atexit` calls after that wait. `concurrent.futures` uses the same name.

  Seen in Python 3.11 and 3.12.
  """
  import threading

  threading._register_atexit(function)  # type: ignore[attr-defined]


def quick_compile_flags() -> list[str]:
  """Returns the XLA flags with which programs that run for moments compile quickest.

  For tests. XLA ends a process that names a flag which it does not know, and jaxlib
  0.12.0 no longer knows the one by which 0.10.2 leaves fusion emitters out.
  """
  from importlib import metadata

  flags = [
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
  ]
  major, minor = metadata.version("jaxlib").split(".")[:2]
  if (int(major), int(minor)) < (0, 11):
    flags.append("--xla_cpu_use_fusion_emitters=false")
  return flags
