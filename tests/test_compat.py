"""The private names of libraries in `compat` are there and do what it says."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest
from jax._src import clusters, distributed, xla_bridge
from jax._src.clusters import cloud_tpu_cluster, k8s_cluster
from jax._src.lib import _jax
from orbax.checkpoint._src.futures import future
from orbax.checkpoint._src.serialization import tensorstore_utils

import commentree
import gin
from commentree import compat

ROOT = pathlib.Path(commentree.__file__).parent
FOLDERS = ("models", "tasks", "training", "launch")

# What these modules have with an underscore is public.
PUBLIC = {"os._exit"}


def product_files() -> list[pathlib.Path]:
  folders = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
  return [*ROOT.glob("*.py"), *folders]


def private_uses(source: str) -> list[str]:
  """Private names that a file takes of libraries."""
  tree = ast.parse(source)
  modules, found = set(), []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      modules |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      if (node.module or "").split(".")[0] == "commentree":
        continue
      # A name in small letters may be a module.
      modules |= {alias.asname or alias.name for alias in node.names}
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    if not names[0].startswith("__future__"):
      found += [name for name in names if "._" in name]
  for node in ast.walk(tree):
    if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
      continue
    name = ast.unparse(node)
    if node.attr.startswith("_") and name.split(".")[0] in modules:
      found.append(name)
  return [name for name in found if name not in PUBLIC]


@pytest.mark.parametrize(
  "source",
  [
    "from jax._src import clusters",
    "import jax._src.clusters",
    "from jax.lib import _jax",
    "import threading\nthreading._register_atexit(print)",
    "from gin import config as c\nc._CONFIG.items()",
    "import jax\njax._src.clusters.ClusterEnv",
  ],
)
def test_a_private_name_is_found_however_it_is_written(source):
  assert private_uses(source)


@pytest.mark.long
def test_private_names_of_libraries_are_used_in_compat_alone():
  found = {
    str(path.relative_to(ROOT)): uses
    for path in product_files()
    if (uses := private_uses(path.read_text()))
  }
  assert list(found) == ["compat.py"], found


def test_importing_compat_imports_no_library():
  program = "import sys; from commentree import compat; print(*sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  assert not {"jax", "gin", "orbax", "tensorflow"} & set(done.stdout.split())


def test_the_client_of_jaxs_coordination_service_is_none_while_hosts_are_not_joined(
  monkeypatch,
):
  assert compat.coordination_client() is None
  monkeypatch.setattr(distributed.global_state, "client", "a client")
  assert compat.coordination_client() == "a client"


def test_jax_tells_its_settings():
  assert compat.jax_setting("jax_platforms") in (None, "", "cpu")
  assert compat.jax_setting("jax_cpu_collectives_implementation") == "gloo"


def test_jax_knows_the_kinds_of_clusters_that_we_name():
  kinds = compat.cluster_kinds()
  assert all(issubclass(kind, clusters.ClusterEnv) for kind in kinds)
  # That of Kubernetes has no name.
  assert {"slurm", "ompi"} <= {kind.name for kind in kinds}
  assert k8s_cluster.K8sCluster in kinds
  tpus = [kind for kind in kinds if compat.is_tpu_cluster(kind)]
  assert cloud_tpu_cluster.GkeTpuCluster in tpus
  assert len(tpus) < len(kinds)
  for kind in kinds:
    assert isinstance(kind.opt_in_only_method, bool)
    assert callable(kind.is_env_present)
    assert callable(kind.get_process_count)
    assert callable(kind.get_coordinator_address)
    assert callable(kind.get_process_id)
    assert callable(kind.get_local_process_id)


def test_jax_tells_whether_this_is_a_tpu_machine():
  assert compat.is_tpu_machine() in (True, False)


def test_gloo_is_bound_when_jax_makes_its_client_of_cpus(monkeypatch):
  made = {}
  monkeypatch.setattr(
    xla_bridge,
    "register_backend_factory",
    lambda name, factory, **settings: made.update({name: factory}),
  )
  monkeypatch.setattr(_jax, "make_gloo_tcp_collectives", lambda **arguments: arguments)
  monkeypatch.setattr(
    xla_bridge, "make_cpu_client", lambda collectives: collectives["hostname"]
  )
  compat.bind_gloo("10.0.0.7")
  assert made["cpu"]() == "10.0.0.7"


def test_the_name_of_orbaxs_file_is_that_of_its_module():
  assert future.__file__.endswith(compat.ORBAX_FUTURES_FILE)


def test_orbax_uses_a_key_value_store_that_it_does_not_know():
  for _ in range(2):
    compat.let_orbax_use("made-up://", lambda path: {"driver": "x", "path": path})
  build = tensorstore_utils.build_kvstore_tspec
  assert build("made-up://a/b")["base"] == {"driver": "x", "path": "made-up://a/b"}
  assert build("gs://bucket/run")["base"]["driver"] == "gcs"
  assert build("/run")["base"]["driver"] == "file"


@pytest.fixture
def no_bindings():
  gin.clear_config()
  yield
  gin.clear_config()


def test_gins_bindings_are_what_was_bound(no_bindings):
  gin.parse_config("a/macro.value = 1")
  assert compat.gin_bindings() == {("a", "gin.macro"): {"value": 1}}


def test_a_gin_constant_is_known_by_its_name(no_bindings):
  gin.constant("compat_test.ANSWER", 42)
  assert compat.is_gin_constant("compat_test.ANSWER")
  assert not compat.is_gin_constant("compat_test.QUESTION")


def test_gin_does_not_seek_files_in_packages(no_bindings, tmp_path, monkeypatch):
  package = tmp_path / "compat_test_package"
  package.mkdir()
  (package / "__init__.py").touch()
  (package / "a.gin").write_text("b/macro.value = 1\n")
  monkeypatch.syspath_prepend(tmp_path)
  compat.seek_gin_files_in_folders_alone()
  with pytest.raises(OSError, match="compat_test_package"):
    gin.parse_config_file("compat_test_package/a.gin")
  gin.parse_config_file(str(package / "a.gin"))
  assert compat.gin_bindings()


def test_a_function_is_called_before_threads_are_waited_for():
  program = """
import threading
from commentree import compat
ended = threading.Event()
compat.call_before_waiting_for_threads(ended.set)
threading.Thread(target=lambda: print(ended.wait(20))).start()
"""
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  assert done.stdout == "True\n"


@pytest.mark.long
def test_xla_knows_the_flags_that_tests_compile_quickly_with():
  environment = dict(os.environ, XLA_FLAGS=" ".join(compat.quick_compile_flags()))
  program = "import jax; print(jax.numpy.ones(3).sum())"
  done = subprocess.run(
    [sys.executable, "-c", program],
    capture_output=True,
    text=True,
    env=environment,
    check=False,
  )
  assert done.stdout == "3.0\n", done.stderr
