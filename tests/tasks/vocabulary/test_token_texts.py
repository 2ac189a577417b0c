"""Tokens read one behind another as the vocabulary decodes them, for every kind."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commentree.tasks.vocabulary import vocabularies
from commentree.tasks.vocabulary.token_texts import Slot
from commentree.tasks.vocabulary.vocabularies import Tokenizer
from commentree.tests.support.tasks.vocabulary_fixture import ALL_KINDS, some_texts

MARKERS = ("<mask>", "<unu>", "<user_0>", "<url>")
FAMILY, FLAG, SHRI = "👨\u200d👩\u200d👧", "🇩🇪", "\u0dc1\u0dca\u200d\u0dbb\u0dd3"
ODD = st.sampled_from(
  ["😀", FAMILY, FLAG, SHRI, "e\u0301", "\u0301", "漢字", "ש", "ﬁ", "\ufffd", "\u200b"]
)
WORDS = st.sampled_from(" ".join(some_texts(20)).split())
BETWEEN = st.sampled_from([*MARKERS, " ", "  ", "\n", ".", "(", "'"])
TEXTS = st.lists(WORDS | ODD | BETWEEN | st.text()).map("".join) | st.lists(
  WORDS | ODD
).map(" ".join)
OF_BYTES = ("roberta", "byte_fallback", "byte_fallback_json")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
  folder = tmp_path_factory.mktemp("vocabularies")
  found = {}
  for kind, make in ALL_KINDS.items():
    source = make(folder)
    path = folder / f"{kind}-marked{source.suffix}"
    vocabularies.add_markers(source, path, MARKERS, sentinels=2)
    found[kind] = Tokenizer(lambda p=path: p, MARKERS)
  return found


def joined(tokenizer, ids):
  return "".join(group.text for group in tokenizer.texts.groups(ids))


@pytest.mark.parametrize("kind", ALL_KINDS)
@given(text=TEXTS)
def test_token_by_token_a_text_is_what_the_vocabulary_decodes(tokenizers, kind, text):
  text = text.encode("utf-8", "replace").decode()
  (ids,) = tokenizers[kind].encode_batch([text])
  assert joined(tokenizers[kind], ids) == tokenizers[kind].decode(ids.tolist())


@pytest.mark.long
@pytest.mark.parametrize("kind", ALL_KINDS)
@given(data=st.data())
def test_so_are_tokens_that_no_text_has(tokenizers, kind, data):
  tokenizer = tokenizers[kind]
  ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
  assert joined(tokenizer, ids) == tokenizer.decode(ids)
  covered = [range(group.first, group.end) for group in tokenizer.texts.groups(ids)]
  assert [place for places in covered for place in places] == list(range(len(ids)))
  assert len(tokenizer.texts.shown(ids)) == len(ids)


@pytest.mark.parametrize("kind", OF_BYTES)
@pytest.mark.parametrize("text", ["漢字", "😀 e\u0301", f"b {FAMILY}", SHRI, FLAG])
def test_a_character_is_shown_once_and_whole(tokenizers, kind, text):
  tokenizer = tokenizers[kind]
  (ids,) = tokenizer.encode_batch([text])
  assert len(ids) > len(text)
  shown = tokenizer.texts.shown(ids)
  assert "".join(shown).strip() == text
  assert {len(token.strip()) for token in shown} <= {0, 1}


@pytest.mark.parametrize("kind", OF_BYTES)
def test_a_byte_that_stands_apart_is_named_and_so_are_its_neighbours(tokenizers, kind):
  tokenizer = tokenizers[kind]
  (ids,) = tokenizer.encode_batch(["ba 漢 ba"])
  (first,) = (i for i, t in enumerate(tokenizer.texts.shown(ids)) if t.strip() == "漢")
  for apart in range(first, first + 3):
    shown = tokenizer.texts.shown(ids, {apart})
    assert shown[first : first + 3] == ["<0xE6>", "<0xBC>", "<0xA2>"]
    assert shown[-1] == tokenizer.texts.shown(ids)[-1]
  cut = tokenizer.texts.shown(ids[: first + 2])
  assert cut[first:] == ["<0xE6>", "<0xBC>"]


@pytest.mark.parametrize("kind", OF_BYTES)
def test_a_text_without_half_characters_has_all_the_others(tokenizers, kind):
  tokenizer = tokenizers[kind]
  (ids,) = tokenizer.encode_batch(["ba 漢 ba"])
  assert tokenizer.texts.whole(ids) == "ba 漢 ba"
  (first,) = (i for i, t in enumerate(tokenizer.texts.shown(ids)) if t.strip() == "漢")
  assert tokenizer.texts.whole(np.delete(ids, first + 1)) == "ba  ba"


def test_bytes_of_byte_level_bpe_are_named_as_those_of_others(tokenizers):
  tokenizer = tokenizers["roberta"]
  names = [tokenizer.id_to_piece(i) for i in range(tokenizer.vocab_size)]
  assert not [name for name in names if "\ufffd" in name]
  assert tokenizer.id_to_piece(tokenizer.piece_to_id("æ")) == "<0xE6>"
  assert tokenizer.id_to_piece(tokenizer.piece_to_id("Ġ")) == "▁"
  assert not tokenizer.begins_word[tokenizer.piece_to_id("¡")]  # 0xA1, inside of any


# Tokens written into a text.

SPACED = ("t5", "bpe", "roberta", "byte_fallback", "byte_fallback_json", "metaspace")


def some_word(tokenizer, kind, begins):
  """A token that begins a word, or one that continues with one, and how it reads."""
  mark = {"bert": "##", "word_ends": "</w>"}.get(kind, "▁")
  for token_id in np.flatnonzero(tokenizer.maskable).tolist():
    name = tokenizer.id_to_piece(token_id)
    word = name.replace(mark, "")
    is_marked = word != name
    if word.isalpha() and word.isascii() and is_marked == (begins != (kind == "bert")):
      return token_id, word
  raise AssertionError(kind)


def written(tokenizer, text, *token_ids):
  """The text with tokens in the places of its masks."""
  (ids,) = tokenizer.encode_with_masks([f"<user_0> {text}"])
  places = np.flatnonzero(ids == tokenizer.mask_id)
  starts = [i for i in range(len(text)) if text.startswith("<mask>", i)]
  assert len(places) == len(starts) > 0
  ids[places] = token_ids if len(token_ids) > 1 else token_ids * len(places)
  slots = [Slot(i, i + 6, int(place)) for i, place in zip(starts, places)]
  filled, left = tokenizer.texts.write(text, slots, ids)
  assert filled.count("<mask>") == len(left)
  return filled


@pytest.mark.parametrize("kind", [kind for kind in ALL_KINDS if kind != "words"])
def test_a_token_that_begins_a_word_stands_apart(tokenizers, kind):
  tokenizer = tokenizers[kind]
  token, word = some_word(tokenizer, kind, begins=True)
  bracket = "( " if kind in SPACED else "("
  for text, expected in {
    "ba <mask> ko": f"ba {word} ko",
    "ba<mask> ko": f"ba {word} ko",
    "ba\t<mask>\nko": f"ba\t{word}\nko",
    "ba  <mask>.": f"ba  {word}.",
    "ba <mask> .": f"ba {word} .",
    "(<mask>)": f"{bracket}{word})",
    "<mask>": word,
    "<mask> <mask>, <url> <mask>": f"{word} {word}, <url> {word}",
    "<mask><mask>": f"{word} {word}",
  }.items():
    assert written(tokenizer, text, token) == expected


@pytest.mark.parametrize("kind", [*SPACED, "bert"])
def test_a_token_that_goes_on_with_a_word_joins_it(tokenizers, kind):
  tokenizer = tokenizers[kind]
  token, word = some_word(tokenizer, kind, begins=False)
  for text, expected in {
    "ba <mask> ko": f"ba{word} ko",
    "ba \n<mask>.": f"ba{word}.",
    "ba ☃ <mask>.": f"ba ☃{word}.",
    "<mask> ba": f"{word} ba",
    "<url> <mask>.": f"<url> {word}.",
    "ba <mask> <mask>": f"ba{word}{word}",
  }.items():
    assert written(tokenizer, text, token) == expected


@pytest.mark.parametrize("kind", ["bert", "words"])
def test_words_that_would_be_one_get_a_space_on_both_sides(tokenizers, kind):
  tokenizer = tokenizers[kind]
  name = some_texts(1)[0].split()[0]
  if kind == "bert":
    _, name = some_word(tokenizer, kind, begins=True)
  token = tokenizer.piece_to_id(name)
  for text, expected in {
    "ba<mask>ko": f"ba {name} ko",
    "(<mask>)ko": f"({name})ko",
    "<mask><mask>ko": f"{name} {name} ko",
  }.items():
    assert written(tokenizer, text, token) == expected


def test_a_token_that_does_not_end_a_word_goes_on_with_what_follows(tokenizers):
  tokenizer = tokenizers["word_ends"]
  assert written(tokenizer, "ba <mask> ko", tokenizer.piece_to_id("k")) == "ba kko"


@pytest.mark.parametrize("kind", OF_BYTES)
def test_bytes_are_written_as_the_character_that_they_make_or_not_at_all(
  tokenizers, kind
):
  tokenizer = tokenizers[kind]
  (ids,) = tokenizer.encode_batch(["b\u6f22"])
  first, second, third = ids[-3:]
  three = "ba <mask><mask> <mask> ko"
  assert written(tokenizer, three, first, second, third) == "ba漢 ko"
  for wrong in [(first, third, first), (second, second, second), (first, first, third)]:
    assert written(tokenizer, three, *wrong) == three
  word, text = some_word(tokenizer, kind, begins=True)
  assert written(tokenizer, three, word, second, word) == f"ba {text}<mask> {text} ko"
  assert "\ufffd" in written(tokenizer, "\ufffd <mask>", word)


@given(text=TEXTS)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_what_a_vocabulary_calls_its_mask_is_a_word_beside_masks(
  tokenizers, kind, text
):
  tokenizer = tokenizers[kind]
  text = text.encode("utf-8", "replace").decode().replace("<mask>", "")
  (plain,) = tokenizer.encode_batch([f"{text} [MASK]"])
  (ids,) = tokenizer.encode_with_masks([f"{text} [MASK]"])
  assert ids.tolist() == plain.tolist()
  assert tokenizer.mask_id not in ids
  (ids,) = tokenizer.encode_with_masks([f"[MASK] <mask> {text}"])
  assert np.count_nonzero(ids == tokenizer.mask_id) == 1
