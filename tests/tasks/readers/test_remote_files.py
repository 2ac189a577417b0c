"""Sources by URL are copied whole, once, and read as files of this machine are."""

import functools
import http.server
import pathlib
import sys
import threading

import fsspec
import pytest

from commentree.errors import StorageError, UserError
from commentree.tasks import readers
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing import remote_files
from commentree.tests.support.tasks import building_fixture
from commentree.tests.support.tasks.reading import read_by_id

TREE = b'{"id": "%s", "title": "t", "comments": [{"id": "a", "body": "hello"}]}\n'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(remote_files.time, "sleep", lambda seconds: None)
  return tmp_path / "cache"


@pytest.fixture
def bucket():
  """A folder in memory, as fsspec has it; write files by their paths."""
  storage = fsspec.filesystem("memory")
  storage.store.clear()
  storage.pseudo_dirs[:] = [""]

  def write(**files):
    for name, content in files.items():
      storage.pipe(f"/b/{name}", content)
    return storage

  yield write
  storage.store.clear()


def names(*patterns):
  return sorted(pathlib.Path(path).name for path in readers.expand(patterns))


def test_a_file_a_glob_and_a_folder_stand_for_what_they_would_here(bucket):
  storage = bucket()
  for name in ("x/1.jsonl", "x/2.jsonl.gz", "x/y/3.zst", "x/notes.txt", "x/.4.jsonl"):
    storage.pipe(f"/b/{name}", b"{}")
  assert names("memory://b/x") == ["1.jsonl", "2.jsonl.gz", "3.zst"]
  assert names("memory://b/x/*.txt") == ["notes.txt"]
  assert names("memory://b/**/*.jsonl") == [".4.jsonl", "1.jsonl"]
  assert names("memory://b/x/notes.txt", "memory://b/x/1.jsonl") == [
    "1.jsonl",
    "notes.txt",
  ]


def test_trees_are_read_and_built_from_there(bucket, tmp_path):
  bucket(**{"p.jsonl": TREE % b"p", "q.jsonl": TREE % b"q"})
  found, _ = read_by_id("memory://b", TreeConfig())
  assert sorted(found) == ["p", "q"]
  first, second = (
    building_fixture.build(["memory://b"], tmp_path / "out", BuildConfig())
    for _ in range(2)
  )
  assert not first.already
  assert second.already
  assert [file["name"] for file in first.stats["made_from"]["input"]] == [
    "p.jsonl",
    "q.jsonl",
  ]
  bucket(**{"q.jsonl": TREE % b"other"})
  with pytest.raises(UserError, match=r"q\.jsonl: the file has changed"):
    building_fixture.build(["memory://b"], tmp_path / "out", BuildConfig())


def test_a_file_is_copied_once_and_again_when_it_is_another(bucket, caplog):
  bucket(**{"p.jsonl": TREE % b"p"})
  with caplog.at_level("INFO"):
    (path,) = readers.expand("memory://b/p.jsonl")
    assert readers.expand("memory://b") == [path]
  assert caplog.text.count("copied to") == 1
  assert pathlib.Path(path).read_bytes() == TREE % b"p"
  pathlib.Path(path).write_bytes(b"cut")
  readers.expand("memory://b")
  assert pathlib.Path(path).read_bytes() == TREE % b"p"
  bucket(**{"p.jsonl": TREE % b"z"})  # as long as before
  readers.expand("memory://b")
  assert pathlib.Path(path).read_bytes() == TREE % b"z"


def test_what_lies_beside_a_corpus_comes_along(bucket):
  line = b'{"id": "u", "conversation_id": "u", "speaker": "a", "text": "hm"}\n'
  line += b'{"id": "v", "conversation_id": "u", "speaker": "b", "text": "oh"}\n'
  titles = b'{"u": {"meta": {"title": "page"}}}'
  bucket(**{"utterances.jsonl": line, "conversations.json": titles})
  for pattern in ("memory://b/utterances.jsonl", "memory://b"):
    assert names(pattern) == ["utterances.jsonl"]
    found, _ = read_by_id(pattern, TreeConfig())
    assert found["u"].comments[0].text.startswith("page")


