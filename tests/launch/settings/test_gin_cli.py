import resource
import subprocess
import sys

import pytest

import gin
from commentree.errors import UserError
from commentree.launch.settings import gin_cli

REQUIRED = [
  "MODEL_DIR = '/tmp/m'",
  "MIXTURE_OR_TASK_NAME = 'commentree_generated'",
  "TRAIN_STEPS = 10",
]


def load(*overrides, files=("runs/pretrain.gin",)):
  return gin_cli.load(files, [*REQUIRED, *overrides])


def test_a_complete_run_file_gives_checked_settings():
  run = load("BATCH_SIZE = 16")
  assert run.train.model_dir == "/tmp/m"
  assert run.train.batch_size == 16
  assert run.data.mixture_or_task_name == "commentree_generated"


def test_all_missing_required_settings_are_named_at_once():
  with pytest.raises(UserError) as error:
    gin_cli.load(["runs/pretrain.gin"])
  for name in ("MODEL_DIR", "MIXTURE_OR_TASK_NAME", "TRAIN_STEPS"):
    assert name in str(error.value)


@pytest.mark.parametrize(
  ("override", "said"),
  [
    ("TRAIN_STPES = 10", "did you mean TRAIN_STEPS"),
    ("BATCH_SIZE = abc", "quotes"),
    ("BATCH_SIZE = 'abc'", "batch_size"),
    ("BATCH_SIZE = 0", "batch_size"),
    ("ModelConfig.emb_dmi = 3", "did you mean emb_dim"),
    ("ModelConfg.emb_dim = 3", "did you mean ModelConfig"),
    ("ModelConfig.pooling = 'median'", "must be one of"),
    ("TASK_FEATURE_LENGTHS = {'inputs': 12}", "TASK_FEATURE_LENGTHS"),
  ],
)
def test_a_mistake_is_one_line_that_names_the_setting(override, said):
  with pytest.raises(UserError) as error:
    load(override)
  assert said in str(error.value)
  assert "\n" not in str(error.value)


