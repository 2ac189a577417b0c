import pytest

from commentree.tests.support.tasks.vocabulary_fixture import MAKERS


@pytest.fixture(scope="module")
def theirs(folder):
  """Vocabularies of every kind that others make, in a file's `folder`."""
  return {kind: make(folder) for kind, make in MAKERS.items()}
