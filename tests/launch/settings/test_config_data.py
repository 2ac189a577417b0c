"""Settings in a MODEL_DIR are data: what is anything else is refused, and never run."""

import itertools
import pathlib
import sys
import time

import pytest

from commentree.errors import UserError
from commentree.launch import main
from commentree.launch.settings import config_data, gin_cli, run_folder
from commentree.tasks.vocabulary import vocabulary_files
from commentree.tests.fuzz import engine

WHERE = "m/config.gin"
REQUIRED = [
  "MODEL_DIR = 'm'",
  "MIXTURE_OR_TASK_NAME = 'commentree_generated'",
  "TRAIN_STEPS = 10",
]


def text_of_a_run():
  """What `train` writes as config.gin."""
  return gin_cli.text_in_force(gin_cli.load(["runs/pretrain.gin"], REQUIRED))


@pytest.fixture
def folder(tmp_path):
  """A MODEL_DIR with settings and something in the place of a vocabulary."""
  place = tmp_path / vocabulary_files.FOLDER
  place.mkdir()
  (place / vocabulary_files.SENTENCEPIECE_FILE).write_bytes(b"")
  (tmp_path / "config.gin").write_text(text_of_a_run())
  return tmp_path


def add(folder: pathlib.Path, *lines: str) -> int:
  """Adds lines to a folder's settings; returns the number of the last."""
  file = folder / "config.gin"
  file.write_text("\n".join([file.read_text(), *lines, ""]))
  return file.read_text().count("\n")


def refusal(text):
  with pytest.raises(UserError) as error:
    config_data.check(text, WHERE)
  said = str(error.value)
  assert "\n" not in said
  assert len(said) < 400
  return said


def test_settings_that_train_writes_pass():
  config_data.check(text_of_a_run(), WHERE)


@pytest.mark.parametrize(
  ("text", "line", "named"),
  [
    ("A = 1\nimport os\n", 2, "`import os`"),
    ("import os as ModelConfig", 1, "`import os as ModelConfig`"),
    ("from os import path\n", 1, "`from os import path`"),
    (
      "from __gin__ import dynamic_registration\n",
      1,
      "`from __gin__ import dynamic_registration`",
    ),
    ("include 'other.gin'", 1, "`include 'other.gin'`"),
    ("A = @os.system()", 1, "`@os.system`"),
    ("A = @print", 1, "`@print`"),
    ("A = @a/b/os.system()", 1, "`@a/b/os.system`"),
    ("A = \\\n  @os.system()", 2, "`@os.system`"),
    ("A = [1, (2, {'a': [\n@f()]})]", 2, "`@f`"),
    ("A = {@f(): 1}", 1, "`@f`"),
    ("ModelConfig.emb_dim = @gin.singleton()", 1, "`@gin.singleton`"),
    ("ModelConfig:\n  emb_dim = 3\n  num_heads = @f()\n", 3, "`@f`"),
    ("os.system:\n  command = 'ls'\n", 1, "`os.system:`"),
    ("os.system.command = 'ls'", 1, "os.system.command"),
    ("a/gin.singleton.constructor = @ModelConfig", 1, "gin.singleton.constructor"),
    ("x/macro.value = 3", 1, "x/macro.value"),
    ("A = %gin.macro", 1, "`%gin.macro`"),
    ("A = %NOT_SET", 1, "`%NOT_SET`"),
    ("A = b'bytes'", 1, "bytes"),
    ("A = 0x" + "f" * 100, 1, "63 bits"),
    ("A = 'a\\0b'", 1, "text"),
    ("A = '\\ud800'", 1, "text"),
    ("A = [%B]\nB = {'a': %A}", 2, "itself"),
    ("ModelConfig.emb_dim = @commentree.ModelConfig()", 1, "itself"),
  ],
)
def test_what_is_no_data_is_refused_by_line_and_name(text, line, named):
  said = refusal(text)
  assert said.startswith(f"{WHERE}, line {line}: ")
  assert named in said
  assert config_data.FLAG in said


@pytest.mark.parametrize(
  "text",
  [
    "A = " + "[" * 100_000,
    "A = " + "(" * 100 + "1" + ",)" * 100,
    "A = " + "'a' " * 100_000,
    "A = " + "1" * 10_000,
    "A = '" + "\\\n" * 100_000,
    "A = '''" + "\n" * 100_000,
    "A = " + "-" * 100_000,
    "A:" * 50_000,
    "\0",
    "\ufeffA = 1",
    "A = 1 B = 2",
    "A = (",
    "\tA = 1\n B = 2",
    "A = {[]: 1}",
    "import",
    "# " + "x" * 2**20,
    "\n".join(f"A{i} = [{', '.join([f'%A{i + 1}'] * 10)}]" for i in range(9))
    + "\nA9 = 1",
    "\n".join(f"A{i} = %A{i + 1}" for i in range(1000)) + "\nA1000 = 1",
  ],
)
def test_what_would_take_long_or_much_is_one_line_at_once(text):
  started = time.process_time()  # other work on this machine does not count
  refusal(text)
  assert time.process_time() - started < 5


