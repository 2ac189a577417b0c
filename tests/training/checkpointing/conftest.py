import pytest


@pytest.fixture
def lines():
  """Where a test's console writes."""
  return []