def test_a_file_is_read_where_its_folder_may_not_be_listed(bucket, monkeypatch):
  storage = bucket(**{"p.jsonl": TREE % b"p"})

  def refused(*arguments, **options):
    raise PermissionError("Access Denied")

  monkeypatch.setattr(type(storage), "ls", refused)
  assert names("memory://b/p.jsonl") == ["p.jsonl"]


@pytest.mark.parametrize(
  ("pattern", "says"),
  [
    ("memory://b/none.jsonl", "no such file"),
    ("memory://b/*.none", "no such file"),
    ("memory://nothing", "no such file"),
    ("ftp://a/b.jsonl", r"ftp:// is not supported: .* give gs://, .* or https://"),
    ("https://me:secret@a.b/c", "must not hold credentials"),
  ],
)
def test_what_is_not_there_or_not_supported_is_told_in_a_line(bucket, pattern, says):
  bucket(**{"p.jsonl": TREE % b"p"})
  with pytest.raises(UserError, match=says) as raised:
    readers.expand(pattern)
  assert "\n" not in str(raised.value)
  assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
  ("url", "package"),
  [
    ("s3://b/a.jsonl", "s3fs"),
    ("gs://b/a.jsonl", "gcsfs"),
    ("hf://datasets/a/b/c.jsonl", "huggingface_hub"),
    ("https://a.b/c.jsonl", "aiohttp"),
  ],
)
def test_a_missing_package_is_named_with_the_extra_that_has_it(
  monkeypatch, url, package
):
  for name in [name for name in sys.modules if name.partition(".")[0] == package]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, package, None)
  monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
  known = sys.modules["fsspec.registry"]._registry
  monkeypatch.delitem(known, url.partition("://")[0], raising=False)
  with pytest.raises(UserError, match=rf"is read by {package}, .*commentree\[remote\]"):
    readers.expand(url)


def test_a_connection_that_fails_is_tried_again_and_then_told(bucket, monkeypatch):
  storage = bucket(**{"p.jsonl": TREE % b"p"})
  opened, whole = [], type(storage).open

  def failing(self, path, mode="rb", **options):
    if mode == "rb":
      opened.append(path)
      if len(opened) <= failures:
        raise ConnectionResetError("reset by peer")
    return whole(self, path, mode, **options)

  monkeypatch.setattr(type(storage), "open", failing)
  failures = 2
  assert names("memory://b/p.jsonl") == ["p.jsonl"]
  storage.pipe("/b/q.jsonl", TREE % b"q")
  opened.clear()
  failures = 9
  with pytest.raises(
    UserError, match=r"q\.jsonl: cannot be read \(ConnectionResetError"
  ):
    readers.expand("memory://b/q.jsonl")
  assert len(opened) == 3


def test_a_file_that_comes_in_part_is_no_file(bucket, monkeypatch, cache):
  bucket(**{"p.jsonl": TREE % b"p"})
  monkeypatch.setattr(remote_files, "_blocks", lambda source: [source.read(9)])
  with pytest.raises(UserError, match=r"9 of .* bytes came"):
    readers.expand("memory://b/p.jsonl")
  assert not list(cache.rglob("*.jsonl"))


def test_too_little_room_is_told_before_anything_is_copied(bucket, monkeypatch):
  bucket(**{"p.jsonl": TREE % b"p"})
  usage = remote_files.shutil.disk_usage("/")
  monkeypatch.setattr(
    remote_files.shutil, "disk_usage", lambda folder: usage._replace(free=9)
  )
  with pytest.raises(StorageError, match=r"are to be copied to .*XDG_CACHE_HOME"):
    readers.expand("memory://b/p.jsonl")


def test_a_file_of_a_web_server_is_read_and_its_query_is_no_glob(tmp_path):
  (tmp_path / "served").mkdir()
  (tmp_path / "served" / "p.jsonl").write_bytes(TREE % b"p")
  handler = functools.partial(
    http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served")
  )
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    found, _ = read_by_id(f"{url}/p.jsonl?download=true", TreeConfig())
    with pytest.raises(UserError, match="no such file"):
      readers.expand(f"{url}/none.jsonl")
    server.shutdown()
  assert list(found) == ["p"]
