import bz2
import gzip
import json
import logging
import lzma
import os
import pathlib
import random
import subprocess
import sys
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks import readers
from commentree.tasks.config.preprocessing import CleaningConfig, TreeConfig
from commentree.tasks.readers.parsing import files, json_lines
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tests.support.real_data import DATA
from commentree.tests.support.tasks import reading

DEFAULT = TreeConfig()


def line(number, comments=3, text="some text"):
  body = [
    {"id": f"{number}.{i}", "parent_id": str(number), "author": "ann", "body": text}
    for i in range(comments)
  ]
  post = {"id": str(number), "title": "t", "selftext": None, "author": None}
  return json.dumps({**post, "comments": body}).encode()


def lines(*numbers):
  return b"".join(line(number) + b"\n" for number in numbers)


def zstd_multi_frame(data):
  half = len(data) // 2
  compress = zstandard.ZstdCompressor().compress
  skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
  return compress(data[:half]) + skippable + compress(data[half:])


def zstd_long(data):
  parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
  stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
  return stream.compress(data) + stream.flush()


WRAPPERS = {
  "plain": bytes,
  "gzip": gzip.compress,
  "two gzip members": lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:]),
  "bzip2": bz2.compress,
  "xz": lzma.compress,
  "zstd": zstandard.ZstdCompressor().compress,
  "zstd frames": zstd_multi_frame,
  "zstd with a long window": zstd_long,
}


def write(folder, name, content):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
  return str(path)


def read(patterns, config=DEFAULT):
  found, read_counts = reading.read_by_id(patterns, config)
  assert read_counts.kept == 3 * len(found)
  return list(found), read_counts


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.zst", "a"])
def test_files_are_read_whatever_their_compression_or_name(tmp_path, wrapper, name):
  path = write(tmp_path, name, WRAPPERS[wrapper](lines(1, 2, 3)))
  found, read_counts = read(path)
  assert found == ["1", "2", "3"]
  assert read_counts.files == {files.READ: 1}
  assert read_counts.trees == {comment_tree.KEPT: 3}


def test_files_globs_and_folders_are_read_once_each_in_order_of_name(tmp_path):
  write(tmp_path, "b.jsonl", lines(2))
  write(tmp_path, "a.jsonl.gz", gzip.compress(lines(1)))
  write(tmp_path, "sub/c.ndjson.zst", zstandard.ZstdCompressor().compress(lines(3)))
  write(tmp_path, "RC_2005-12.xz", lzma.compress(lines(0)))
  write(tmp_path, "README.md", b"not a tree")
  write(tmp_path, "notes.tar.gz", b"not a tree")
  write(tmp_path, ".hidden.jsonl", lines(9))
  assert read(str(tmp_path))[0] == ["0", "1", "2", "3"]
  assert read(str(tmp_path / "*.jsonl*"))[0] == ["1", "2"]
  assert read(str(tmp_path / "**" / "*.ndjson.zst"))[0] == ["3"]
  both = [str(tmp_path / "b.jsonl"), str(tmp_path / "*.gz"), str(tmp_path / "b.jsonl")]
  assert read(both)[0] == ["1", "2"]


def test_a_name_with_glob_characters_in_it_is_a_name_first(tmp_path):
  path = write(tmp_path, "a[1].jsonl", lines(1))
  assert read(path)[0] == ["1"]


def test_a_pattern_that_matches_nothing_is_said_before_anything_is_read(tmp_path):
  write(tmp_path, "a.txt", b"")
  good = write(tmp_path, "sub/a.jsonl", lines(1))
  for bad, words in [
    (tmp_path / "missing.jsonl", "check the path"),
    (tmp_path / "*.jsonl", "check the path"),
  ]:
    with pytest.raises(UserError, match=words):
      next(readers.iter_trees([good, str(bad)], TreeConfig(), ReadCounts()))
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=r"\.jsonl.*in this folder"):
    readers.expand(str(tmp_path / "empty"))


