"""`commentree infer` on models that are untrained: what answers are and what not."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

import commentree
from commentree.errors import UserError
from commentree.launch import main
from commentree.launch.inference.modes import mode_table
from commentree.launch.inference.parts import Parts
from commentree.launch.supervision import local
from commentree.tasks import readers
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tests.support.launch import made_runs

URL = "see https://a.b/<mask>/c and <mask>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("infer")


@pytest.fixture(scope="module")
def model_dir(folder):
  return made_runs.make(folder)


@pytest.fixture(scope="module")
def plain(model_dir):
  return made_runs.trees(model_dir, 12)


@pytest.fixture(scope="module")
def masked(plain):
  return [made_runs.map_texts(hide_last, tree) for tree in plain]


def hide_last(text):
  *words, _ = text.split()
  return " ".join([*words, "<mask>"])


@pytest.fixture(scope="module")
def file(folder, masked):
  return made_runs.write(folder / "trees.jsonl", masked)


def infer(model_dir, output, *flags, mode="fill", code=0):
  given = [f"--model_dir={model_dir}", f"--mode={mode}", f"--output={output}"]
  assert main.main(["infer", *given, "--chunk_trees=3", *flags]) == code
  return output


@pytest.fixture(scope="module")
def whole(folder, model_dir, file):
  """The output of a run that nothing interrupted."""
  return infer(model_dir, folder / "whole.jsonl", "--input", file).read_text()


def lines(text):
  return [json.loads(line) for line in text.splitlines()]


# ---- What comes out ------------------------------------------------------------------


def test_every_comment_has_one_line_in_the_trees_order(whole, file):
  expected = [
    (tree.id, comment.id)
    for tree in readers.iter_trees(file, TreeConfig(target_post=True), ReadCounts())
    for comment in tree.comments
  ]
  assert [(line["tree"], line["comment"]) for line in lines(whole)] == expected


def test_python_gets_what_the_command_writes(whole, model, masked):
  answers = [answer for of_tree in model.fill(masked) for answer in of_tree]
  together = engine_answers(model, masked, [len(masked)])
  assert answers == [answer for of_tree in together for answer in of_tree]
  assert [a["filled"] for a in answers] == [a["filled"] for a in lines(whole)]
  assert model.fill(masked[0]) == model.fill(masked)[0]


def engine_answers(model, objects, chunk_sizes, ahead=None, **options):
  """Answers of the engine, with trees in chunks of such sizes."""
  made = mode_table.make(options.pop("mode", "fill"), model.run, "true", options)
  read = iter([model._tree(tree, "text") for tree in objects])
  found = [[next(read) for _ in range(size)] for size in chunk_sizes]
  program = model._engine.program(made)
  answered = model._engine.answers(
    made, program, [(chunk, chunk) for chunk in found], ahead
  )
  return [
    [
      {"tree": tree.id, "comment": comment.id, **answer}
      for comment, answer in zip(tree.comments, of_tree)
    ]
    for answers, chunk in answered
    for tree, of_tree in zip(chunk, answers)
  ]


def test_answers_are_the_same_bits_for_any_batch_size(model, plain):
  found = [
    engine_answers(model, plain, [5, 7], ahead, mode="embed", contextual=True)
    for ahead in (1, 2, 7)
  ]
  for other in found[1:]:
    for one, two in zip(found[0], other):
      for a, b in zip(one, two):
        np.testing.assert_array_equal(a["vectors"], b["vectors"])
        np.testing.assert_array_equal(a["in_thread"], b["in_thread"])


def test_a_comments_answer_does_not_depend_on_other_trees(model, plain):
  together = model.embed(plain, contextual=True)
  for tree, answers in zip(plain[:3], together):
    for alone, among in zip(model.embed(tree, contextual=True), answers):
      for name in ("vectors", "in_thread"):
        np.testing.assert_allclose(alone[name], among[name], atol=1e-5)


def test_a_changed_comment_changes_its_own_vectors_and_those_below_in_threads(
  model, plain
):
  tree = max(plain, key=lambda tree: len(tree["comments"]))
  parents = {comment["id"]: comment["parent_id"] for comment in tree["comments"]}
  before = model.embed(tree, contextual=True)
  for ident in list(parents)[:2]:
    comments = [
      {**c, "body": f"{c['body']} {c['body']}"} if c["id"] == ident else c
      for c in tree["comments"]
    ]
    after = model.embed({**tree, "comments": comments}, contextual=True)
    for one, two in zip(before, after):
      above = [one["comment"]]
      while above[-1] in parents:
        above.append(parents[above[-1]])
      own, in_thread = (
        np.abs(one[name] - two[name]).max() > 1e-4 for name in ("vectors", "in_thread")
      )
      assert own == (one["comment"] == ident)
      # Those far below may no longer see it.
      assert in_thread >= (ident in above[:2])
      assert in_thread <= (ident in above)


def test_a_filled_text_is_the_text_given_with_words_for_its_masks(model):
  tree = {"id": "t", "title": "Oh,  <mask>! [fact] <mask>", "comments": []}
  (answer,) = model.fill(tree)
  first, second = answer["masks"]
  assert (first["start"], second["start"]) == (5, 20)
  words = [m["candidates"][0]["token"].removeprefix("▁") for m in answer["masks"]]
  assert answer["filled"] == f"Oh,  {words[0]}! [fact] {words[1]}"
  for found in (first, second):
    probabilities = [c["probability"] for c in found["candidates"]]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)


def test_what_cannot_be_filled_says_why(model):
  long = " ".join(["<mask>"] * 40)
  comments = [
    {"id": "lost", "parent_id": "t", "body": URL},
    {"id": "long", "parent_id": "t", "body": long},
    {"id": "none", "parent_id": "t", "body": "so it is"},
  ]
  answers = model.fill({"id": "t", "title": "", "comments": comments})
  post, lost, long, none = answers
  assert post["masks"] is None
  assert "no text" in post["why"]
  assert "no mask" in none["why"]
  first, second = lost["masks"]
  assert "cleaning" in first["why"]
  assert second["candidates"] is not None
  assert "<mask>/c and" in lost["filled"]
  assert not lost["filled"].endswith("<mask>")
  # 24 tokens of a comment are read, one of them the author's marker; a row predicts 8
  # at once.
  filled = [mask["candidates"] is not None for mask in long["masks"]]
  assert filled == [True] * 23 + [False] * 17


def test_another_word_may_stand_for_masks(model):
  tree = {"id": "t", "title": "[fact] _ <mask>", "comments": []}
  ((answer),) = model.fill(tree, mask="_")
  assert [mask["start"] for mask in answer["masks"]] == [7]
  assert answer["filled"].endswith(" <mask>")


def test_comments_in_chunks_are_answered_whole(model_dir, plain):
  settings = {
    "SubtreeConfig.long_comments": "chunk",
    "SubtreeConfig.max_comment_tokens": 8,
  }
  model = commentree.load(model_dir, **settings)
  words = [w for w in plain[0]["title"].split() if not w.startswith("[")]
  text = " ".join((words * 30)[:30])
  tree = {"id": "t", "title": text, "comments": []}
  (score,) = model.score(tree)
  assert (score["tokens"], "tokens_cut" in score) == (30, False)
  (answer,) = model.fill({**tree, "title": f"{text} <mask> {text}"})
  assert answer["masks"][0]["candidates"] is not None
  (embedded,) = model.embed(tree)
  assert embedded["vectors"].shape == (1, 16)


# ---- Vectors in files ----------------------------------------------------------------


def test_vectors_come_as_arrays_and_as_a_table(folder, model_dir, model, plain):
  odd = {"id": "odd", "title": "", "comments": plain[0]["comments"][:1]}
  odd["comments"][0]["parent_id"] = "odd"
  trees = [odd, *plain[1:4]]
  source = made_runs.write(folder / "plain.jsonl", trees)
  flags = ("--input", source, "--contextual")
  array = infer(model_dir, folder / "vectors.npy", *flags, mode="embed")
  table = infer(model_dir, folder / "vectors.parquet", *flags, mode="embed")
  vectors, in_thread = np.load(array), np.load(array.with_suffix(".in_thread.npy"))
  ids = lines(array.with_suffix(".ids.jsonl").read_text())
  rows = pq.read_table(table).to_pylist()
  assert [(row["tree"], row["comment"]) for row in rows] == [
    (line["tree"], line["comment"]) for line in ids
  ]
  assert len(vectors) == len(in_thread) == len(ids)
  assert vectors.shape[1:] == (1, 16)
  assert np.isnan(vectors[0]).all()
  assert rows[0]["vectors"] is None
  for row, vector, other in zip(rows[1:], vectors[1:], in_thread[1:]):
    np.testing.assert_array_equal(np.float32(row["vectors"]), vector)
    np.testing.assert_array_equal(np.float32(row["in_thread"]), other)
  expected = [answer for of_tree in model.embed(trees) for answer in of_tree]
  for answer, vector in zip(expected[1:], vectors[1:]):
    np.testing.assert_allclose(answer["vectors"], vector, atol=1e-5)


# ---- Interrupted ---------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 3])
def test_what_broke_off_is_gone_on_with_to_the_same_bytes(
  tmp_path, model_dir, file, whole, monkeypatch, parts
):
  output = tmp_path / "out.jsonl"
  written = []
  write = Parts.write

  def break_off(self, chunk, data):
    if len(written) == parts:
      raise SystemExit(137)
    written.append(chunk.number)
    write(self, chunk, data)

  monkeypatch.setattr(Parts, "write", break_off)
  with pytest.raises(SystemExit):
    infer(model_dir, output, "--input", file)
  assert not output.exists()
  again = []
  monkeypatch.setattr(
    Parts, "write", lambda *args: (again.append(args[1].number), write(*args))
  )
  assert infer(model_dir, output, "--input", file).read_text() == whole
  assert sorted(written + again) == [0, 1, 2, 3]
  assert not output.with_name("out.jsonl.parts").exists()
  again.clear()
  infer(model_dir, output, "--input", file)
  assert again == []


def test_a_killed_process_is_gone_on_with_to_the_same_bytes(
  tmp_path, model_dir, file, whole
):
  output = tmp_path / "out.jsonl"
  parts = tmp_path / "out.jsonl.parts"
  command = [*local.program(), "infer", f"--model_dir={model_dir}", "--mode=fill"]
  command += [f"--output={output}", "--input", file, "--chunk_trees=3"]
  process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
  while not list(parts.glob("*-*-*.jsonl")) and process.poll() is None:
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  process.wait()
  # As of a write that was cut off.
  if parts.is_dir():
    (parts / "00000-0000009-end.jsonl.draft").write_text('{"tree": "g')
  assert infer(model_dir, output, "--input", file).read_text() == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_what_is_done_kept(
  tmp_path, model_dir, file, whole, monkeypatch, number
):
  output = tmp_path / "out.jsonl"
  write = Parts.write

  def then_signal(self, chunk, data):
    write(self, chunk, data)
    os.kill(os.getpid(), number)

  monkeypatch.setattr(Parts, "write", then_signal)
  with pytest.raises(SystemExit) as ended:
    infer(model_dir, output, "--input", file)
  monkeypatch.undo()
  assert ended.value.code == 128 + number
  assert len(list((tmp_path / "out.jsonl.parts").glob("*-*-*"))) == 1
  assert infer(model_dir, output, "--input", file).read_text() == whole


def test_other_settings_do_not_go_on_with_it(
  tmp_path, model_dir, file, monkeypatch, capsys
):
  output = tmp_path / "out.jsonl"
  monkeypatch.setattr(Parts, "write", lambda *_: sys.exit(1))
  with pytest.raises(SystemExit):
    infer(model_dir, output, "--input", file)
  monkeypatch.undo()
  infer(model_dir, output, "--input", file, "--top_k=2", code=2)
  assert "--top_k" in capsys.readouterr().err
  infer(model_dir, output, "--input", file)
  infer(model_dir, output, "--input", file, "--ancestors=none", code=2)
  assert "'true', now 'none'" in capsys.readouterr().err


def test_in_a_pipe_lines_are_the_same(model_dir, file, whole, capsys, monkeypatch):
  with open(file, "rb") as source:
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": source}))
    infer(model_dir, "-", "--input", "-")
  assert capsys.readouterr().out == whole


# ---- Mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (("--mode=generate",), "--mode=generate: is for runs of the objective clm; this"),
    (("--top_k=0",), "--top_k=0: must be from 1 to"),
    (("--top_k=1000000",), "--top_k=1000000: must be from 1 to"),
    (("--mask= ",), "--mask"),
    (("--contextual",), "--contextual: is of no use with --mode=fill"),
    (("--mask=<nowhere>",), "no comment of --input holds '<nowhere>'"),
    (("--batch_size=0",), "--batch_size=0: must be at least 1"),
    (("--split=train",), "only datasets of `commentree build` have splits"),
    (("--output=vectors.npy",), ".npy is for --mode=embed alone"),
    (("--step=7",), "7"),
    (("--gin.MODEL_PARALLEL=64",), "MODEL_PARALLEL = 64: must divide"),
    (("--input", "nowhere.jsonl"), "nowhere.jsonl"),
  ],
)
def test_a_mistake_is_one_line_that_names_it(
  tmp_path, model_dir, file, capsys, flags, said
):
  output = tmp_path / "out.jsonl"
  infer(model_dir, output, "--input", file, *flags, code=2)
  error = capsys.readouterr().err
  assert said in error
  assert error.count("\n") == 1
  assert not (tmp_path / "out.jsonl.parts").exists()


def test_an_output_that_somebody_made_is_not_written_over(
  tmp_path, model_dir, file, capsys
):
  output = tmp_path / "mine.jsonl"
  output.write_text("mine")
  infer(model_dir, output, "--input", file, code=2)
  assert "is there already" in capsys.readouterr().err
  assert output.read_text() == "mine"


def test_another_vocabulary_is_refused(tmp_path, model_dir, file, capsys):
  record = model_dir / "run.json"
  record.write_text(json.dumps({"facts": {"vocabulary": "another"}, "starts": []}))
  infer(model_dir, tmp_path / "out.jsonl", "--input", file, code=2)
  record.unlink()
  assert "another vocabulary" in capsys.readouterr().err


def test_a_tree_of_which_nothing_is_left_is_an_error_in_python(model):
  with pytest.raises(UserError, match="tree 't': no comment is left"):
    model.score({"id": "t", "title": "", "comments": []})


def test_a_text_is_a_post_that_nobody_answered(model):
  text = "so [hop_1] <mask>"
  (answer,) = model.fill(text)
  same = model.fill({"id": "text", "selftext": text, "comments": []})
  assert [answer] == same == model.fill({"id": "text", "selftext": text})
  assert answer["filled"].startswith("so [hop_1] ")
  assert model.fill([text, text]) == [same, same]
  assert model.fill(iter([text])) == [same]
  assert model.fill([]) == []
  assert model.fill("no mask") == [
    {
      "tree": "text",
      "comment": "text",
      "masks": None,
      "filled": None,
      "why": "no mask in it",
    }
  ]
