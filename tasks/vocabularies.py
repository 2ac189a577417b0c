"""SentencePiece vocabularies: training them, and from text to token ids.

Ids are T5's: padding 0, end of sequence 1, unknown 2, none for a beginning. After
them come the marker tokens (`<mask>`, `<user_0>`, `<url>`…), each a user-defined
symbol, so that it is one token wherever it stands.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import pathlib
import re
import string
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import sentencepiece

from ..errors import UserError
from ..models.config import check_choice, check_range
from .markers import MASK

if TYPE_CHECKING:
  import seqio

ModelType = Literal["unigram", "bpe"]

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
# Stands for the space in front of a word.
WORD_START = "▁"
# Raise when `write_word_vocabulary` writes other bytes than before.
FORMAT_VERSION = 1

_ASCII = string.ascii_letters + string.digits + string.punctuation
# SentencePiece skips longer sentences without a word.
_MAX_SENTENCE_BYTES = 4096
# The sum of likelihoods depends on it in the last digit: never the number of cores.
_TRAINING_THREADS = 2


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
  """How to train a vocabulary.

  Attributes:
    size: pieces, specials and markers included.
    model_type: 'unigram' or 'bpe'.
    byte_fallback: write a character without a piece as bytes (256 pieces more), not
      as unknown.
  """

  size: int = 8000
  model_type: ModelType = "unigram"
  byte_fallback: bool = False

  def __post_init__(self):
    check_range("VocabularyConfig", "size", self.size, 8, 1_000_000, whole=True)
    check_choice("VocabularyConfig", "model_type", self.model_type, ModelType)


def train_vocabulary(
  texts: Iterable[str],
  path: str | os.PathLike[str],
  config: VocabularyConfig,
  markers: Sequence[str],
) -> pathlib.Path:
  """Trains a vocabulary; equal arguments give equal bytes.

  Args:
    texts: cleaned texts without author markers; consumed once, as a stream (though
      SentencePiece holds what it is given).
    path: file to write; a record of the settings goes beside it, to `path`.json.
    config: size and kind.
    markers: tokens that are never to be cut, among them `<mask>`.

  Returns:
    The path.

  Raises:
    UserError: if there is no text, the text does not suit the size, or the file
      cannot be written.
  """
  path = pathlib.Path(path)
  check_writable(path)
  feed = _Feed(texts)
  try:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=feed.sentences(),
      model_writer=model,
      model_type=config.model_type,
      vocab_size=config.size,
      byte_fallback=config.byte_fallback,
      # Rare ones would be unknown otherwise: of 4 million words, [ $ + and Q.
      required_chars=_ASCII,
      user_defined_symbols=list(markers),
      pad_id=PAD_ID,
      eos_id=EOS_ID,
      unk_id=UNK_ID,
      bos_id=-1,
      num_threads=_TRAINING_THREADS,
      max_sentence_length=2 * _MAX_SENTENCE_BYTES,
      minloglevel=2,
    )
  except RuntimeError as error:
    if feed.error is not None:
      raise feed.error from None
    _explain(error, feed, config)
  written = model.getvalue()
  record = {
    **dataclasses.asdict(config),
    "texts": feed.texts_read,
    "characters": feed.characters_read,
    "markers": list(markers),
    "sentencepiece": sentencepiece.__version__,
    "fingerprint": content_hash(written),
  }
  # The model comes last: where it is, its record is.
  _write(path.with_name(path.name + ".json"), json.dumps(record, indent=2).encode())
  _write(path, written)
  return path


class _Feed:
  """Hands texts to SentencePiece, whose C++ keeps neither counts nor exceptions."""

  def __init__(self, texts: Iterable[str]):
    self._texts = texts
    self.texts_read = 0
    self.characters_read = 0
    self.error: Exception | None = None

  def sentences(self) -> Iterator[bytes]:
    try:
      for text in self._texts:
        if text.strip():
          self.texts_read += 1
          self.characters_read += len(text)
          yield from cut_sentences(text)
    except Exception as error:
      self.error = error
      raise


def cut_sentences(text: str) -> Iterator[bytes]:
  """Cuts a text at line ends, and long lines at spaces, into UTF-8 that is not long."""
  for line in text.splitlines():
    raw = line.encode("utf-8", "replace").replace(b"\0", b" ").strip()
    while len(raw) > _MAX_SENTENCE_BYTES:
      end = raw.rfind(b" ", 1, _MAX_SENTENCE_BYTES)
      if end < 0:
        end = _MAX_SENTENCE_BYTES
        while raw[end] & 0xC0 == 0x80:  # never inside a character
          end -= 1
      yield raw[:end]
      raw = raw[end:].lstrip()
    if raw:
      yield raw


def _explain(error: RuntimeError, feed: _Feed, config: VocabularyConfig) -> NoReturn:
  """Turns SentencePiece's refusal into one line that names the mend."""
  message = str(error)
  text = f"{feed.characters_read:,} characters of text"
  if not feed.texts_read:
    raise UserError(
      "no text to train a vocabulary on: every comment is empty or was skipped"
    ) from None
  if found := re.search(r"too high \(\d+\).*<= (\d+)", message):
    raise UserError(
      f"vocabulary size {config.size}: too large for {text}; ask for at most"
      f" {found[1]}, or give more trees"
    ) from None
  if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
    raise UserError(
      f"vocabulary size {config.size}: too small for the markers and characters of the"
      f" {text}; ask for at least {found[1]}, or fewer user markers"
    ) from None
  raise error


