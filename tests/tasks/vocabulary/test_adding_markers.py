"""Markers added to a vocabulary of others', whose own tokens stay as they were."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.launch.main import main
from commentree.tasks.config.preprocessing import CleaningConfig, MarkersConfig
from commentree.tasks.trees import cleaning, markers
from commentree.tasks.vocabulary import backend_kinds, vocabularies, vocabulary_files
from commentree.tasks.vocabulary.vocabularies import Tokenizer
from commentree.tests.support.tasks.vocabulary_fixture import (
  MAKERS,
  plain_ids,
  some_texts,
)

MARKERS = markers.all_markers(MarkersConfig(max_users=12))
KINDS = tuple(MAKERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("theirs")


@pytest.fixture(scope="module")
def ours(theirs, folder):
  """Tokenizers of the extended vocabularies."""
  extended = {}
  for kind, source in theirs.items():
    path = folder / f"with_markers_{source.name}"
    vocabularies.add_markers(source, path, MARKERS)
    extended[kind] = Tokenizer(lambda path=path: path, MARKERS)
  return extended


@pytest.mark.parametrize("kind", KINDS)
def test_every_old_token_keeps_its_id_and_markers_come_behind(kind, theirs, ours):
  before = backend_kinds.open_encoder(theirs[kind].read_bytes(), theirs[kind])
  after = ours[kind]
  pieces = [before.id_to_piece(i) for i in range(before.size)]
  assert [after.id_to_piece(i) for i in range(before.size)] == pieces
  new = [after.id_to_piece(i) for i in range(before.size, after.vocab_size)]
  has_mask = kind in ("roberta", "bert")
  assert new == (MARKERS[1:] if has_mask else MARKERS)


def test_special_ids_are_those_of_the_vocabulary(theirs, ours):
  def ids(kind):
    one = ours[kind]
    return one.pad_id, one.bos_id, one.eos_id, one.unk_id, one.mask_id

  size = len(json.loads(theirs["roberta"].read_text())["model"]["vocab"])
  assert ids("roberta") == (1, 0, 2, 3, size)
  assert ids("bert") == (0, 5, 6, 4, 7)
  assert ids("t5") == (0, None, 1, 2, 120)
  unmaskable = np.flatnonzero(~ours["bert"].maskable)
  assert unmaskable.tolist() == [*range(8), *range(200, 200 + len(MARKERS) - 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_without_markers_encode_as_before(kind, theirs, ours):
  odd = ["", "Été, 漢字!", "a < b > c", "x" * 300, "ba\n\n ko", "(ba) [ko] {de}", "…ﬁ"]
  texts = [*some_texts(50, seed=7), *odd]
  encoded = [ids.tolist() for ids in ours[kind].encode_batch(texts)]
  assert encoded == plain_ids(theirs[kind], texts)


@given(text=st.text(st.sampled_from("bako <>[]_user0123m.,/sk漢é\u3000\n")))
@pytest.mark.parametrize("kind", KINDS)
def test_no_text_of_a_user_s_becomes_a_marker_or_special_token(
  kind, theirs, ours, text
):
  clean = cleaning.clean_text(text, CleaningConfig())
  tokenizer = ours[kind]
  allowed = {tokenizer.piece_to_id(m) for m in MARKERS if m in clean}
  special = set(np.flatnonzero(~tokenizer.maskable)) - {tokenizer.unk_id} - allowed
  (ids,) = tokenizer.encode_batch([clean])
  assert not special & set(ids.tolist())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
  "written", ["[MASK]", "x[SEP]y", "</s>", "<mask>", "<user_0>", "<url>", "＜url＞"]
)
def test_what_users_write_like_a_special_token_is_text(kind, ours, written):
  tokenizer = ours[kind]
  clean = cleaning.clean_text(f"ba {written} ko", CleaningConfig())
  (ids,) = tokenizer.encode_batch([clean])
  known = set(ids.tolist()) - {tokenizer.unk_id}
  assert tokenizer.maskable[list(known)].all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_marker_is_one_token_wherever_it_stands(kind, ours):
  tokenizer = ours[kind]
  for marker in MARKERS[1:]:
    token = tokenizer.piece_to_id(marker)
    for text in ("{0} ba", "ba {0} ko", "ba{0}ko", "ba.{0}", "{0}{0}", "ba ({0})"):
      text = text.format(marker)
      (ids,) = tokenizer.encode_batch([text])
      assert ids.tolist().count(token) == text.count(marker)
      others = set(ids.tolist()) - {token, tokenizer.unk_id}
      pieces = [tokenizer.id_to_piece(i) for i in others]
      assert not set("".join(pieces)) & set("<>_"), (text, pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_a_space_in_front_of_a_marker_is_no_token(kind, ours):
  spaced, close = ours[kind].encode_batch(["ba <url> <unu> ko", "ba<url><unu> ko"])
  assert spaced.tolist() == close.tolist()
  assert len(spaced) == len(ours[kind].encode_batch(["ba ko"])[0]) + 2


@pytest.mark.parametrize("kind", KINDS)
def test_adding_again_adds_nothing(kind, ours, tmp_path):
  path = tmp_path / "again"
  assert vocabularies.add_markers(ours[kind].path, path, MARKERS) == []
  texts = [*some_texts(9, seed=3), "<user_0> ba <url>"]
  again = Tokenizer(lambda: path, MARKERS)
  assert [i.tolist() for i in again.encode_batch(texts)] == [
    i.tolist() for i in ours[kind].encode_batch(texts)
  ]


def test_markers_that_others_added_as_special_tokens_are_still_found(theirs, tmp_path):
  document = json.loads(theirs["roberta"].read_text())
  size = 1 + max(token["id"] for token in document["added_tokens"])
  document["added_tokens"] += [
    {
      "id": size + i,
      "content": marker,
      "single_word": True,
      "lstrip": False,
      "rstrip": False,
      "normalized": True,
      "special": True,
    }
    for i, marker in enumerate(MARKERS[1:])
  ]
  path = tmp_path / "tokenizer.json"
  path.write_text(json.dumps(document))
  tokenizer = Tokenizer(lambda: path, MARKERS)
  (ids,) = tokenizer.encode_batch(["ba<user_3> ko"])
  assert size + MARKERS.index("<user_3>") - 1 in ids.tolist()


def test_ids_with_gaps_are_refused(theirs, tmp_path):
  document = json.loads(theirs["bert"].read_text())
  document["model"]["vocab"]["far"] = 9999
  path = tmp_path / "gaps.json"
  path.write_text(json.dumps(document))
  with pytest.raises(UserError, match=r"gaps\.json: the ids of its .* have gaps"):
    vocabularies.add_markers(path, tmp_path / "out.json", MARKERS)
  assert not (tmp_path / "out.json").exists()


def test_a_change_of_old_tokens_is_refused(theirs, tmp_path, monkeypatch):
  from commentree.tasks.vocabulary import hugging_face_backend

  def shifting(content, markers, sentinels):
    document = json.loads(content)
    vocab = document["model"]["vocab"]
    words = list(vocab)
    vocab[words[-1]], vocab[words[-2]] = vocab[words[-2]], vocab[words[-1]]
    return json.dumps(document).encode(), []

  monkeypatch.setattr(hugging_face_backend, "add_markers", shifting)
  with pytest.raises(UserError, match="would change the ids"):
    vocabularies.add_markers(theirs["bert"], tmp_path / "out.json", MARKERS)


def test_a_model_without_markers_is_refused_with_the_command_that_adds_them(theirs):
  with pytest.raises(UserError, match=r"lacks 18 marker tokens.*vocab --from="):
    Tokenizer(lambda: theirs["t5"], MARKERS).check()
  with pytest.raises(UserError, match="lacks 17 marker tokens, the first <url>"):
    Tokenizer(lambda: theirs["bert"], MARKERS).check()


@pytest.mark.parametrize("kind", ["t5", "roberta"])
def test_the_command_adds_them(kind, theirs, tmp_path, capsys):
  source = theirs[kind]
  flags = [f"--from={source}", f"--output={tmp_path / 'mine'}", "--max_users=12"]
  assert main(["vocab", *flags]) == 0
  out, err = capsys.readouterr()
  path = tmp_path / f"mine{source.suffix}"
  assert out.strip() == str(path)
  assert f"added {17 if kind == 'roberta' else 18} of 18 markers" in err
  Tokenizer(lambda: path, MARKERS).check()
  record = json.loads(vocabulary_files.record_path(path).read_text())
  assert record["from"] == str(source)
  assert record["fingerprint"] == Tokenizer(lambda: path).fingerprint


def test_a_vocabulary_knows_all_that_it_was_grown_from(theirs, tmp_path):
  first, second = tmp_path / "first.json", tmp_path / "second.json"
  vocabularies.add_markers(theirs["roberta"], first, MARKERS)
  vocabularies.add_markers(first, second, (*MARKERS, "<more>"))
  fingerprints = [Tokenizer(lambda p=p: p).fingerprint for p in (first, second)]
  original = vocabulary_files.content_hash(theirs["roberta"].read_bytes())
  assert Tokenizer(lambda: second).grown_from == (fingerprints[0], original)
  assert Tokenizer(lambda: theirs["roberta"]).grown_from == ()
  # Another file in its place: the record beside it is not of that one.
  second.write_bytes(theirs["roberta"].read_bytes())
  assert Tokenizer(lambda: second).grown_from == ()


def test_a_source_that_is_no_vocabulary_is_one_line(tmp_path, capsys):
  (tmp_path / "notes.json").write_text('{"notes": []}')
  for name, message in (("none", "no such vocabulary"), ("notes.json", "is not a")):
    flags = [f"--from={tmp_path / name}", f"--output={tmp_path / 'out'}"]
    assert main(["vocab", *flags]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("commentree: ")
    assert message in last
