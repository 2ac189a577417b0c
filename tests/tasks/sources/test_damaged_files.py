"""Damage to files of datasets and vocabularies that random mutations seldom make."""

import json

import pytest

from commentree.errors import UserError
from commentree.tests.fuzz.surfaces import SURFACES


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_that_is_infinite_is_one_line(tmp_path, number):
  surface = SURFACES["built_dataset_dataset_info_json"]
  for name in ("seeds", "check"):
    (tmp_path / name).mkdir()
  info = json.loads(surface.seeds(tmp_path / "seeds")[0])
  info["splits"][0]["shardLengths"] = ["N"]
  text = json.dumps(info).replace('"N"', number)
  with pytest.raises(UserError, match="not as TFDS writes it"):
    surface.check(tmp_path / "check")(text.encode())


def test_a_vocabulary_without_the_unknown_token_it_names_is_refused(tmp_path):
  surface = SURFACES["tokenizer_json_wordpiece"]
  for name in ("seeds", "check"):
    (tmp_path / name).mkdir()
  document = json.loads(surface.seeds(tmp_path / "seeds")[0])
  document["model"]["unk_token"] = "[NOWHERE]"
  with pytest.raises(UserError, match=r"is not a SentencePiece model or tokenizer\.j"):
    surface.check(tmp_path / "check")(json.dumps(document).encode())


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "a\nb", "a/b", ".."])
def test_a_split_whose_name_is_no_name_of_a_file_is_one_line(tmp_path, name):
  surface = SURFACES["built_dataset_dataset_info_json"]
  for folder in ("seeds", "check"):
    (tmp_path / folder).mkdir()
  info = json.loads(surface.seeds(tmp_path / "seeds")[0])
  info["splits"][0]["name"] = name
  if name == "..":
    info["splits"][0]["filepathTemplate"] = "{SPLIT}"
  with pytest.raises(UserError, match="is no name of a file") as refusal:
    surface.check(tmp_path / "check")(json.dumps(info).encode())
  assert "\n" not in str(refusal.value)


def test_another_format_of_files_is_named_in_one_line(tmp_path):
  surface = SURFACES["built_dataset_dataset_info_json"]
  for folder in ("seeds", "check"):
    (tmp_path / folder).mkdir()
  info = json.loads(surface.seeds(tmp_path / "seeds")[0]) | {"fileFormat": "x\n"}
  with pytest.raises(UserError, match=r"holds 'x\\n' files; only tfrecord is read"):
    surface.check(tmp_path / "check")(json.dumps(info).encode())


@pytest.mark.parametrize(
  ("kind", "change"),
  [
    # tokenizers panics: that is no exception that `except Exception` takes.
    ("byte_bpe", {"continuing_subword_prefix": "#" * 99}),
    ("wordpiece", {"vocab": {"<unk>": 0, "a": 2**31}}),
  ],
)
def test_a_vocabulary_that_stops_its_library_or_takes_memory_is_refused(
  tmp_path, kind, change
):
  surface = SURFACES[f"tokenizer_json_{kind}"]
  for name in ("seeds", "check"):
    (tmp_path / name).mkdir()
  document = json.loads(surface.seeds(tmp_path / "seeds")[0])
  document["model"] |= change
  with pytest.raises(UserError, match=r"is not a SentencePiece model or tokenizer\.j"):
    surface.check(tmp_path / "check")(json.dumps(document).encode())
