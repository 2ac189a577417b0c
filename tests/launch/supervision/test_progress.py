import pytest

from commentree.launch.supervision import progress


@pytest.mark.parametrize(
  ("command", "model_dir"),
  [
    (["train", "--gin.MODEL_DIR='a b'"], "a b"),
    (["train", '--gin.MODEL_DIR="gs://b/it\'s"', "--gin.X=1"], "gs://b/it's"),
    (["train", "--gin.MODEL_DIR='a'", "--gin.MODEL_DIR='b'"], "b"),
    (["train", "--gin.MODEL_DIR=%OTHER"], None),
    (["train", "--gin.MODEL_DIR=3"], None),
    (["train"], None),
  ],
)
def test_model_dir_is_what_the_command_line_says(command, model_dir):
  assert progress.model_dir_of(command) == model_dir


def test_the_newest_step_is_the_largest_of_whole_checkpoints(tmp_path):
  assert progress.newest_step(str(tmp_path)) is None
  for name in ("checkpoint_9", "checkpoint_10", "checkpoint_11.tmp", "checkpoint_x"):
    (tmp_path / name).mkdir()
  assert progress.newest_step(str(tmp_path)) == 10


def test_a_folder_that_is_not_there_has_no_step(tmp_path):
  assert progress.newest_step(str(tmp_path / "none")) is None


def test_a_bucket_is_listed_by_another_process(tmp_path, monkeypatch):
  # In that process `etils.epath` is one to whom buckets are folders of tmp_path.
  (tmp_path / "bucket" / "m" / "checkpoint_12").mkdir(parents=True)
  (tmp_path / "etils").mkdir()
  (tmp_path / "etils" / "__init__.py").touch()
  (tmp_path / "etils" / "epath.py").write_text(
    "import pathlib\n"
    "def Path(uri):\n"
    f"  return pathlib.Path(uri.replace('gs://', {str(tmp_path)!r} + '/'))\n"
  )
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  assert progress.newest_step("gs://bucket/m") == 12
  assert progress.newest_step("gs://bucket/none") is None


def test_a_remote_folder_that_cannot_be_read_has_no_step():
  assert progress.newest_step("nosuchscheme://bucket/model") is None


@pytest.mark.parametrize(
  ("command", "output"),
  [
    (["infer", "--output=a b"], "a b"),
    (["infer", "--output", "gs://b/x", "--mode=fill"], "gs://b/x"),
    (["infer", "--output=a", "--output=b"], "b"),
    (["infer", "--output"], None),
    (["infer"], None),
  ],
)
def test_the_output_is_what_the_command_line_says(command, output):
  assert progress.output_of(command) == output


def test_inference_moves_on_by_the_parts_that_are_done(tmp_path):
  command = ["commentree", "infer", f"--output={tmp_path / 'out.jsonl'}"]
  done = progress.reader(command)
  assert (progress.noun(command), done()) == ("part", None)
  (tmp_path / "out.jsonl.parts").mkdir()
  for name in ("00000-0000000-9.jsonl", "00000-0000001-end.jsonl", "settings.json"):
    (tmp_path / "out.jsonl.parts" / name).touch()
  (tmp_path / "out.jsonl.parts" / "00000-0000002-end.jsonl.draft").touch()
  assert done() == 2
