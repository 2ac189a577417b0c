"""`commentree vocab`, from tree files to a model file."""

import collections
import gzip
import json
import subprocess
import sys

import pytest

from commentree.launch.main import main
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.config.preprocessing import CleaningConfig, TreeConfig
from commentree.tasks.sources import generated, vocabulary_training_text
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tasks.vocabulary.seqio_vocabulary import TokenizerVocabulary
from commentree.tasks.vocabulary.vocabularies import Tokenizer


def record(tree):
  """A tree in the form of tree JSONL."""
  post, *replies = tree.comments
  return {
    "id": post.id,
    "title": "A title & more",
    "selftext": post.text,
    "author": post.author,
    "comments": [
      {
        "id": c.id,
        "parent_id": tree.comments[c.parent].id,
        "author": c.author,
        "body": c.text.replace("[fact]", "http://example.org/x"),
        "created_utc": c.created_utc,
      }
      for c in replies
    ],
  }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("trees")
  config = GeneratedTreesConfig(num_filler_words=1000, zipf_exponent=0.3)
  lines = [
    json.dumps(record(generated.generate_tree(config, 0, i))) + "\n" for i in range(60)
  ]
  with gzip.open(folder / "a.jsonl.gz", "wt") as file:
    file.writelines(lines[:30])
  (folder / "b.jsonl").write_text("".join(lines[30:]))
  return folder


def test_a_vocabulary_is_trained_from_a_folder(folder, tmp_path, capsys):
  flags = ["--size=300", "--max_users=7", "--output", str(tmp_path / "v")]
  assert main(["vocab", "--input", str(folder), *flags]) == 0
  out, err = capsys.readouterr()
  assert out.strip() == str(tmp_path / "v.model")
  assert "tokens a word" in err
  assert "unknown" in err
  tokenizer = Tokenizer(lambda: tmp_path / "v.model", [f"<user_{i}>" for i in range(7)])
  tokenizer.check()
  assert len(tokenizer.maskable) == 300
  assert TokenizerVocabulary(tokenizer).tokenizer.piece_to_id("<user_7>") == 2


def test_the_output_may_be_given_with_or_without_its_ending(folder, tmp_path):
  source = str(folder / "b.jsonl")
  for name in ("x", "x.model"):
    flags = ["--size=300", "--output", str(tmp_path / name)]
    assert main(["vocab", "--input", source, *flags]) == 0
  assert sorted(p.name for p in tmp_path.iterdir()) == ["x.model", "x.model.json"]


def test_size_kind_and_byte_fallback_reach_the_training(folder, tmp_path):
  flags = ["--size=520", "--type=bpe", "--byte_fallback", f"--output={tmp_path / 'v'}"]
  assert main(["vocab", f"--input={folder}", *flags]) == 0
  record = json.loads((tmp_path / "v.model.json").read_text())
  assert record["size"] == 520
  assert record["model_type"] == "bpe"
  assert record["byte_fallback"] is True


def test_the_draw_of_comments_follows_the_seed(folder, tmp_path):
  def train(name, seed):
    output = tmp_path / f"{name}.model"
    flags = ["--size=200", "--max_comments=200", f"--seed={seed}", "--type=bpe"]
    assert main(["vocab", f"--input={folder}", f"--output={output}", *flags]) == 0
    assert json.loads((tmp_path / f"{name}.model.json").read_text())["texts"] == 200
    return output.read_bytes()

  assert train("a", 0) == train("b", 0) != train("c", 1)


def last_line(capsys):
  return capsys.readouterr().err.strip().splitlines()[-1]


