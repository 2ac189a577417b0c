"""Training vocabularies, and from text to token ids."""

import copy
import json
import pickle
import string
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks.vocabulary import (
  sentencepiece_backend,
  seqio_vocabulary,
  vocabularies,
)
from commentree.tasks.vocabulary.seqio_vocabulary import TokenizerVocabulary
from commentree.tasks.vocabulary.vocabularies import Tokenizer, VocabularyConfig
from commentree.tests.support.tasks.vocabulary_fixture import some_texts

MARKERS = ("<mask>", "<unu>", "<user_0>", "<user_1>", "<url>", "<startq>", "<endq>")
SMALL = VocabularyConfig(size=200)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocabulary") / "small.model"
  return vocabularies.train_vocabulary(some_texts(), path, SMALL, MARKERS)


@pytest.fixture(scope="module")
def tokenizer(model):
  return Tokenizer(lambda: model)


# Training.


def test_special_ids_are_those_of_t5(tokenizer):
  vocabulary = TokenizerVocabulary(tokenizer)
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
  assert vocabulary.bos_id is None
  assert vocabulary.vocab_size == SMALL.size == len(tokenizer.maskable)


def test_padding_end_unknown_and_markers_are_unmaskable_and_nothing_else(tokenizer):
  processor = TokenizerVocabulary(tokenizer).tokenizer
  special = {0, 1, 2, *map(processor.piece_to_id, MARKERS)}
  assert len(special) == 3 + len(MARKERS)
  assert set(np.flatnonzero(~tokenizer.maskable).tolist()) == special
  assert tokenizer.mask_id == processor.piece_to_id("<mask>")


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_the_same_texts_give_the_same_bytes(tmp_path, model_type):
  config = VocabularyConfig(size=250, model_type=model_type)
  first, second = (
    vocabularies.train_vocabulary(some_texts(), tmp_path / name, config, MARKERS)
    for name in ("a.model", "b.model")
  )
  assert first.read_bytes() == second.read_bytes()


def test_unigram_and_bpe_cut_differently(model, tmp_path):
  config = VocabularyConfig(size=200, model_type="bpe")
  path = vocabularies.train_vocabulary(some_texts(), tmp_path / "b", config, MARKERS)
  text = some_texts(1, seed=5)
  unigram, bpe = (Tokenizer(lambda p=p: p).encode_batch(text)[0] for p in (model, path))
  assert unigram.tolist() != bpe.tolist()


def test_every_ascii_character_is_known(tokenizer):
  text = " ".join(string.ascii_letters + string.digits + string.punctuation)
  assert TokenizerVocabulary(tokenizer).unk_id not in tokenizer.encode_batch([text])[0]


def test_byte_fallback_leaves_nothing_unknown(tokenizer, tmp_path):
  config = VocabularyConfig(size=500, byte_fallback=True)
  path = vocabularies.train_vocabulary(some_texts(), tmp_path / "b", config, MARKERS)
  with_bytes = Tokenizer(lambda: path)
  (ids,) = with_bytes.encode_batch(["ba \u6f22"])
  assert 2 not in ids
  assert with_bytes.decode(ids.tolist()) == "ba \u6f22"
  assert 2 in tokenizer.encode_batch(["ba \u6f22"])[0]


def test_the_record_beside_the_model_says_how_it_was_made(model, tokenizer):
  record = json.loads(model.with_name("small.model.json").read_text())
  assert record["size"] == 200
  assert record["model_type"] == "unigram"
  assert record["texts"] == 400
  assert record["markers"] == list(MARKERS)
  assert record["fingerprint"] == tokenizer.fingerprint


def test_the_fingerprint_tells_vocabularies_apart(tokenizer, tmp_path):
  path = vocabularies.train_vocabulary(
    some_texts(seed=1), tmp_path / "o", SMALL, MARKERS
  )
  assert Tokenizer(lambda: path).fingerprint != tokenizer.fingerprint
  assert Tokenizer(lambda: path).fingerprint == Tokenizer(lambda: path).fingerprint


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_too_large_a_size_is_refused_with_one_that_works(tmp_path, model_type):
  texts = some_texts(5)

  def train(size):
    config = VocabularyConfig(size=size, model_type=model_type)
    return vocabularies.train_vocabulary(texts, tmp_path / "v.model", config, MARKERS)

  with pytest.raises(UserError, match=r"size 8000: too large .* at most \d+") as error:
    train(8000)
  assert "\n" not in str(error.value)
  train(int(str(error.value).split("at most ")[1].split(",")[0]))


