"""`commentree compile` as users call it."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import pytest

from commentree.launch import main
from commentree.launch.compiling import aot_table, compile_job
from commentree.launch.settings import gin_cli, typical_forests
from commentree.training.tpu_compile import ahead_of_time

SMALL = [
  "--gin.ForestLayout.decoder_rows=4",
  "--gin.MAX_ANCESTORS=4",
  "--gin.OPTIMIZER='sgd'",
  "--gin.ModelConfig.ancestor_positions='none'",
  "--gin.ModelConfig.num_encoder_layers=1",
  "--gin.ModelConfig.num_decoder_layers=1",
  "--vocab_size=512",
  "--effort=O1",
]


def test_a_report_goes_to_stdout_and_the_compilers_talk_nowhere(tmp_path):
  # A process of its own: what libtpu writes to stderr is not Python's to capture.
  path = tmp_path / "report with spaces.json"
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "commentree.launch.main",
      "compile",
      "--topology=v5e-1",
      "--program=infer",
      f"--json={path}",
      *SMALL,
    ],
    capture_output=True,
    text=True,
    timeout=300,
    check=True,
  )
  assert done.stderr == ""
  assert "infer: fits: " in done.stdout
  written = json.loads(path.read_text())
  assert set(written["versions"]) == {"jax", "libtpu", "flax", "optax"}
  (report,) = written["reports"]
  assert report["topology"] == "v5e:1x1"
  assert report["chips"] == 1
  assert report["fits"] is True


@pytest.mark.parametrize(
  ("flags", "hint"),
  [
    (["--topology=v9-8"], "v5e:4x4"),
    (["--topology=v5e-4", "--program=trian"], "train, eval, infer"),
    (["--topology=v5e-4", "--gin.BATCH_SIZE=6"], "--gin.BATCH_SIZE=8"),
    (["--topology=v5e-4", "--comment_tokens=500"], "--comment_tokens"),
    (["--topology=v5e-4", "--gin.FSDP_PARALLEL=3"], "fsdp_parallel = 3"),
    (
      ["--topology=v5e-4", "--search", "--remat=some"],
      "none, full, attention, minimal",
    ),
    (["--topology=v5e-4", "--search", "--presets=ddp"], "dp, fsdp"),
    (["--topology=v5e-4", "--search", "--forests_per_device=0"], "at least 1"),
  ],
)
def test_mistakes_are_one_line(flags, hint, capsys):
  assert main.main(["compile", *flags]) == 2
  error = capsys.readouterr().err
  assert hint in error
  assert error.count("\n") == 1


def test_a_search_prints_the_flags_that_set_its_choice(capsys):
  flags = ["--topology=v5e-1", "--search", "--forests_per_device=1", "--presets=dp"]
  assert main.main(["compile", *flags, "--remat=none", "--json=-", *SMALL]) == 0
  captured = capsys.readouterr()
  found = json.loads(captured.out)
  assert found["recommended"] == [
    "--gin_file=partitioning/dp.gin",
    "--gin.BATCH_SIZE=1",
    '--gin.ModelConfig.remat_policy="none"',
  ]
  assert "'--gin.ModelConfig.remat_policy=\"none\"'" in captured.err
  assert len(found["outcomes"]) == 1


def test_runs_own_gin_files_need_no_folder_and_no_task():
  run = gin_cli.load(["runs/compile.gin", "runs/pretrain.gin"], compile_defaults())
  assert run.train.train_steps > 0


def compile_defaults() -> list[str]:
  from commentree.launch.commands import compile as verb

  return list(verb._NOT_NEEDED)


@pytest.mark.parametrize("tokens", [12, 48, 128])
def test_forests_hold_the_comments_that_their_rows_do(tokens):
  data = gin_cli.load(["runs/compile.gin"]).data
  shape, comments = typical_forests.typical_shape(data, tokens)
  positions = shape.decoder_rows * shape.decoder_length
  assert comments * tokens == pytest.approx(0.97 * positions, rel=0.01)
  assert comments < shape.target_slots
  assert shape.encoder_slots < shape.target_slots


def test_a_layout_that_is_set_stays_as_set():
  settings = ["ForestLayout.target_slots = 60", "ForestLayout.encoder_slots = 40"]
  data = gin_cli.load(["runs/compile.gin"], settings).data
  shape, comments = typical_forests.typical_shape(data, 48)
  assert (shape.target_slots, shape.encoder_slots) == (60, 40)
  assert comments == 60


def test_forests_of_a_mixture_have_room_for_all_its_objectives():
  mixture = ["MIXTURE = {'mlm': 3, 'clm': 1}", "FILES = 'f'", "VOCABULARY = 'v'"]
  settings = ["MIXTURE_OR_TASK_NAME = 'commentree_mixture'", *mixture]
  data = gin_cli.load(["runs/compile.gin"], settings).data
  shape, _ = typical_forests.typical_shape(data, 48)
  assert shape.optional_features == ("target_prefix_lengths",)
  assert shape.masked_per_group == shape.decoder_length


def test_the_table_goes_on_where_it_stopped(tmp_path, monkeypatch):
  cells = aot_table.CELLS[:2]
  monkeypatch.setattr(aot_table, "CELLS", cells)
  compiled = []

  def compile_cell(cell):
    compiled.append(cell)
    if len(compiled) == 2:
      raise KeyboardInterrupt
    return {
      "chips": 8,
      "batch_size": 32,
      "fits": len(compiled) == 1,
      "memory": {"needed": 2**30, "limit": 2**34},
      "step_seconds": 0.5,
      "comments_per_second_per_chip": 321.0,
      "utilization": 0.4,
      "messages": [
        {"kind": "all-reduce", "network": "DCN", "count": 3, "bytes": 2_000_000_000}
      ],
    }

  monkeypatch.setattr(aot_table, "compile_cell", compile_cell)
  flags = [f"--output={tmp_path / 'aot.md'}", f"--results={tmp_path / 'aot.jsonl'}"]
  with pytest.raises(KeyboardInterrupt):
    aot_table.main(flags)
  assert aot_table.main(flags) == 0
  assert compiled == [cells[0], cells[1], cells[1]]
  text = (tmp_path / "aot.md").read_text()
  assert "| 500 | 321 | 40% | all-reduce over DCN 3, 2.0 |" in text
  assert "| full | **no** | 1.0 of 16.0 |" in text
  assert aot_table.main(flags) == 0
  assert len(compiled) == 3


def test_every_size_and_generation_is_in_the_table():
  sizes = {cell.size for cell in aot_table.CELLS}
  generations = {cell.topology.partition(":")[0] for cell in aot_table.CELLS}
  assert sizes == {"small", "base", "large", "xl", "xxl"}
  assert generations == {"v4", "v5e", "v5p", "v6e", "tpu7x"}
  assert ahead_of_time.PROGRAMS == ("train", "eval", "infer")


@pytest.mark.parametrize(
  ("objective", "setting", "outputs"),
  [
    ("classify", "CommentLabelsConfig.source = 'deleted_next'", 2),
    ("tag", "LabelsConfig.names = ('claim',)", 3),
    ("regress", "CommentNumbersConfig.source = 'score'", 1),
    ("mlm", "CommentNumbersConfig.source = 'score'", 0),
  ],
)
def test_a_head_has_as_many_outputs_as_its_data_says(objective, setting, outputs):
  files = ["runs/compile.gin", f"objectives/{objective}.gin"]
  topology = types.SimpleNamespace(devices=[None] * 4)
  plan = compile_job.make_plan(gin_cli.load(files, [setting]), topology, vocab_size=300)
  config = plan.model.config
  assert (config.vocab_size, config.num_labels) == (300, outputs)
  assert ("target_numbers" in plan.feature_shapes) == (objective == "regress")