@pytest.mark.long
def test_code_of_a_model_folder_is_never_run(folder, tmp_path, monkeypatch):
  mark = tmp_path / "CODE_WAS_RUN"
  work = tmp_path / "work"
  work.mkdir()
  monkeypatch.chdir(work)
  (work / "a_module_here.py").write_text(f"open({str(mark)!r}, 'w')\n")
  before = list(sys.path)
  line = add(folder, "import a_module_here")
  with pytest.raises(UserError, match=rf"config\.gin, line {line}: `import a_mod"):
    run_folder.load(str(folder))
  assert sys.path == before
  assert not mark.exists()
  run_folder.load(str(folder), trust_config=True)
  assert mark.exists()


def test_a_folder_does_not_say_where_things_lie_here(folder):
  add(
    folder,
    "CACHE_DIR = 'cache/of/somebody'",
    "TrainConfig.compile_cache_dir = 'programs/of/somebody'",
    "TrainConfig.trackers = ('of_somebody',)",
    "TrainConfig.tracker_project = 'of_somebody'",
    "INITIAL_CHECKPOINT_PATH = 'checkpoint/of/somebody'",
    "WARM_START_RULES = [('.*', None)]",
    "MODEL_DIR = 'run/of/somebody'",
    "VOCABULARY = '/etc/hostname'",
    # A scope wins over what is set without one.
    "s/DataConfig.cache_dir = 'gs://somebody/cache'",
    "RunConfig.data = @s/DataConfig()",
  )
  said = []
  run = run_folder.load(str(folder), say=said.append)
  assert "somebody" not in repr(run)
  assert run.data.vocabulary == str(folder / "vocabulary" / "vocabulary.model")
  assert run.train.model_dir == str(folder)
  assert "CACHE_DIR = 'gs://somebody/cache' is not used" in said[0]
  mine = run_folder.load(str(folder), ["CACHE_DIR = 'mine'", "VOCABULARY = 'my.model'"])
  assert (mine.data.cache_dir, mine.data.vocabulary) == ("mine", "my.model")
  trusted = run_folder.load(str(folder), trust_config=True)
  assert trusted.data.cache_dir == "gs://somebody/cache"
  assert trusted.train.compile_cache_dir == "programs/of/somebody"
  assert trusted.train.model_dir == str(folder)


def test_a_folder_without_its_vocabulary_is_one_line(folder):
  (folder / "vocabulary" / "vocabulary.model").unlink()
  with pytest.raises(UserError, match=r"no vocabulary in vocabulary/: .*VOCABULARY"):
    run_folder.load(str(folder))
  assert run_folder.load(str(folder), ["VOCABULARY = 'mine'"]).data.vocabulary == "mine"


@pytest.mark.long
def test_damaged_settings_are_read_or_refused_in_one_line(folder):
  file = folder / "config.gin"
  tokens = (
    b"@",
    b"%",
    b"'",
    b"(",
    b"=",
    b"\n",
    b"-1",
    b"None",
    b"0xffffffffff",
    b"\xff",
  )
  said = []
  damaged = engine.mutations([file.read_bytes()], 0, tokens)
  for content in itertools.islice(damaged, 300):
    file.write_bytes(content)
    try:
      run_folder.load(str(folder))
    except UserError as error:
      said.append(str(error))
  assert not any("\n" in line for line in said)
  assert 10 < len(said) < 300


@pytest.mark.parametrize(
  ("verb", "flags"),
  [
    ("eval", []),
    ("infer", ["--mode=embed", "--input=t.jsonl", "--output=o.npy"]),
    ("export", ["--to=exported"]),
  ],
)
def test_every_verb_that_takes_a_folder_refuses_its_code(folder, capsys, verb, flags):
  line = add(folder, "RANDOM_SEED = @os.getpid()")
  assert main.main([verb, f"--model_dir={folder}", *flags]) == 2
  said = capsys.readouterr().err
  assert said.startswith(f"commentree: {folder}/config.gin, line {line}: `@os.getpid`")
  assert said.count("\n") == 1