def _model_proto() -> Any:
  """The module of SentencePiece's file format, whose classes exist at run time only."""
  from sentencepiece import sentencepiece_model_pb2

  return sentencepiece_model_pb2


def write_word_vocabulary(
  words: Sequence[str], path: pathlib.Path, markers: Sequence[str]
) -> None:
  """Writes a vocabulary in which each of `words` is one piece, without training.

  Args:
    words: distinct, most frequent first, of letters alone.
    path: file to write; it appears whole or not at all.
    markers: tokens that are never to be cut, among them `<mask>`.

  Raises:
    UserError: if the file cannot be written.
  """
  proto = _model_proto()

  check_writable(path)
  model = proto.ModelProto()
  kind = proto.ModelProto.SentencePiece
  pieces = [
    ("<pad>", kind.CONTROL),
    ("</s>", kind.CONTROL),
    ("<unk>", kind.UNKNOWN),
    *((marker, kind.USER_DEFINED) for marker in markers),
    # Without it, the space in front of a marker would be an unknown character.
    (WORD_START, kind.NORMAL),
    *((WORD_START + word, kind.NORMAL) for word in words),
  ]
  for piece, type_ in pieces:
    model.pieces.add(piece=piece, type=type_, score=0.0)
  model.trainer_spec.model_type = proto.TrainerSpec.UNIGRAM
  model.trainer_spec.vocab_size = len(pieces)
  model.trainer_spec.pad_id = PAD_ID
  model.trainer_spec.eos_id = EOS_ID
  model.trainer_spec.unk_id = UNK_ID
  model.trainer_spec.bos_id = -1
  model.trainer_spec.user_defined_symbols.extend(markers)
  model.normalizer_spec.name = "identity"
  model.normalizer_spec.add_dummy_prefix = True
  model.normalizer_spec.remove_extra_whitespaces = True
  model.normalizer_spec.escape_whitespaces = True
  _write(path, model.SerializeToString(deterministic=True))