def test_pipes_and_links_to_nothing_are_left_out_with_a_warning(tmp_path, caplog):
  (tmp_path / "a.jsonl").write_text("{}\n")
  (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
  os.mkfifo(tmp_path / "c.jsonl")
  (tmp_path / "d.jsonl").symlink_to(tmp_path / "nothing")
  for pattern in (tmp_path, tmp_path / "*.jsonl"):
    caplog.clear()
    found = readers.expand(str(pattern))
    assert found == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert f"{pattern}: 2 files were left out" in caplog.text


@pytest.mark.parametrize("name", ["c.jsonl", "/dev/null"])
def test_a_pipe_given_by_name_is_refused(tmp_path, name):
  os.mkfifo(tmp_path / "c.jsonl")
  with pytest.raises(UserError, match="is no regular file; pipes"):
    readers.expand(str(tmp_path / name))


@pytest.mark.parametrize(
  ("bad", "fate"),
  [
    (b"{not json", json_lines.BAD_JSON),
    (b'{"id": "1", "comments": [', json_lines.BAD_JSON),
    (b"[" * 100_000, json_lines.BAD_JSON),
    (b'{"id": ' + b"9" * 5000 + b"}", json_lines.BAD_JSON),
    (b"\x00\x01\x02", json_lines.BAD_JSON),
    (b"[1, 2]", comment_tree.TREE_NOT_OBJECT),
    (b'"text"', comment_tree.TREE_NOT_OBJECT),
    (b"null", comment_tree.TREE_NOT_OBJECT),
    (b"NaN", comment_tree.TREE_NOT_OBJECT),
    (b'{"id": "c1", "body": "a comment, not a tree"}', comment_tree.TREE_NO_LIST),
  ],
)
def test_a_bad_line_is_counted_and_the_next_one_read(tmp_path, bad, fate):
  path = write(tmp_path, "a.jsonl", line(1) + b"\n" + bad + b"\n" + line(2))
  found, read_counts = read(path)
  assert found == ["1", "2"]
  assert read_counts.trees == {comment_tree.KEPT: 2, fate: 1}


def test_empty_lines_line_ends_of_dos_and_byte_order_marks_are_no_matter(tmp_path):
  content = b"\xef\xbb\xbf" + line(1) + b"\r\n\r\n  \n" + line(2) + b"\r\n"
  found, read_counts = read(write(tmp_path, "a.jsonl", content))
  assert found == ["1", "2"]
  assert read_counts.trees == {comment_tree.KEPT: 2}


def test_invalid_utf8_is_mended_and_counted(tmp_path):
  content = line(1, text="caf__").replace(b"__", b"\xe9") + b"\n"
  read_counts = ReadCounts()
  (tree,) = readers.iter_trees(
    write(tmp_path, "a.jsonl", content), TreeConfig(), read_counts
  )
  assert tree.comments[1].text == "caf\ufffd"
  assert read_counts.repaired == {json_lines.REPAIRED_UTF8: 1}


def test_empty_files_are_counted(tmp_path):
  found, read_counts = read(write(tmp_path, "a.jsonl.gz", b""))
  assert found == []
  assert read_counts.files == {files.EMPTY: 1}


@pytest.mark.parametrize("wrapper", [w for w in WRAPPERS if w != "plain"])
def test_of_a_file_that_is_cut_off_what_comes_before_is_read(tmp_path, wrapper, caplog):
  many = b"".join(line(i, text=f"{i * 7919:x}" * 50) + b"\n" for i in range(2000))
  whole = WRAPPERS[wrapper](many)
  path = write(tmp_path, "a", whole[: len(whole) * 9 // 10])
  good = write(tmp_path, "b", lines(9999))
  with caplog.at_level(logging.WARNING):
    found, read_counts = read([path, good])
  assert found[:-1] == [str(i) for i in range(len(found) - 1)]
  assert len(found) > 900
  assert found[-1] == "9999"
  assert read_counts.files == {files.TRUNCATED: 1, files.READ: 1}
  assert f"{path}: is cut off" in caplog.text


def test_of_a_damaged_file_what_comes_before_is_read(tmp_path, caplog):
  good = zstandard.ZstdCompressor().compress(lines(1, 2))
  damaged = bytearray(zstandard.ZstdCompressor().compress(lines(*range(3, 300))))
  half = len(damaged) // 2
  damaged[half:] = b"\xff" * (len(damaged) - half)
  found, read_counts = read(write(tmp_path, "a", good + damaged))
  assert found[:2] == ["1", "2"]
  assert read_counts.files == {files.DAMAGED: 1}
  assert "is damaged" in caplog.text


def test_a_last_line_is_read_though_its_end_and_the_checksum_are_missing(tmp_path):
  whole = bytearray(gzip.compress(lines(1, 2) + line(3)))
  whole[-8:-4] = b"abcd"  # the checksum
  found, read_counts = read(write(tmp_path, "a", bytes(whole)))
  assert found == ["1", "2", "3"]
  assert read_counts.files == {files.DAMAGED: 1}


def test_a_file_that_vanishes_is_counted(tmp_path):
  path = write(tmp_path, "b.jsonl", lines(2))
  write(tmp_path, "a.jsonl", lines(1))
  read_counts = ReadCounts()
  stream = readers.iter_trees(str(tmp_path), TreeConfig(), read_counts)
  assert next(stream).id == "1"
  pathlib.Path(path).unlink()
  assert list(stream) == []
  assert read_counts.files == {files.READ: 1, files.UNREADABLE: 1}


def test_a_line_too_long_is_skipped_and_the_next_one_read(tmp_path):
  long = line(2, text="x" * 2_000_000)
  content = lines(1) + long + b"\n" + lines(3) + long
  path = write(tmp_path, "a.jsonl", content)
  found, read_counts = read(path, TreeConfig(max_line_bytes=1_000_000))
  assert found == ["1", "3"]
  assert read_counts.trees == {comment_tree.KEPT: 2, files.LINE_TOO_LONG: 2}


@pytest.mark.long
@pytest.mark.parametrize("wrapper", ["plain", "gzip", "zstd"])
def test_memory_does_not_grow_with_a_file_nor_with_a_line_too_long(tmp_path, wrapper):
  def peak(count, config):
    content = line(count, text="x" * 1_000 * count) + b"\n"
    noise = random.Random(0)
    content += b"".join(
      line(i, text=noise.randbytes(50).hex()) + b"\n" for i in range(count)
    )
    path = write(tmp_path, "a", WRAPPERS[wrapper](content))
    del content
    tracemalloc.start()
    found = sum(1 for _ in readers.iter_trees(path, config, ReadCounts()))
    assert found == count
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return used

  config = TreeConfig(max_line_bytes=100_000)
  peak(1_500, config)  # imports
  small = peak(1_500, config)
  assert peak(6_000, config) < 1.5 * small


@given(st.binary(max_size=200))
def test_any_bytes_have_a_fate(tmp_path_factory, content):
  path = write(tmp_path_factory.getbasetemp(), "any", content)
  read_counts = ReadCounts()
  assert list(readers.iter_trees(path, TreeConfig(), read_counts)) == []
  assert read_counts.files.total() == 1
  path = write(tmp_path_factory.getbasetemp(), "any", b"\x1f\x8b" + content)
  assert list(readers.iter_trees(path, TreeConfig(), read_counts)) == []
  path = write(tmp_path_factory.getbasetemp(), "any", b"\x28\xb5\x2f\xfd" + content)
  assert list(readers.iter_trees(path, TreeConfig(), read_counts)) == []
  assert read_counts.files.total() == 3


def test_real_trees_are_read_and_every_comment_accounted_for(tmp_path):
  """The shared sample where it is; a made-up one of the same form elsewhere."""
  path = DATA / "4forums.jsonl.gz"
  if not path.exists():
    path = pathlib.Path(write(tmp_path, "a.jsonl", lines(*range(50))))
  with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
    raw = [json.loads(stream.readline()) for _ in range(50)]
    rest = sum(len(json.loads(entry)["comments"]) for entry in stream)
  read_counts = ReadCounts()
  found = {t.id: t for t in readers.iter_trees(str(path), TreeConfig(), read_counts)}
  assert read_counts.comments.total() == rest + sum(len(r["comments"]) for r in raw)
  for entry in raw:
    if not entry["comments"]:
      assert entry["id"] not in found
      continue
    comments = {c["id"]: c for c in entry["comments"] if c["body"].strip()}
    tree = found[entry["id"]]
    assert {c.id for c in tree.comments[1:]} == set(comments)
    for comment in tree.comments[1:]:
      assert comment.text == comments[comment.id]["body"]
      parent = comments[comment.id]["parent_id"]
      assert tree.comments[comment.parent].id == parent or parent not in comments


def test_settings_are_imported_without_anything_heavy():
  code = (
    "import sys, commentree.tasks.config.preprocessing, commentree.tasks.readers,"
    " commentree.tasks.trees.cleaning, commentree.tasks.trees.markers;"
    " print([m for m in ('numpy', 'jax', 'tensorflow', 'seqio', 'rich', 'zstandard')"
    " if m in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "[]"
  assert CleaningConfig().urls
