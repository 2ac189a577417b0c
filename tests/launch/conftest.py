import jax
import pytest

from commentree.tests.support.launch.cloud import Cloud


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  made = Cloud(tmp_path / 'it\'s a "cloud" $HOME', monkeypatch)
  yield made
  made.end()


@pytest.fixture
def model_dir(tmp_path):
  return tmp_path / 'all hosts\' "models" `id` $PATH'


@pytest.fixture(scope="module")
def quick_to_compile():
  """Compiles what a file's models do without most of XLA's passes."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