def check_writable(path: pathlib.Path) -> None:
  """Makes the file's folder; fails now rather than after the work.

  Raises:
    UserError: if the file cannot be written.
  """
  try:
    if path.is_dir():
      raise IsADirectoryError(None, "is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
      pass
  except OSError as error:
    raise UserError(
      f"{path}: cannot write a vocabulary there ({error.strerror}); give another place"
    ) from error


def _write(path: pathlib.Path, content: bytes) -> None:
  """Writes a file that appears whole or not at all."""
  try:
    with tempfile.NamedTemporaryFile(
      dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as draft:
      try:
        draft.write(content)
        draft.flush()
        os.fsync(draft.fileno())
        # Temporary files are for their owner alone; vocabularies are shared.
        os.chmod(draft.name, 0o644)
        os.replace(draft.name, path)
      except BaseException:
        os.unlink(draft.name)
        raise
  except OSError as error:
    raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def load_vocabulary(path: str | os.PathLike[str]) -> seqio.SentencePieceVocabulary:
  """Opens a vocabulary as SeqIO knows them.

  Raises:
    UserError: if there is no such file, or it is not a vocabulary of ours.
  """
  tokenizer = Tokenizer(lambda: path)
  tokenizer.check()
  return tokenizer.vocabulary


def mask_id(vocabulary: seqio.SentencePieceVocabulary) -> int:
  """Id of `<mask>`."""
  return vocabulary.tokenizer.piece_to_id(MASK)


def unmaskable_ids(vocabulary: seqio.SentencePieceVocabulary) -> np.ndarray:
  """Ids neither masked nor drawn as random replacements, int32, ascending.

  They are padding, end, unknown and all markers.
  """
  proto = _model_proto()

  kind = proto.ModelProto.SentencePiece
  special = (kind.CONTROL, kind.UNKNOWN, kind.USER_DEFINED, kind.UNUSED)
  model = proto.ModelProto.FromString(vocabulary.sp_model)
  ids = [i for i, piece in enumerate(model.pieces) if piece.type in special]
  return np.array(ids, np.int32)


class Tokenizer:
  """From text to token ids; the vocabulary is read, or made, at first use."""

  def __init__(
    self, find: Callable[[], str | os.PathLike[str]], markers: Sequence[str] = ()
  ):
    """Looks at nothing yet.

    Args:
      find: returns the path of the SentencePiece model; called once.
      markers: tokens that the vocabulary must know, beside `<mask>`.
    """
    self._find = find
    self._markers = (MASK, *markers)

  @functools.cached_property
  def vocabulary(self) -> seqio.SentencePieceVocabulary:
    """The vocabulary as SeqIO knows them; reading it is put off until it is used."""
    from .lazy_vocabulary import LazyVocabulary

    return LazyVocabulary(self._find)

  @functools.cached_property
  def mask_id(self) -> int:
    """Id of `<mask>`."""
    self.check()
    return mask_id(self.vocabulary)

  @functools.cached_property
  def maskable(self) -> np.ndarray:
    """Whether a token may be masked, bool [vocabulary size], by id."""
    self.check()
    maskable = np.ones(self.vocabulary.vocab_size, bool)
    maskable[unmaskable_ids(self.vocabulary)] = False
    return maskable

  @property
  def vocab_size(self) -> int:
    """Rows of the embedding table that the vocabulary needs."""
    return len(self.maskable)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Names the vocabulary's contents: equal fingerprints, equal token ids."""
    self.check()
    return content_hash(self.vocabulary.sp_model)

  def check(self) -> None:
    """Reads the vocabulary.

    Raises:
      UserError: if there is none, its special ids are not T5's, or it lacks markers.
    """
    processor = self.vocabulary.tokenizer
    where = self.vocabulary.sentencepiece_model_file
    ids = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if ids != (PAD_ID, EOS_ID, UNK_ID):
      raise UserError(
        f"{where}: padding, end and unknown have the ids {ids}, not"
        f" {(PAD_ID, EOS_ID, UNK_ID)}; make a vocabulary with `commentree vocab`"
      )
    missing = [m for m in self._markers if processor.piece_to_id(m) == UNK_ID]
    if missing:
      raise UserError(
        f"{where}: lacks {len(missing)} marker tokens, the first {missing[0]}; make a"
        " vocabulary for these settings with `commentree vocab`"
      )

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the token ids of each text, int32.

    SentencePiece makes a token of the space in front of a marker; it is left out,
    for it says nothing and would be masked like a word.

    Args:
      texts: cleaned texts; markers in them become one token each.
    """
    encoded = self.vocabulary.tokenizer.encode(list(texts), num_threads=1)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    total = int(lengths.sum())
    flat = np.fromiter(itertools.chain.from_iterable(encoded), np.int32, total)
    ends = np.cumsum(lengths)
    before_marker = np.zeros(total, bool)
    # Across the end of a text nothing goes wrong: no text ends in a lone space.
    before_marker[:-1] = self._is_marker[flat[1:]]
    kept = ~(before_marker & (flat == self._space_id))
    kept_ends = np.concatenate([[0], np.cumsum(kept)])[np.concatenate([[0], ends])]
    flat = flat[kept]
    return [flat[i:j] for i, j in itertools.pairwise(kept_ends.tolist())]

  @functools.cached_property
  def _space_id(self) -> int:
    return self.vocabulary.tokenizer.piece_to_id(WORD_START)

  @functools.cached_property
  def _is_marker(self) -> np.ndarray:
    """Whether a token is a marker, bool [vocabulary size], by id."""
    is_marker = ~self.maskable
    is_marker[[PAD_ID, EOS_ID, UNK_ID]] = False
    return is_marker


def content_hash(model: bytes) -> str:
  """A short name for the bytes of a model."""
  return hashlib.blake2b(model, digest_size=8).hexdigest()
