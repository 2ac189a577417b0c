"""A URL where a file is wanted is one line, whoever takes it."""

import pytest

from commentree.errors import UserError
from commentree.launch import main
from commentree.paths import check_scheme, open_path
from commentree.tasks.dataset_files import built_dataset
from commentree.tasks.readers.parsing import files
from commentree.tasks.vocabulary import vocabulary_files
from commentree.training.checkpointing import storage

URLS = ("ftp://a.b/c.jsonl", "github://a/b", "hdfs://a/b", "file:///a", "://a")
TAKERS = (
  open_path,
  built_dataset.find,
  lambda url: files.expand(url, (".jsonl",)),
  vocabulary_files.read,
  storage.as_path,
)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("taker", TAKERS, ids=range(len(TAKERS)))
def test_a_url_of_another_kind_is_named_with_what_is_taken(taker, url):
  with pytest.raises(UserError, match="is not supported: download it") as error:
    taker(url)
  assert url in str(error.value)


def test_credentials_in_a_path_are_not_repeated():
  with pytest.raises(UserError) as error:
    check_scheme("s3://me:secret@bucket/run", "FILES")
  assert "secret" not in str(error.value)


def test_local_paths_and_buckets_pass():
  for path in ("a", "/a/b c", "~/a", "a:b", "gs://bucket/a", "s3://bucket/a"):
    check_scheme(path)


@pytest.mark.parametrize(
  "command",
  [
    ("build", "--source=ftp://a.b/c", "--out=made"),
    ("vocab", "--input=ftp://a.b/c", "--output=made.model"),
    ("inspect", "--files=ftp://a.b/c", "--vocabulary=some.model"),
  ],
)
def test_every_verb_that_takes_trees_says_so(command, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert main.main(command) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1
  assert "ftp:// is not supported" in said
