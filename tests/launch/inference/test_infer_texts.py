"""What `fill` and `generate` write, by vocabularies of others' kinds."""

import json

import numpy as np
import pytest

import commentree
from commentree.launch.inference.modes.fill import Fill
from commentree.tasks.config.preprocessing import MarkersConfig
from commentree.tasks.trees import markers
from commentree.tasks.vocabulary import vocabularies
from commentree.tests.support.launch import made_runs
from commentree.tests.support.tasks.vocabulary_fixture import ALL_KINDS, some_texts

TREE = {
  "id": "t",
  "title": "ba <mask> ko",
  "comments": [
    {"id": "a", "parent_id": "t", "body": "[MASK] <mask><mask>, ko"},
    {"id": "b", "parent_id": "a", "body": "https://a.b/<mask>/c ba\n<mask> <mask>."},
  ],
}


@pytest.fixture(scope="module", params=["bert", "byte_fallback"])
def model(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  source = ALL_KINDS[request.param](folder)
  path = folder / f"marked{source.suffix}"
  vocabularies.add_markers(source, path, markers.all_markers(MarkersConfig()))
  trees = folder / "trees.jsonl"
  texts = some_texts(3)
  trees.write_text(json.dumps({**TREE, "title": texts[0]}) + "\n")
  settings = {"MIXTURE_OR_TASK_NAME": "commentree_files", "FILES": str(trees)}
  return commentree.load(made_runs.make(folder, VOCABULARY=str(path), **settings))


def answer(model, monkeypatch, choose):
  """Fills as if `choose`, of the number of the mask, were found to be likeliest."""
  collect = Fill.collect
  tokenizer = model.run.tokenizer

  def chosen(self, arrays, filled):
    collect(self, arrays, filled)
    for document, _ in filled.targets:
      for (comment, number), (ids, shares) in document.found.items():
        likeliest = np.array([tokenizer.piece_to_id(choose(number)), *ids[1:]])
        document.found[comment, number] = likeliest, shares

  monkeypatch.setattr(Fill, "collect", chosen)
  return model.fill(TREE)


def test_tokens_are_written_as_they_read(model, monkeypatch):
  is_bert = model.run.tokenizer.piece_to_id("[MASK]") is not None
  begins, goes_on = ("b", "##a") if is_bert else ("▁b", "a")
  post, first, second = answer(model, monkeypatch, lambda number: begins)
  assert post["filled"] == "ba b ko"
  assert first["filled"] == "[MASK] b b, ko"
  assert second["filled"] == "https://a.b/<mask>/c ba\nb b."
  post, first, second = answer(model, monkeypatch, lambda number: goes_on)
  assert post["filled"] == "baa ko"
  assert first["filled"] == "[MASK]aa, ko"
  assert second["filled"] == "https://a.b/<mask>/c baaa."
  assert post["masks"][0]["candidates"][0]["token"] == goes_on
  assert "cleaning" in second["masks"][0]["why"]


def test_half_a_character_is_not_written(model, monkeypatch):
  if model.run.tokenizer.piece_to_id("<0xC3>") is None:
    pytest.skip("it has no bytes")
  bytes_of = ["<0xC3>", "<0xA9>"]
  post, first, _ = answer(model, monkeypatch, lambda number: bytes_of[number % 2])
  assert first["filled"] == "[MASK]é, ko"
  assert "why" not in first["masks"][0]
  assert post["filled"] == "ba <mask> ko"
  assert "part of a character" in post["masks"][0]["why"]
  assert post["masks"][0]["candidates"][0]["token"] == "<0xC3>"
