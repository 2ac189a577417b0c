"""Where in a text its tokens stand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commentree.tasks.vocabulary import vocabularies
from commentree.tasks.vocabulary.vocabularies import Tokenizer, VocabularyConfig
from commentree.tests.support.tasks.vocabulary_fixture import some_texts

MARKERS = ("<mask>", "<user_0>", "<url>", "<startq>", "<endq>")
KINDS = {
  "unigram": VocabularyConfig(200, "unigram"),
  "bpe": VocabularyConfig(200, "bpe"),
  "bytes": VocabularyConfig(500, "unigram", byte_fallback=True),
  "byte_bpe": VocabularyConfig(400, "byte_bpe"),
  "wordpiece": VocabularyConfig(300, "wordpiece"),
}
# White space and marks of all kinds; what normalisation makes one of, or many.
TEXTS = st.text(st.sampled_from("bako.,!' \n\t漢é…ﬁ㎞\u3000\u0301🙂<")).map(
  lambda text: text.replace("<", " <url> ")
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
  folder = tmp_path_factory.mktemp("vocabularies")
  paths = {
    kind: vocabularies.train_vocabulary(some_texts(), folder / kind, config, MARKERS)
    for kind, config in KINDS.items()
  }
  return {k: Tokenizer(lambda p=p: p, MARKERS) for k, p in paths.items()}


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXTS, max_size=3))
def test_offsets_are_ordered_and_cover_all_but_white_space(kind, tokenizers, texts):
  plain = tokenizers[kind].encode_batch(texts)
  encoded = tokenizers[kind].encode_batch_with_offsets(texts)
  assert [ids.tolist() for ids, _ in encoded] == [ids.tolist() for ids in plain]
  for text, (ids, offsets) in zip(texts, encoded):
    assert offsets.shape == (len(ids), 2)
    assert (offsets[:, 0] <= offsets[:, 1]).all()
    assert (offsets[1:, 0] >= offsets[:-1, 0]).all()
    covered = set()
    for start, end in offsets.tolist():
      assert 0 <= start <= end <= len(text)
      assert start == end or not text[start].isspace()
      covered.update(range(start, end))
    missed = [c for i, c in enumerate(text) if i not in covered and not c.isspace()]
    # BERT's cleaning takes marks and the like out altogether.
    assert not [c for c in missed if kind != "wordpiece" or c.isalnum()]


@pytest.mark.parametrize("kind", KINDS)
def test_words_and_markers_stand_where_they_are_written(kind, tokenizers):
  text = "<user_0> bako  debi (<url>), n <startq> tofu <endq>"
  ((ids, offsets),) = tokenizers[kind].encode_batch_with_offsets([text])
  parts = [text[a:b] for a, b in offsets.tolist()]
  for marker in ("<user_0>", "<url>", "<startq>", "<endq>"):
    assert parts[ids.tolist().index(tokenizers[kind].piece_to_id(marker))] == marker
  assert "".join(parts) == "".join(text.split())


def test_tokens_that_share_a_character_all_have_it(tokenizers):
  for kind in ("bytes", "byte_bpe"):
    ((_, offsets),) = tokenizers[kind].encode_batch_with_offsets(["ba 漢ba"])
    assert offsets.tolist().count([3, 4]) == 3
  ((_, offsets),) = tokenizers["unigram"].encode_batch_with_offsets(["ba… ko"])
  assert offsets.tolist().count([2, 3]) == 3  # three dots of one character
