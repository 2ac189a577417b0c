"""What a run notes beside its checkpoints may hold anything: it is read or refused."""

import itertools
import json

import pytest

from commentree.errors import UserError
from commentree.tests.fuzz import engine
from commentree.training import initial_state
from commentree.training.checkpointing import checkpoint_choice, run_record
from commentree.training.warm_starts import rules

SHAPES = (
  "[]",
  "null",
  "3",
  '"a"',
  '{"facts": []}',
  '{"starts": {}}',
  '{"starts": [1]}',
)
FACTS = {"vocabulary": "one", "ModelConfig.emb_dim": 16}


@pytest.fixture
def model_dir(tmp_path):
  """A run with a checkpoint and two starts."""
  (tmp_path / "checkpoint_1").mkdir()
  record = run_record.RunRecord(FACTS, "A = 1\n")
  run_record.write(tmp_path, record, FACTS, 0, warm_start={"fresh": ["head.kernel"]})
  run_record.write(tmp_path, record, FACTS, 1)
  return tmp_path


def read_all(model_dir):
  """Reads a run's record as training and inference do."""
  say = lambda line: None  # noqa: E731
  run_record.check(model_dir, FACTS, say)
  run_record.check_vocabulary(model_dir / "checkpoint_1", FACTS, say)
  noted = run_record.warm_start_of(model_dir, say)
  initial_state._check_note(model_dir / "run.json", lambda: noted or {})


def refused(action):
  """Returns the user error that an action ends with; None if it succeeds."""
  try:
    action()
  except UserError as error:
    return str(error)
  return None


@pytest.mark.parametrize("text", [*SHAPES, "{", "", "\0", "[" * 100_000, '"\ud800"'])
def test_a_misshapen_record_is_one_line_that_names_it(model_dir, text):
  (model_dir / "run.json").write_text(text, errors="surrogatepass")
  said = refused(lambda: read_all(model_dir))
  assert said is not None
  assert said.startswith(f"{model_dir / 'run.json'} is damaged (")
  assert "\n" not in said


def test_damaged_records_are_read_or_refused_in_one_line(model_dir):
  file = model_dir / "run.json"
  said = []
  for content in itertools.islice(engine.mutations([file.read_bytes()], 1), 500):
    file.write_bytes(content)
    said.append(refused(lambda: read_all(model_dir)))
  assert not any("\n" in line for line in said if line)
  assert 10 < said.count(None) < 490


@pytest.mark.parametrize(
  "noted",
  [
    [],
    {"fresh": 3},
    {"fresh": [None]},
    {"zero": ["layers_{0-999999999}.kernel"]},
    {"fresh": ["layers_{a-b}"]},
  ],
)
def test_a_note_of_a_warm_start_that_is_none_is_refused(tmp_path, noted):
  with pytest.raises(ValueError):  # noqa: PT011
    rules.fresh_of(noted)
  with pytest.raises(UserError, match=r"warm_start\.json is damaged"):
    initial_state._check_note(tmp_path / "warm_start.json", lambda: noted)


@pytest.mark.parametrize("text", ["[]", "{", '{"true/loss": "low"}', "[" * 100_000])
def test_metrics_that_are_none_count_as_no_evaluation(tmp_path, text):
  folder = tmp_path / "checkpoint_1" / "metrics"
  folder.mkdir(parents=True)
  (folder / "metrics").write_text(text)
  assert checkpoint_choice.metrics_of(tmp_path, 1) is None
  (folder / "metrics").write_text(json.dumps({"true/loss": 1, "none/loss": 2.5}))
  assert checkpoint_choice.metrics_of(tmp_path, 1) == {
    "true/loss": 1.0,
    "none/loss": 2.5,
  }
