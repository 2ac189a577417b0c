"""A short fuzz of every surface; `make fuzz` is the long one."""

import itertools

import pytest

from commentree.tests.fuzz import engine
from commentree.tests.fuzz.surfaces import SURFACES

_INPUTS = 150
_LONG_INPUTS = 20


@pytest.mark.parametrize("name", SURFACES)
def test_mutations_of_what_is_read_are_read_or_refused_in_a_line(name):
  trial = engine.Trial(SURFACES[name])
  inputs = _LONG_INPUTS if name.endswith("_long") else _INPUTS
  for data in itertools.islice(engine.mutations(trial.seeds, 1), inputs):
    trial(data)
  trial.close()
  assert not {where: data[:300] for where, (_, data) in trial.outcome.failures.items()}


@pytest.mark.parametrize("name", SURFACES)
def test_what_mutations_start_from_is_read(name):
  """Otherwise they would all be refused at the first check."""
  trial = engine.Trial(SURFACES[name])
  for data in trial.seeds:
    trial(data)
  trial.close()
  assert trial.seeds
  assert not trial.outcome.refused
  assert not trial.outcome.failures


def test_the_same_seed_gives_the_same_mutations():
  def first(seed):
    return list(itertools.islice(engine.mutations([b"abc", b"{}"], seed), 100))

  assert first(1) == first(1) != first(2)
