import pytest

import commentree


@pytest.fixture(scope="module")
def model(model_dir):
  """The run of a file's `model_dir`, as Python loads it."""
  return commentree.load(model_dir)