def test_too_small_a_size_is_refused_with_one_that_works(tmp_path):
  def train(size):
    config = VocabularyConfig(size=size)
    vocabularies.train_vocabulary(some_texts(), tmp_path / "v.model", config, MARKERS)

  with pytest.raises(UserError, match=r"size 20: too small .* at least \d+") as error:
    train(20)
  train(int(str(error.value).split("at least ")[1].split(",")[0]))


@pytest.mark.parametrize("texts", [[], ["", " \n "]])
def test_no_text_is_said_so(tmp_path, texts):
  with pytest.raises(UserError, match="no text"):
    vocabularies.train_vocabulary(texts, tmp_path / "v.model", SMALL, MARKERS)


def test_a_reader_s_error_is_not_swallowed_by_the_training(tmp_path):
  def texts():
    yield from some_texts(5)
    raise UserError("trees.jsonl: is a picture")

  with pytest.raises(UserError, match="is a picture"):
    vocabularies.train_vocabulary(texts(), tmp_path / "v.model", SMALL, MARKERS)


def test_a_failed_training_leaves_the_old_file_and_no_drafts(tmp_path):
  path = tmp_path / "v.model"
  path.write_bytes(b"old")
  with pytest.raises(UserError):
    vocabularies.train_vocabulary(["a"], path, VocabularyConfig(size=8000), MARKERS)
  assert path.read_bytes() == b"old"
  assert [p.name for p in tmp_path.iterdir()] == ["v.model"]


def test_a_place_that_cannot_be_written_is_refused_before_any_text_is_read(tmp_path):
  def texts():
    raise AssertionError("read")
    yield

  (tmp_path / "file").write_text("")
  for path in (tmp_path, tmp_path / "file" / "v.model"):
    with pytest.raises(UserError, match="cannot write a vocabulary there"):
      vocabularies.train_vocabulary(texts(), path, SMALL, MARKERS)


def test_texts_longer_than_sentencepiece_takes_still_count(tmp_path):
  line = " ".join(some_texts())
  assert len(line) > 5 * 4192
  path = vocabularies.train_vocabulary([line], tmp_path / "v.model", SMALL, MARKERS)
  tokens = Tokenizer(lambda: path).encode_batch([line])[0]
  assert len(tokens) < 0.7 * len(line)


@given(st.text(), st.integers(1, 40))
def test_cutting_sentences_loses_nothing_but_white_space(text, repeats):
  text = text * repeats * 20
  cut = list(sentencepiece_backend.cut_sentences(text))
  assert all(0 < len(sentence) <= 4096 for sentence in cut)
  joined = "".join(sentence.decode("utf-8") for sentence in cut)
  expected = text.encode("utf-8", "replace").decode().replace("\0", " ")
  assert "".join(joined.split()) == "".join(expected.split())


@pytest.mark.parametrize(
  ("settings", "name"), [({"size": 3}, "size"), ({"model_type": "word"}, "model_type")]
)
def test_a_setting_out_of_range_is_named(settings, name):
  with pytest.raises(UserError, match=f"VocabularyConfig.{name} = "):
    VocabularyConfig(**settings)


# From text to ids.


def test_a_batch_is_encoded_as_its_texts_one_by_one(tokenizer):
  texts = ["", *some_texts(20, seed=3), "", ""]
  processor = TokenizerVocabulary(tokenizer).tokenizer
  encoded = tokenizer.encode_batch(texts)
  assert [ids.tolist() for ids in encoded] == [processor.encode(t) for t in texts]
  assert all(ids.dtype == np.int32 for ids in encoded)
  assert tokenizer.encode_batch([]) == []


