import pytest

from .cloud import Cloud


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  made = Cloud(tmp_path / 'it\'s a "cloud" $HOME', monkeypatch)
  yield made
  made.end()


@pytest.fixture
def model_dir(tmp_path):
  return tmp_path / 'all hosts\' "models" `id` $PATH'
