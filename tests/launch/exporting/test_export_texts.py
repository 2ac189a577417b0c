"""An export reads trees of text where nothing of ours is, and answers as we do."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import commentree
from commentree.launch import main
from commentree.launch.exporting import runner, text_parts, text_reader
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers import tree_jsonl
from commentree.tasks.trees.assembly import assemble
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tests.support.launch import made_runs, wordpiece

# Finders as if what is not to be there was not installed.
PROGRAM = """
import contextlib, io, json, sys

hidden = set(sys.argv[2].split(","))

class Finder:
  def __init__(self, whole):
    self._whole = whole

  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] not in hidden:
      return self._whole.find_spec(name, path, target)

  def __getattr__(self, name):
    return getattr(self._whole, name)

sys.meta_path[:] = map(Finder, sys.meta_path)
sys.path.insert(0, sys.argv[1])
import run

for arguments in json.load(sys.stdin):
  sys.argv = ["run.py", *arguments]
  said, code = io.StringIO(), 0
  with contextlib.redirect_stdout(said):
    try:
      run.main()
    except SystemExit as error:
      code = error.code
  print(json.dumps([said.getvalue(), code]))
"""
OURS = "commentree,flax,tensorflow,seqio,orbax,duckdb,fsspec,rich"
TREE = {
  "id": "t",
  "title": "cats or dogs &amp; <mask>?",
  "author": "ann",
  "comments": [
    {
      "id": "a",
      "parent_id": "t",
      "author": "bob",
      "body": "> cats or dogs\n\ndogs, see https://a.b/c <mask> and <mask>",
    },
    {"id": "x", "parent_id": "a", "author": "eve", "body": "[deleted]"},
    {"id": "b", "parent_id": "x", "author": "ann", "body": "i prefer <mask> " * 9},
    {"id": "c", "parent_id": "b", "author": "eve", "body": "[no](https://<mask>)"},
    {"id": "d", "parent_id": "c", "author": "bob", "body": "why \ud800 <user_0> not?"},
  ],
}


def export(folder, run, *flags):
  target = folder / "exported"
  command = ["export", f"--model_dir={run}", f"--to={target}", *flags]
  assert main.main(command) == 0
  return target


def elsewhere(folder, *calls, hidden=OURS):
  """Calls `run.py` where nothing of ours can be imported; returns outputs and codes."""
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, str(folder), hidden],
    input=json.dumps([list(map(str, call)) for call in calls]),
    capture_output=True,
    text=True,
    timeout=300,
    env={
      "JAX_PLATFORMS": "cpu",
      "PATH": "",
      "XLA_FLAGS": "--xla_backend_optimization_level=0",
    },
    cwd="/",
  )
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in done.stdout.splitlines()]


def answers_of(said):
  text, code = said
  assert code == 0
  return [json.loads(line) for line in text.splitlines()]


def write(path, *trees):
  path.write_text("".join(json.dumps(tree) + "\n" for tree in trees))
  return path


@pytest.fixture(
  scope="module",
  params=["sentencepiece", pytest.param("wordpiece", marks=pytest.mark.slow)],
)
def exported(request, tmp_path_factory):
  """A run with rows for a part of a tree alone, and what it was exported to."""
  folder = tmp_path_factory.mktemp(request.param)
  settings = {"ForestLayout.decoder_rows": 2, "ForestLayout.target_slots": 3}
  if request.param == "wordpiece":
    settings |= {**wordpiece.ROBERTA, "VOCABULARY": wordpiece.make(folder)}
  run = made_runs.make(folder, **settings)
  return run, export(folder, run, "--mode=fill", "--mode=embed", "--top_k=3")


@pytest.mark.long
def test_text_gets_the_answers_that_the_run_gives(exported, tmp_path):
  run, folder = exported
  nested = {
    "id": "n",
    "selftext": "lemo <mask>",
    "comments": [
      {"id": "m", "text": "taso", "replies": [{"id": "o", "body": "<mask>"}]}
    ],
  }
  trees = [TREE, nested, {"id": "lone", "title": "two words"}]
  file = write(tmp_path / "trees.jsonl", *trees)
  embedded, filled = map(
    answers_of,
    elsewhere(folder, ["embed", f"--trees={file}"], ["fill", f"--trees={file}"]),
  )
  model = commentree.load(run)
  expected = [answer for tree in model.embed(trees) for answer in tree]
  names = [(answer["tree"], answer["comment"]) for answer in expected]
  assert names == [(answer["tree"], answer["comment"]) for answer in embedded]
  for ours, theirs in zip(expected, embedded):
    np.testing.assert_allclose(theirs["vectors"], ours["vectors"], rtol=1e-4, atol=1e-5)
  expected = [answer for tree in model.fill(trees, top_k=3) for answer in tree]
  assert names == [(answer["tree"], answer["comment"]) for answer in filled]
  compared = 0
  for ours, theirs in zip(expected, filled):
    masks = ours["masks"]
    if masks is None or any(mask["candidates"] is None for mask in masks):
      assert theirs["masks"] is None
      assert theirs["why"]
      continue
    for mask, found in zip(masks, theirs["masks"], strict=True):
      assert found["start"] == mask["start"]
      tokens = [each["token"] for each in mask["candidates"]]
      assert [each["token"] for each in found["candidates"]] == tokens
      np.testing.assert_allclose(
        [each["probability"] for each in found["candidates"]],
        [each["probability"] for each in mask["candidates"]],
        rtol=1e-3,
      )
      compared += 1
  assert compared >= 3


@pytest.mark.long
def test_what_cannot_be_read_is_one_line(exported, tmp_path):
  _, folder = exported
  bad = tmp_path / "bad.jsonl"
  bad.write_text('{"id": "t", "title": "a"}\n{"id": \n')
  nothing = write(tmp_path / "nothing.jsonl", {"id": "t", "title": "[deleted]"})
  no_id = write(tmp_path / "no_id.jsonl", {"title": "a"})
  deep = tmp_path / "deep.jsonl"
  deep.write_text("[" * 100_000)
  wrong = []
  for number, comment in enumerate(
    (
      7,
      {"tokens": [], "parent": 0},
      {"tokens": "abc", "parent": -1},
      {"tokens": [5], "parent": -1, "predict": [2]},
    )
  ):
    wrong.append(tmp_path / f"wrong{number}.json")
    wrong[-1].write_text(json.dumps([comment]))
  found = elsewhere(
    folder,
    ["embed", f"--trees={bad}"],
    ["embed", f"--trees={nothing}"],
    ["embed", f"--trees={no_id}"],
    ["embed", f"--trees={tmp_path}/none.jsonl"],
    ["score", f"--trees={bad}"],
    ["embed"],
    ["embed", f"--trees={deep}"],
    ["embed", f"--trees={bad}", f"--outputs={tmp_path}/out.npz"],
    ["embed", f"--comments={tmp_path}/none.json"],
    ["embed", f"--comments={bad}"],
    ["embed", f"--comments={no_id}"],
    *(["fill", f"--comments={path}"] for path in wrong),
    ["embed", f"--inputs={bad}"],
    ["embed", f"--inputs={tmp_path}/none.npz"],
  )
  said = [code for _, code in found]
  assert said[6].startswith(f"{deep}, line 1: no JSON: ")
  assert said[7].startswith("--outputs: takes arrays; answers to --trees are printed")
  assert "No such file" in said[8]
  assert said[9].startswith(f"--comments={bad}: no JSON")
  assert said[10] == f"--comments={no_id}: must be a list; see python run.py --help"
  told = (
    "must be an object",
    "parent must be -1",
    "tokens, and reads, must be",
    "predict",
  )
  for line, path, words in zip(said[11:15], wrong, told, strict=True):
    assert line.startswith(f"--comments={path}: comment 0")
    assert words in line
  assert said[15] == f"--inputs={bad}: is no file of numpy.savez"
  assert "No such file" in said[16]
  assert said[0].startswith(f"{bad}, line 2: no JSON")
  assert said[1] == f"{nothing}, line 1: nothing is left of the tree t"
  assert said[2] == f"{no_id}, line 1: no object with an id"
  assert "No such file" in said[3]
  assert said[4] == "score: there is fill, embed"
  assert said[5] == "give --trees, --comments or --inputs"
  assert not any("\n" in line for line in said)
  ((_, said),) = elsewhere(
    folder, ["embed", f"--trees={bad}"], hidden=f"{OURS},msgspec,tokenizers"
  )
  assert said.startswith("No module named 'msgspec': trees of text take pip install")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["classify", "regress", "generate"])
def test_other_modes_answer_for_text_as_the_run_does(tmp_path, mode):
  labels = {
    "CommentLabelsConfig.source": "label",
    "CommentLabelsConfig.names": ("stays", "leaves"),
  }
  if mode == "classify":
    run, flags = made_runs.make(tmp_path, mode, **labels), []
  elif mode == "regress":
    numbers = {"source": "score", "transform": "log", "mean": 1.0}
    settings = {f"CommentNumbersConfig.{name}": x for name, x in numbers.items()}
    run, flags = made_runs.make(tmp_path, mode, **settings), []
  else:
    run, flags = made_runs.make(tmp_path, "clm"), ["--max_tokens=6"]
  folder = export(tmp_path, run, f"--mode={mode}", *flags)
  file = write(tmp_path / "trees.jsonl", TREE)
  (found,) = map(answers_of, elsewhere(folder, [mode, f"--trees={file}"]))
  model = commentree.load(run)
  options = {"max_tokens": 6} if mode == "generate" else {}
  ours = getattr(model, mode)(TREE, **options)
  for expected, theirs in zip(ours, found, strict=True):
    assert theirs["comment"] == expected["comment"]
    if mode == "classify":
      assert theirs["label"] == expected["label"]
      for name, share in expected["probabilities"].items():
        assert theirs["probabilities"][name] == pytest.approx(share, abs=1e-4)
    elif mode == "regress":
      assert theirs["number"] == pytest.approx(expected["number"], abs=1e-4)
    elif expected["replies"] is None:
      assert theirs["replies"] is None
    else:
      (one,), (other,) = expected["replies"], theirs["replies"]
      assert other["text"] == one["text"]
      assert other["log_likelihood"] == pytest.approx(one["log_likelihood"], rel=1e-4)


def test_runs_whose_text_cannot_be_laid_out_say_why(tmp_path):
  run = made_runs.make(tmp_path, **{"SubtreeConfig.long_comments": "chunk"})
  context = commentree.load(run).run
  assert text_parts.settings_of(context) == {
    "why_not": "SubtreeConfig.long_comments is 'chunk'"
  }


def test_copies_import_nothing_of_ours_by_its_name():
  files = text_parts.files()
  assert "text_parts/tasks/trees/cleaning.py" in files
  for name, source in files.items():
    compile(source, name, "exec")
    assert "from commentree" not in source, name


def test_a_comment_that_sees_one_ancestor_sees_its_parent():
  arrays = {
    "encoder_input_tokens": np.zeros((1, 2, 4), np.int32),
    "encoder_segment_ids": np.zeros((1, 2, 4), np.int32),
    "encoder_positions": np.zeros((1, 2, 4), np.int32),
    "encoder_slot_depths": np.full((1, 2), -1),
    "decoder_input_tokens": np.zeros((1, 1, 4), np.int32),
    "decoder_segment_ids": np.zeros((1, 1, 4), np.int32),
    "decoder_positions": np.zeros((1, 1, 4), np.int32),
    "decoder_masked_positions": np.zeros((1, 1, 2), np.int32),
    "target_depths": np.zeros((1, 1), np.int32),
    "ancestor_slots": np.zeros((1, 1, 1), np.int32),
    "ancestor_distances": np.zeros((1, 1, 1), np.int32),
  }
  comments = [
    {"tokens": [5], "parent": -1},
    {"tokens": [6], "parent": 0},
    {"tokens": [7], "parent": 1, "predict": [0]},
  ]
  filled, _ = runner.fill_forest(arrays, "fill", {"mask_id": 3}, comments)
  assert filled["ancestor_distances"].tolist() == [[[1]]]
  assert filled["encoder_input_tokens"][0, 0, 0] == 6


@pytest.mark.parametrize(
  "record",
  [
    TREE,
    {"id": 0, "title": "t", "comments": [{"id": 1, "parent_id": 0, "body": "x"}]},
    {"id": "p", "comments": [{"id": 0, "body": "a"}, {"id": 1, "parent_id": 0}]},
    {"id": "t3_p", "selftext": "", "text": "no", "comments": [{"id": 1.0, "body": ""}]},
    {"id": "p", "created_utc": float("nan"), "comments": [{"id": "a", "body": "x"}]},
    {
      "id": "p",
      "created_utc": float("inf"),
      "comments": [
        {"id": "a", "created_utc": "20", "text": "x", "replies": [{"id": "b"}, 7]},
        {"id": "c", "created_utc": "10", "parent_id": [1], "body": "y"},
        {"id": True, "created_utc": -1, "body": 8, "children": [{"body": "z"}]},
      ],
    },
  ],
)
def test_trees_are_read_as_commentree_reads_them(record):
  counts = ReadCounts()
  ours = assemble(list(tree_jsonl.record_rows(record, counts)), counts, TreeConfig())
  theirs = assemble(list(text_reader.rows_of(record)), ReadCounts(), TreeConfig())
  assert theirs == ours