def test_a_marker_is_one_token_without_one_for_the_space_before_it(tokenizer):
  processor = TokenizerVocabulary(tokenizer).tokenizer
  texts = ["<user_0> ba ko <url> de", "<url><mask>ba <user_1> <unu>", "ba", "<mask>"]
  pieces = [
    [processor.id_to_piece(i) for i in ids.tolist()]
    for ids in tokenizer.encode_batch(texts)
  ]
  first = processor.encode("ba ko", out_type=str)
  last = processor.encode("de", out_type=str)
  assert pieces[0] == ["<user_0>", *first, "<url>", *last]
  assert pieces[1][:2] == ["<url>", "<mask>"]
  assert pieces[1][-2:] == ["<user_1>", "<unu>"]
  assert "▁" not in pieces[1]
  assert pieces[3] == ["<mask>"]


def test_a_space_before_anything_but_a_marker_stays(tokenizer):
  processor = TokenizerVocabulary(tokenizer).tokenizer
  expected = processor.encode("ba \u6f22")
  assert processor.piece_to_id("▁") in expected
  encoded = tokenizer.encode_batch(["ba \u6f22", "<mask>"])
  assert encoded[0].tolist() == expected


def test_decoding_gives_the_text_back(tokenizer):
  (text,) = some_texts(1, seed=9)
  (ids,) = tokenizer.encode_batch([text])
  assert TokenizerVocabulary(tokenizer).decode(ids.tolist()) == text


# Opening.


def test_nothing_is_sought_before_it_is_needed():
  def find():
    raise AssertionError("sought")

  tokenizer = Tokenizer(find)
  assert TokenizerVocabulary(tokenizer) == TokenizerVocabulary(tokenizer)
  with pytest.raises(AssertionError, match="sought"):
    _ = tokenizer.mask_id


def test_the_file_is_sought_once(model):
  sought = []
  tokenizer = Tokenizer(lambda: sought.append(1) or model)
  tokenizer.encode_batch(["ba"])
  _ = tokenizer.mask_id, tokenizer.maskable, tokenizer.fingerprint
  assert sought == [1]


def test_copies_of_a_vocabulary_are_equal_to_it(model):
  vocabulary = TokenizerVocabulary(Tokenizer(lambda: model))
  for copied in (copy.deepcopy(vocabulary), pickle.loads(pickle.dumps(vocabulary))):
    assert copied == vocabulary
    assert copied.encode("ba ko") == vocabulary.encode("ba ko")


def test_a_missing_vocabulary_is_one_line_that_says_how_to_make_it(tmp_path):
  with pytest.raises(
    UserError, match=r"no such vocabulary; .* make one for a new"
  ) as error:
    seqio_vocabulary.load_vocabulary(tmp_path / "none.model")
  assert "\n" not in str(error.value)


def test_a_file_that_is_no_model_is_refused(tmp_path):
  path = tmp_path / "notes.model"
  path.write_text("these are my notes")
  with pytest.raises(UserError, match=r"notes\.model: is not a SentencePiece model or"):
    seqio_vocabulary.load_vocabulary(path)


def test_special_ids_are_found_out_where_the_vocabulary_is_not_ours(tmp_path):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(some_texts()),
    model_prefix=str(tmp_path / "theirs"),
    vocab_size=100,
    user_defined_symbols=["<mask>"],
    minloglevel=2,
  )
  theirs = Tokenizer(lambda: tmp_path / "theirs.model")
  assert (theirs.unk_id, theirs.bos_id, theirs.eos_id, theirs.mask_id) == (0, 1, 2, 3)
  assert theirs.pad_id == 0  # it has none
  assert np.flatnonzero(~theirs.maskable).tolist() == [0, 1, 2, 3]


def test_a_vocabulary_that_lacks_markers_is_refused(model, tmp_path):
  with pytest.raises(UserError, match="lacks 2 marker tokens, the first <user_7>"):
    Tokenizer(lambda: model, markers=["<user_0>", "<user_7>", "<user_8>"]).check()
  bare = vocabularies.train_vocabulary(some_texts(), tmp_path / "v.model", SMALL, [])
  with pytest.raises(UserError, match="lacks 1 marker tokens, the first <mask>"):
    seqio_vocabulary.load_vocabulary(bare)


def test_making_a_vocabulary_needs_no_tensorflow():
  code = (
    "import sys; from commentree.launch.commands import vocab;"
    " from commentree.tasks.sources import generated, vocabulary_training_text;"
    " from commentree.tasks.vocabulary import vocabularies;"
    " assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
