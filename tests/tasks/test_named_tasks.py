"""The tasks that settings name: with SeqIO where it takes SeqIO, and else without."""

import subprocess
import sys

import pytest

from commentree.errors import UserError
from commentree.tasks import named_tasks, settings_tasks
from commentree.tasks.config import mixture_config
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.data_config import DataConfig
from commentree.tasks.preparation import preparing
from commentree.tasks.seqio_tasks import registration, registry
from commentree.tasks.seqio_tasks.registry import CommentTreeTask

LENGTHS = {"encoder": 16, "decoder": 16}
SMALL = GeneratedTreesConfig(num_train_trees=20, num_validation_trees=5)


def settings(name, **more):
  return DataConfig(name, LENGTHS, generated=SMALL, **more)


def test_a_task_is_the_same_with_seqio_and_without(tmp_path):
  config = settings(mixture_config.GENERATED, cache_dir=str(tmp_path))
  (own,) = named_tasks.find(config)
  assert not isinstance(own.task, CommentTreeTask)
  registration.register_tasks(config)
  (known,) = registry.get_parts(mixture_config.GENERATED)
  assert isinstance(known.task, CommentTreeTask)
  assert (own.share, own.task.name) == (known.share, known.task.name)
  assert tuple(own.task.splits) == tuple(known.task.splits)
  for split in ("train", "validation"):
    ours = preparing.settings(own.task, split)
    assert ours == preparing.settings(known.task, split)


def test_mixtures_caches_and_tasks_of_others_take_seqio():
  generated = mixture_config.GENERATED
  mixture = settings(mixture_config.MIXTURE, mixture={generated: 1})
  assert named_tasks.needs_seqio(settings(generated, use_cached=True))
  assert named_tasks.needs_seqio(mixture)
  assert named_tasks.needs_seqio(settings("somebodys"))
  assert not named_tasks.needs_seqio(settings(generated))


def test_the_members_of_a_mixture_are_made_as_they_are_found():
  generated = mixture_config.GENERATED
  config = settings(
    mixture_config.MIXTURE, mixture={f"{generated}:mlm": 3, f"{generated}:clm": 1}
  )
  found = {part.task.name: part.task for part in named_tasks.find(config)}
  assert set(found) < set(settings_tasks.made(config))
  for name, task in found.items():
    made = settings_tasks.make(config, name)
    assert made.preprocessing == task.preprocessing
    assert made.tokenizer.fingerprint == task.tokenizer.fingerprint


def test_a_task_that_nobody_knows_is_named():
  with pytest.raises(UserError, match="somebodys"):
    named_tasks.find(settings("somebodys"))


@pytest.mark.long
def test_batches_and_the_model_of_a_run_need_neither_tensorflow_nor_seqio(tmp_path):
  script = f"""
import sys
sys.modules.update({{"tensorflow": None, "seqio": None}})
from commentree.launch import assemble_run, main
from commentree.tasks import data
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.data_config import DataConfig
small = GeneratedTreesConfig(num_train_trees=20, num_validation_trees=5)
config = DataConfig(
  "commentree_generated", {LENGTHS}, generated=small, cache_dir={str(tmp_path)!r}
)
next(data.open_data(config).train_batches(1, 0))
folder = {str(tmp_path / "run")!r}
flags = ["--gin_file=runs/demo.gin", f"--gin.MODEL_DIR='{{folder}}'", "--dry_run"]
sys.exit(main.main(["train", *flags]))
"""
  subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