def test_another_vocabulary_is_not_written_over_before_anything_is_read(
  folder, tmp_path, capsys
):
  source = tmp_path / "trees.jsonl"
  source.write_bytes((folder / "b.jsonl").read_bytes())
  command = ["vocab", f"--input={source}", f"--output={tmp_path / 'v'}"]
  assert main([*command, "--size=200"]) == 0
  first = (tmp_path / "v.model").read_bytes()
  assert main([*command, "--size=200"]) == 0  # the same is made again
  moved = source.rename(tmp_path / "moved.jsonl")
  assert main([*command, "--size=210"]) == 2
  assert "v.model: is there already, with other size (200, now 210)" in last_line(
    capsys
  )
  for other in (["--seed=1"], ["--max_users=3"]):
    assert main([*command, "--size=200", *other]) == 2
    assert "--overwrite" in last_line(capsys)
  assert main(["vocab", f"--input={moved}", *command[2:], "--size=200"]) == 2
  assert "other input" in last_line(capsys)
  source.write_text("".join(moved.read_text().splitlines(keepends=True)[:20]))
  assert main([*command, "--size=200"]) == 2
  assert "is there already and is another" in last_line(capsys)
  assert (tmp_path / "v.model").read_bytes() == first
  assert main([*command, "--size=200", "--overwrite"]) == 0
  assert (tmp_path / "v.model").read_bytes() != first


def test_markers_are_not_added_over_another_vocabulary(folder, tmp_path, capsys):
  for name, size in (("a", 200), ("b", 210)):
    flags = [f"--size={size}", f"--output={tmp_path / name}", "--max_users=1"]
    assert main(["vocab", f"--input={folder}", *flags]) == 0
  grown = f"--output={tmp_path / 'grown'}"
  assert main(["vocab", f"--from={tmp_path / 'a.model'}", grown]) == 0
  assert main(["vocab", f"--from={tmp_path / 'a.model'}", grown]) == 0
  kept = (tmp_path / "grown.model").read_bytes()
  assert main(["vocab", f"--from={tmp_path / 'b.model'}", grown]) == 2
  assert "grown.model: is there already" in last_line(capsys)
  assert (tmp_path / "grown.model").read_bytes() == kept
  assert main(["vocab", f"--from={tmp_path / 'b.model'}", grown, "--overwrite"]) == 0
  assert (tmp_path / "grown.model").read_bytes() != kept


def test_texts_are_cleaned_and_without_authors(folder):
  read_counts = ReadCounts()
  texts = list(
    vocabulary_training_text.iter_texts(
      str(folder), TreeConfig(), CleaningConfig(), read_counts
    )
  )
  assert len(texts) > 500
  assert any("<url>" in text for text in texts)
  assert not any("http" in text or "<user_" in text for text in texts)
  assert any("A title & more" in text for text in texts)


def test_a_sample_holds_every_text_equally_often():
  counts = collections.Counter()
  for seed in range(2000):
    drawn, seen = vocabulary_training_text.sample((str(i) for i in range(10)), 3, seed)
    assert seen == 10
    assert len(set(drawn)) == 3
    counts.update(drawn)
  assert len(counts) == 10
  assert all(500 < count < 700 for count in counts.values())


def test_a_sample_larger_than_the_stream_is_all_of_it_in_order():
  assert vocabulary_training_text.sample(iter("abc"), 5, 0) == (["a", "b", "c"], 3)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--input=nowhere.jsonl"], "nowhere.jsonl"),
    (["--input={folder}", "--size=100000"], "too large"),
    (["--input={folder}", "--size=3"], "size = 3"),
    (["--input={folder}", "--max_comments=0"], "--max_comments=0"),
    (["--input={folder}", "--max_users=-1"], "max_users = -1"),
    (["--input={empty}"], "no text"),
  ],
)
def test_a_user_s_mistake_is_one_line_and_exit_code_2(
  folder, tmp_path, capsys, flags, message
):
  empty = tmp_path / "empty.jsonl"
  empty.write_text('{"id": "x", "title": "", "selftext": "", "comments": []}\n')
  flags = [flag.format(folder=folder, empty=empty) for flag in flags]
  assert main(["vocab", *flags, f"--output={tmp_path / 'v'}"]) == 2
  last = capsys.readouterr().err.strip().splitlines()[-1]
  assert last.startswith("commentree: ")
  assert message in last
  assert not (tmp_path / "v.model").exists()


def test_help_shows_examples_at_once():
  command = [sys.executable, "-m", "commentree.launch.commands.vocab", "--help"]
  done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
  assert "examples:" in done.stdout
  assert "--max_comments" in done.stdout
