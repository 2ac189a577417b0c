"""What is said of folders and files that are no vocabulary, or a part of one."""

import json

import pytest

from commentree.errors import UserError
from commentree.tasks.vocabulary import vocabularies
from commentree.tasks.vocabulary.vocabularies import Tokenizer
from commentree.tests.support.tasks.vocabulary_fixture import like_roberta, like_t5

PARTS = {
  "vocab.json": json.dumps({"a": 0, "b": 1}),
  "merges.txt": "#version: 0.2\na b\n",
  "vocab.txt": "[PAD]\n[UNK]\na\n",
}


def said_of(path):
  """The line that opening and adding markers both end with."""
  with pytest.raises(UserError) as opened:
    Tokenizer(lambda: path).check()
  with pytest.raises(UserError) as added:
    vocabularies.add_markers(path, path.parent / "out" / "v", ["<mask>"])
  assert str(opened.value) == str(added.value)
  assert "\n" not in str(opened.value)
  assert str(opened.value).startswith(f"{path}: ")
  return str(opened.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_slow_tokenizer_says_how_to_get_the_whole(name, tmp_path):
  (tmp_path / name).write_text(PARTS[name])
  said = said_of(tmp_path / name)
  assert "only a part" in said
  assert f'from_pretrained("{tmp_path}").save_pretrained("{tmp_path}")' in said
  assert "commentree vocab" not in said
  like_roberta(tmp_path / "tokenizer.json")
  assert f"give {tmp_path / 'tokenizer.json'}" in said_of(tmp_path / name)


@pytest.mark.parametrize("name", PARTS)
def test_a_folder_of_a_slow_tokenizer_says_how_to_get_the_whole(name, tmp_path):
  folder = tmp_path / "roberta-base"
  folder.mkdir()
  (folder / name).write_text(PARTS[name])
  said = said_of(folder)
  assert f"has no tokenizer.json, only {name}" in said
  assert f'from_pretrained("{folder}")' in said
  assert "commentree vocab" not in said


@pytest.mark.parametrize("missing", ["config.json", "tokenizer_config.json"])
def test_settings_that_a_conversion_needs_are_named_where_they_are_missing(
  missing, tmp_path
):
  """One tells transformers the kind of tokenizer, the other whether case stays."""
  (tmp_path / "vocab.txt").write_text(PARTS["vocab.txt"])
  both = "the checkpoint's config.json and tokenizer_config.json there"
  assert both in said_of(tmp_path)
  for name in {"config.json", "tokenizer_config.json"} - {missing}:
    (tmp_path / name).write_text("{}")
  assert f"put the checkpoint's {missing} there, then write one" in said_of(tmp_path)
  (tmp_path / missing).write_text("{}")
  assert "put the" not in said_of(tmp_path)


def test_a_list_of_tokens_is_told_by_its_content(tmp_path):
  path = tmp_path / "tokens.json"
  path.write_text(PARTS["vocab.json"])
  assert "only a part" in said_of(path)


def test_a_folder_says_which_of_its_files_to_give(tmp_path):
  folder = tmp_path / "checkpoint"
  folder.mkdir()
  assert "a folder without a vocabulary" in said_of(folder)
  like_t5(folder / "mine.model")
  assert f"give the file {folder / 'mine.model'}" in said_of(folder)
  (folder / "vocab.json").write_text(PARTS["vocab.json"])
  like_roberta(folder / "tokenizer.json")
  assert f"give the file {folder / 'tokenizer.json'}" in said_of(folder)


@pytest.mark.parametrize(
  "content", ["{}", "[]", '{"a": "b"}', '{"model": {}}', "notes"]
)
def test_another_file_is_refused(content, tmp_path):
  (tmp_path / "x").write_text(content)
  assert "is not a SentencePiece model or tokenizer.json" in said_of(tmp_path / "x")
