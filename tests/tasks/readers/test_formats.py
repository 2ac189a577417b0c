"""Every format's reader against a slow one, on made-up and, if there, real files."""

import pathlib
import pickle

import pytest

from commentree.errors import UserError
from commentree.tasks import readers
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing import files
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tests.support.real_data import DATA, REAL
from commentree.tests.support.tasks import slow_reading, written_threads
from commentree.tests.support.tasks.reading import read

DEFAULT = TreeConfig()
NAMES = [format_.name for format_ in readers.FORMATS]


def same_as_slow(name, paths):
  found, read_counts = read(paths)
  threads = slow_reading.READERS[name](paths)
  assert slow_reading.summary(found) == slow_reading.trees(threads)
  comments = sum(len(thread.comments) for thread in threads.values())
  assert read_counts.comments.total() == comments
  assert read_counts.kept == sum(len(tree.comments) - 1 for tree in found)
  missing = sum(read_counts.trees[fate] for fate in comment_tree.NO_POST)
  posts = sum(thread.post_seen for thread in threads.values())
  repeated = read_counts.trees[comment_tree.TREE_DUPLICATE]
  assert read_counts.trees.total() - missing - repeated == posts
  assert read_counts.files == {files.READ: len(paths)}
  for tree in found:
    for comment in tree.comments:
      for span in comment.spans:
        assert 0 <= span.start < span.end <= len(comment.text)
  return found, read_counts


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", NAMES)
def test_made_up_threads_are_read_as_a_slow_reader_reads_them(tmp_path, name, seed):
  paths = written_threads.write(name, tmp_path, seed)
  assert {readers.format_of(path).name for path in paths} == {name}
  same_as_slow(name, paths)


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_as_a_slow_reader_reads_them(tmp_path, name):
  """The shared files where they are; made-up ones elsewhere."""
  paths = [str(p) for pattern in REAL[name] for p in sorted(DATA.glob(pattern))]
  if not paths:
    paths = written_threads.write(name, tmp_path, 99, count=100)
  assert {readers.format_of(path).name for path in paths} == {name}
  found, _ = same_as_slow(name, paths)
  assert found
  if name == "cmv_modes":
    assert {s.label for t in found for c in t.comments for s in c.spans} == {
      "claim",
      "premise",
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_format_is_known_by_its_contents_and_by_no_other_formats(tmp_path, name):
  for path in written_threads.write(name, tmp_path, 5):
    head = files.head(path)
    fits = [f.name for f in readers.FORMATS if f.matches("nameless", head)]
    # Records of many formats could be those of a table; theirs are asked first.
    assert fits in ([name], [name, "table"])


@pytest.mark.parametrize("name", NAMES)
def test_a_format_given_by_name_is_not_judged(tmp_path, name):
  paths = written_threads.write(name, tmp_path, 3)
  by_name, _ = read(paths, name=name)
  assert slow_reading.summary(by_name) == slow_reading.summary(read(paths)[0])
  other = "tree_jsonl" if name != "tree_jsonl" else "pushshift"
  assert slow_reading.summary(read(paths, name=other)[0]) != slow_reading.summary(
    by_name
  )
  with pytest.raises(UserError, match="format 'x': is not known; there are reddit_api"):
    read(paths, name="x")


def test_files_of_all_formats_in_one_folder_are_read_each_as_its_own(tmp_path):
  apart = []
  for number, name in enumerate(NAMES):
    paths = written_threads.write(name, tmp_path / name, number)
    apart += [tree for tree in read(paths)[0]]
  found, read_counts = read(str(tmp_path))
  assert slow_reading.summary(found) == slow_reading.summary(apart)
  assert set(read_counts.files) == {files.READ}


def test_of_a_corpus_the_utterances_are_taken_and_of_other_folders_everything(
  tmp_path,
):
  written_threads.write("convokit", tmp_path / "corpus", 0)
  for name in ("index.json", "corpus.json", "users.json"):
    (tmp_path / "corpus" / name).write_text("{}")
  taken = [pathlib.Path(p).name for p in readers.expand(str(tmp_path / "corpus"))]
  assert taken == ["utterances.jsonl"]
  (tmp_path / "index.json").write_text("{}")
  taken = [pathlib.Path(p).name for p in readers.expand(str(tmp_path))]
  assert taken == ["utterances.jsonl", "index.json"]


def test_formats_can_be_sent_to_other_processes(tmp_path):
  for number, name in enumerate(NAMES):
    paths = written_threads.write(name, tmp_path / name, number)
    for path, format_ in readers.formats_of(paths, DEFAULT).items():
      sent = pickle.loads(pickle.dumps(format_))
      rows = list(sent.rows(path, DEFAULT, ReadCounts()))
      assert rows == list(format_.rows(path, DEFAULT, ReadCounts())) != []


def test_comments_apart_from_their_posts_are_grouped_up_to_a_size(
  tmp_path, monkeypatch
):
  paths = written_threads.write("pushshift", tmp_path, 0)
  monkeypatch.setattr(readers, "_MAX_GROUPED_BYTES", 1000)
  with pytest.raises(UserError, match=r"RC_1.jsonl: .* `commentree build`"):
    read(paths)