def test_a_setting_in_a_file_that_nothing_reads_is_refused(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text("BATCH_SIEZ = 4\n")
  with pytest.raises(UserError, match="BATCH_SIZE"):
    load(files=["runs/pretrain.gin", str(path)])


def test_a_broken_file_is_named_with_its_line(tmp_path):
  path = tmp_path / "broken.gin"
  path.write_text("BATCH_SIZE = 4\nBATCH_SIZE = = 3\n")
  with pytest.raises(UserError, match=r"broken\.gin"):
    load(files=["runs/pretrain.gin", str(path)])


def test_a_missing_file_is_named_with_the_nearest_one_there_is():
  with pytest.raises(UserError, match=r"did you mean runs/pretrain\.gin"):
    load(files=["runs/pretrian.gin"])


def test_overrides_need_a_value():
  with pytest.raises(UserError, match="NAME=VALUE"):
    gin_cli.split_overrides(["--gin.TRAIN_STEPS"])


def test_a_folder_named_as_ours_on_the_import_path_does_no_harm(tmp_path, monkeypatch):
  (tmp_path / "runs").mkdir()
  (tmp_path / "models").mkdir()
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  assert load().train.model_dir == "/tmp/m"


def test_later_files_win(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text("BATCH_SIZE = 4\n")
  assert load(files=["runs/pretrain.gin", str(path)]).train.batch_size == 4


def test_a_module_that_a_file_imports_may_lie_in_the_current_folder(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  (tmp_path / "a_module_of_mine.py").write_text("MADE = 'by me'\n")
  (tmp_path / "mine.gin").write_text(
    "import a_module_of_mine\ninclude 'runs/pretrain.gin'\n"
  )
  load(files=["mine.gin"])
  assert sys.modules["a_module_of_mine"].MADE == "by me"
  # As MODEL_DIR/config.gin has it, so that `eval` knows its tasks.
  assert gin.config_str().startswith("import a_module_of_mine\n")
  (tmp_path / "none.gin").write_text("import no_such_module\n")
  with pytest.raises(UserError, match="No module named 'no_such_module': start"):
    load(files=["none.gin"])


def test_mixtures_are_set_on_the_command_line():
  run = load(
    "MIXTURE_OR_TASK_NAME = 'commentree_mixture'",
    "MIXTURE = {'ufc:mlm': 0.7, 'ufc:clm': 0.2, 'iac': 0.1}",
    "CORPORA = {'ufc': 'data/ufc', 'iac': ['a.jsonl', 'b.jsonl']}",
    "VOCABULARY = 'trees.model'",
  )
  names = [member.name for member in run.data.members()]
  assert names == ["iac:mlm", "ufc:clm", "ufc:mlm"]
  # As MODEL_DIR/config.gin has them, whose mappings are in the order of names.
  again = gin_cli.load_text(gin_cli.text_in_force(run), "config.gin")
  assert [member.name for member in again.data.members()] == names


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "xl", "xxl"])
def test_every_size_loads(size):
  run = load(files=["runs/pretrain.gin", f"models/{size}.gin"])
  assert run.model.emb_dim % 64 == 0


@pytest.mark.parametrize(
  "size", ["roberta_tiny", "roberta_base", "distilroberta", "bert_base", "minilm"]
)
def test_every_size_of_the_family_of_roberta_loads(size):
  run = load(files=["runs/pretrain.gin", f"models/{size}.gin"])
  model = run.model
  # As what they start from was trained; the small one starts from nothing.
  assert run.data.preprocessing.subtrees.sequence_ends == (size != "roberta_tiny")
  assert model.family == "roberta"
  assert model.num_heads * model.head_dim == model.emb_dim
  assert model.mlp_dim == 4 * model.emb_dim


def test_a_mistake_is_told_in_three_seconds_and_before_jax_is_imported(tmp_path):
  code = (
    "import sys; from commentree.launch.main import main;"
    "code = main(sys.argv[1:]);"
    "heavy = {'jax', 'tensorflow', 'seqio'} & set(sys.modules);"
    "print(heavy, file=sys.stderr) if heavy else None; sys.exit(code)"
  )
  command = [sys.executable, "-c", code, "train", "--gin_file=runs/pretrain.gin"]
  before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
  done = subprocess.run(
    [*command, "--gin.TRAIN_STPES=3"], capture_output=True, text=True, cwd=tmp_path
  )
  # Processor time: on a busy machine it takes longer.
  assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 3
  assert done.returncode == 2
  assert len(done.stderr.strip().splitlines()) == 1, done.stderr
  assert "TRAIN_STEPS" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
  ("lines", "said"),
  [
    ("from __gin__ import dynamic_registration\nA = @os.getpid()", "NameError: 'os'"),
    ("BATCH_SIZE = @os.getpid()", "no such setting 'os.getpid'"),
    ("BATCH_SIZE = (3", "EOF in multi-line statement"),
    ("BATCH_SIZE = " + "[" * 3000, " nested "),
    ("BATCH_SIZE = %RANDOM_SEED\nRANDOM_SEED = %BATCH_SIZE", "refers to itself"),
    ("BATCH_SIZE = %BTACH", "%BTACH: nothing sets this macro"),
    ("include 'mine.gin'", "refers to itself"),
    ("import a_module_that_fails", "ZeroDivisionError: division by zero (/"),
    ("FILES = 5\nVOCABULARY = 'v'", "DataConfig.files = 5: Expected `str |"),
    ("CACHE_DIR = 5", "DataConfig.cache_dir = 5: Expected `str | null`, got `int`"),
    ("PreprocessingConfig.cleaning = @ModelConfig()", "must be @CleaningConfig()"),
    ("WARM_START_RULES = 3", "TrainConfig.warm_start_rules = 3: must be a list"),
  ],
)
def test_whatever_gin_raises_of_a_file_is_one_line(
  tmp_path, monkeypatch, capsys, lines, said
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  (tmp_path / "a_module_that_fails.py").write_text("1 / 0\n")
  (tmp_path / "mine.gin").write_text(f"include 'runs/pretrain.gin'\n{lines}\n")
  with pytest.raises(UserError) as error:
    load(files=["mine.gin"])
  assert said in str(error.value)
  assert "\n" not in str(error.value)


def test_the_current_folder_is_sought_for_modules_only_where_a_file_imports_one(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  load()
  assert str(tmp_path) not in sys.path
  (tmp_path / "a_module_included.py").write_text("")
  (tmp_path / "inner.gin").write_text(
    "include 'runs/pretrain.gin'\nimport a_module_included\n"
  )
  (tmp_path / "outer.gin").write_text("include 'inner.gin'\n")
  load(files=["outer.gin"])
  assert str(tmp_path) in sys.path


@pytest.mark.parametrize("name", ["pretrain", "demo", "finetune_tag"])
def test_the_text_of_a_run_says_all_that_is_in_force_and_gives_the_run_again(name):
  files = [f"runs/{name}.gin"]
  missing = ["FILES = 'x'", "VOCABULARY = 'v'", "INITIAL_CHECKPOINT_PATH = 'c'"]
  run = gin_cli.load(files, [*REQUIRED, *(missing if "finetune" in name else [])])
  text = gin_cli.text_in_force(run)
  for setting in (
    "ModelConfig.pooling",
    "ForestLayout.decoder_rows",
    "MaskingConfig.rate",
    "SubtreeConfig.max_tree_size",
    "CheckpointConfig.keep",
    "HealthConfig.",
    "PartitioningConfig.",
  ):
    assert f"\n{setting}" in text, setting
  assert max(map(len, text.splitlines())) <= 88
  assert gin_cli.load_text(text, "config.gin") == run
  assert gin_cli.text_in_force(gin_cli.load_text(text, "config.gin")).count("\n") > 100
  again = gin_cli.load_text(text, "config.gin", ["ModelConfig.pooling = 'max'"])
  assert again.model.pooling == "max"


def test_epochs_stand_for_steps_and_one_of_them_is_needed():
  others = [line for line in REQUIRED if "TRAIN_STEPS" not in line]
  run = gin_cli.load(["runs/pretrain.gin"], [*others, "TRAIN_EPOCHS = 2.5"])
  assert (run.train.train_steps, run.train.train_epochs) == (None, 2.5)
  assert run.train.last_step == 2**31 - 1
  assert gin_cli.load_text(gin_cli.text_in_force(run), "config.gin") == run
  with pytest.raises(UserError, match=r"TRAIN_STEPS \(or TRAIN_EPOCHS\)"):
    gin_cli.load(["runs/pretrain.gin"], others)
  for given in (["TRAIN_EPOCHS = 2"], ["TRAIN_STEPS = None"]):
    with pytest.raises(UserError, match=r"^TRAIN_STEPS = .*give one of them; None"):
      gin_cli.load(["runs/demo.gin"], [*others, *given])
  with pytest.raises(
    UserError, match=r"train_epochs = 0: must be a number of at least"
  ):
    gin_cli.load(["runs/pretrain.gin"], [*others, "TRAIN_EPOCHS = 0"])


def test_what_a_verb_need_not_be_given_gives_way_to_epochs():
  defaults = ("MODEL_DIR = 'x'", "TRAIN_STEPS = 1")
  assert gin_cli.still_needed(defaults, ["TRAIN_STEPS = 2"]) == list(defaults)
  assert gin_cli.still_needed(defaults, ["TRAIN_EPOCHS = 2"]) == ["MODEL_DIR = 'x'"]
