"""How the texts of tokens join, for vocabularies of every kind.

A token's text is not its name: `▁do` begins with a space, `##ing` continues a word,
a character may take several tokens of bytes, and the first token of a text loses its
space. Only the vocabulary's own `decode` knows all that. So what a token adds to a text
is what `decode` gives with it, beyond what it gives without it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from commentree.tasks.vocabulary.backend import WORD_START, TokenizerBackend
from commentree.tasks.vocabulary.encoded_texts import split

_REPLACEMENT = "\ufffd"
# As much as tells whether two words would be one.
_WORD_CHARACTERS = 50


class TextGroup(NamedTuple):
  """Neighbouring tokens that have their text together: one, or those of a character.

  Attributes:
    first: place of the first.
    end: the place behind the last.
    text: what they add to the text of the tokens before them.
    is_whole: whether the bytes among them make whole characters.
  """

  first: int
  end: int
  text: str
  is_whole: bool


class Slot(NamedTuple):
  """A part of a text that a token is to be written into.

  Attributes:
    start: of the part.
    end: of the part.
    place: of the token among the text's.
  """

  start: int
  end: int
  place: int


class TokenTexts:
  """What tokens read as, one behind another."""

  def __init__(self, encoder: TokenizerBackend):
    """Takes the vocabulary."""
    self._encoder = encoder

  def groups(self, ids: Sequence[int] | np.ndarray) -> list[TextGroup]:
    """Returns the text of tokens, in the smallest parts that can be read.

    Joined, the parts' texts are what the vocabulary decodes from all tokens.
    """
    ids = [int(i) for i in ids]
    decode = self._encoder.decode
    found: list[TextGroup] = []
    # A first token is decoded otherwise than one behind it. So those from `context` on
    # are decoded with the next, and what they give without it, `before`, is cut off.
    context, before = 0, ""
    for first, end, is_whole in self._ranges(ids):
      text = decode(ids[context:end])
      found.append(TextGroup(first, end, text[len(before) :], is_whole))
      alone = decode(ids[first:end])
      context, before = (first, alone) if alone else (context, text)
    return found

  def whole(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of tokens without the bytes that make no whole character."""
    return "".join(group.text for group in self.groups(ids) if group.is_whole)

  def shown(
    self, ids: Sequence[int] | np.ndarray, apart: Collection[int] = ()
  ) -> list[str]:
    """Returns what a person is shown of each token, as a text that can be read.

    A token begins with a space where the text has one or several. Markers and specials
    are shown by their names, between spaces. The bytes of a character are shown by
    theirs, `<0xE6>`, if it is not whole or one of its tokens stands `apart`; of any
    other character of several tokens the first shows it, and the others nothing.

    Args:
      ids: of the tokens.
      apart: places of those that have to be shown by themselves.
    """
    encoder = self._encoder
    shown: list[str] = []
    space_wanted = False
    for first, end, text, is_whole in self.groups(ids):
      names = [encoder.id_to_piece(int(i)) for i in ids[first:end]]
      several = end - first > 1
      is_marker = not several and not encoder.maskable[ids[first]]
      if is_marker:
        name = names[0].removeprefix(WORD_START)
        # The unknown is a word or a part of one.
        is_marker = ids[first] != encoder.unk_id
        texts = [f" {name}" if is_marker or text == f" {name}" else name]
      elif not is_whole or (several and any(i in apart for i in range(first, end))):
        texts = [name.replace(WORD_START, " ") for name in names]
      else:
        texts = [text] + [""] * (end - first - 1)
      if space_wanted and texts[0][:1].isalnum():
        texts[0] = f" {texts[0]}"
      space_wanted = is_marker
      shown += texts
    behind = " "
    for place, text in enumerate(shown):
      bare = text.lstrip(" ")
      space = " " if bare != text and behind != " " else ""
      shown[place] = space + bare
      behind = shown[place][-1:] or behind
    return shown

  def write(
    self, text: str, slots: Sequence[Slot], ids: Sequence[int] | np.ndarray
  ) -> tuple[str, list[Slot]]:
    """Writes tokens into a text, each joined to what stands on both sides of it.

    All white space of the text stays unless the vocabulary says that there
    is none. Some vocabularies of words have none of the text's: they get a space where
    two words would be one without it.

    Args:
      text: to write into.
      slots: where, in order.
      ids: of the tokens of all the text, those to be written among them.

    Returns:
      The text, and the slots that stay as they are: their tokens are bytes that make no
      whole character.
    """
    groups = self.groups(ids)
    group_of = [group for group in groups for _ in range(group.first, group.end)]
    places = {slot.place for slot in slots}
    written, at, left = "", 0, []
    for slot in slots:
      group = group_of[slot.place]
      written, at = written + text[at : slot.start], slot.end
      if not group.is_whole:
        left.append(slot)
        written += text[slot.start : slot.end]
      if not group.is_whole or slot.place < group.end - 1:
        continue
      before = written.rstrip()
      own = group.text.removeprefix(" ")
      space = self._space(before, written[len(before) :], own, group, ids)
      written = before + space + own
      behind = group.end
      if behind < len(ids) and behind not in places and not self._begins(ids[behind]):
        after = text[at:].lstrip()
        given = text[at : len(text) - len(after)]
        if not given or after[:1].isalnum():  # else it may be the writer's
          written += self._space(written, given, after, group_of[behind], ids)
          at += len(given)
    return written + text[at:], left

  def _space(
    self,
    before: str,
    given: str,
    after: str,
    group: TextGroup,
    ids: Sequence[int] | np.ndarray,
  ) -> str:
    """Returns the white space between two parts of a text.

    Args:
      before: the part in front.
      given: the white space that the text has there.
      after: the part behind.
      group: its first tokens.
      ids: of all tokens.
    """
    own, previous = ids[group.first], ids[group.first - 1]
    maskable, unknown = self._encoder.maskable, self._encoder.unk_id
    if not before or not after or group.first == 0 or not maskable[own]:
      return given
    if not group.text[:1].isspace():
      # White space in front of markers is no token.
      return "" if maskable[previous] or previous == unknown else given
    if given or self._begins(own):
      return given or " "
    return "" if self._is_parted(before, after) else " "

  def _begins(self, token_id: int) -> bool:
    """Whether a token says by itself that a space is in front of it."""
    name = self._encoder.id_to_piece(int(token_id))
    return name.startswith(WORD_START) or name[:1].isspace()

  def _is_parted(self, before: str, after: str) -> bool:
    """Whether two texts have the same tokens with nothing between them."""
    last = before.split()[-1][-_WORD_CHARACTERS:]
    first = after.split()[0][:_WORD_CHARACTERS]
    texts = [
      text.encode("utf-8", "replace").decode() for text in (last, first, last + first)
    ]
    one, other, both = split(self._encoder.encode(texts))
    return np.array_equal(np.concatenate([one, other]), both)

  def _ranges(self, ids: list[int]) -> Iterator[tuple[int, int, bool]]:
    """Yields first place, the one behind the last, and `is_whole` of each group."""
    is_bytes = [self._encoder.is_bytes(i) for i in ids]
    first = 0
    while first < len(ids):
      end = first + 1
      if not is_bytes[first]:
        yield first, end, True
        first = end
        continue
      for place in range(end, len(ids)):
        if is_bytes[place]:
          end = place + 1
        elif not self._is_silent(ids[place]):
          break
      yield from self._characters(ids, first, end)
      first = end

  def _is_silent(self, token_id: int) -> bool:
    """Whether a token is one that `decode` leaves out."""
    return not self._encoder.maskable[token_id] and not self._encoder.decode([token_id])

  def _characters(
    self, ids: list[int], first: int, behind: int
  ) -> list[tuple[int, int, bool]]:
    """Parts a row of tokens that hold bytes; see `_ranges`."""
    decode, found, texts = self._encoder.decode, [], []
    start = first
    for end in range(first + 1, behind + 1):
      text = decode(ids[start:end])
      if end == behind or not text.endswith(_REPLACEMENT):
        found.append((start, end, _REPLACEMENT not in text))
        texts.append(text)
        start = end
    # Some vocabularies make nothing of a whole row if one of its bytes is wrong.
    if "".join(texts) != decode(ids[first:behind]):
      return [(first, behind, False)]
    return found
