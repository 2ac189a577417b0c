"""Cleaning: from what users typed to what a tokenizer is given.

In this order, each but the second a switch of `CleaningConfig`:

  html_entities  `&gt;` is `>`, twice over: dumps escape markdown that has its own
  (always)       a `<` that could begin a marker gets a space behind it, so that no
                 user can write a marker token
  footnotes      reference marks (`[1]`, `word^1`) and moderators' footnotes go
  urls           every address is `<url>`; `[text](address)` is `text <url>`
  quotes         lines that begin with `>` stand between `<startq>` and `<endq>`
  whitespace     runs of white space are one space; invisible characters go

What takes the other comments of a tree, too, is `copied_quotations`.

Time is linear in the text's length: repetitions in the patterns are possessive or
bounded, or end where no other match can begin.
"""

from __future__ import annotations

import collections
import re

from commentree.tasks.config.preprocessing import CleaningConfig
from commentree.tasks.trees import character_references
from commentree.tasks.trees.comment_tree import is_deleted
from commentree.tasks.trees.markers import DELETED, QUOTE_END, QUOTE_START, URL

# Behind `<`, and what Unicode's compatibility forms (hence SentencePiece) turn into it,
# unless what follows cannot begin a marker. An invisible character is no safe follower:
# SentencePiece takes it out.
_MARKER_START = re.compile("(?<=[<\uff1c\ufe64])(?![ \\t\\n\\r0-9=\\-]|\\Z)")

# Reference marks. Behind a short word they are mathematics (x^2, km^2) or code (a[1]).
# What stands in front is looked at second, so that a search runs from bracket to
# bracket.
_BRACKETED = re.compile(r"\[(?:(?<!\w\[)|(?<=[^\W\d_]{3}\[))\d{1,2}\](?!\():?+")
_RAISED = re.compile(
  r"\^(?:(?<=[^\W\d_]{3}\^)|(?<=[.,;:!?\"'*]\^)|(?<!\S\^))"
  r"(?:\d{1,2}|\(\d{1,2}\)|\[\d{1,2}\])(?!\w|\.\d|\^)"
)
_RULE = re.compile(r"^[ \t>]*+_{5,}+[ \t\r]*+$", re.MULTILINE)
# Behind a rule, a line later at most: "This is a footnote from your moderators".
_MODERATORS = re.compile(
  r"\W*+(?:[^\n]{0,80}\n\W*+)?[^\n]{0,80}footnote from", re.IGNORECASE
)

# An address ends at white space, a bracket or a quotation mark; round brackets stand
# in it in pairs.
_REST = r"""(?:[^\s()<>\[\]{}"]++|\([^\s()<>]*+\))*+"""
_ADDRESS = re.compile(
  r"<\s?(?:(?:https?|ftp)://|www\.)[^\s<>]++>"
  rf"|(?:(?:https?|ftp)://(?:\s(?=www\.))?|(?<![a-z0-9])www\d?\.(?=\w)){_REST}",
  re.IGNORECASE,
)
# Unusual schemes, and sites named without one but with a path, are slow to look for:
# only where something hints at them.
_OTHER_SCHEME = re.compile(
  rf"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{{1,20}}+://{_REST}", re.IGNORECASE
)
_SITE_HINT = re.compile(r"\.(?:com|org|net|edu|gov|uk|ca|de|au|info|us)/", re.I)
_SITE = re.compile(
  r"(?<![\w.@/-])(?:[a-z0-9-]{1,63}+\.){1,6}"
  rf"(?:com|org|net|edu|gov|uk|ca|de|au|info|us)/{_REST}",
  re.IGNORECASE,
)
_MARKDOWN_LINK = re.compile(
  r"!?+\[((?:[^\[\]]++|\[[^\[\]]*+\])*+)\]\("
  r"\s*+(?:<\s?)?(?:[a-z][a-z+.-]{1,20}+://|www\.|mailto:|[/#])"
  r"(?:[^\s()]++|\([^\s()]*+\))*+"
  r"""(?:\s++(?:"[^"]*+"|'[^']*+'))?+\s*+\)""",
  re.IGNORECASE,
)
_REPEATED_URL = re.compile(rf"{URL}(?:\s*+{URL})++")
# Punctuation at an address's end belongs to the sentence.
_SENTENCE_END = ".,;:!?'*"

# `>!` opens a spoiler, not a quotation.
_QUOTE_SIGNS = re.compile(r"(?:[ \t]*+(?:>|&gt;)(?!!))++")

# Control characters, and what has neither width nor meaning between letters.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff]+")


def clean_text(
  text: str, config: CleaningConfig, counts: collections.Counter[str] | None = None
) -> str:
  """Cleans a comment's text.

  A text that stands for a deleted comment becomes `<deleted>`.

  Args:
    text: as written; of any length.
    config: the steps to take.
    counts: if given, gets what was replaced added to it, by kind.
  """
  if is_deleted(text):
    return DELETED
  found: collections.Counter[str] = collections.Counter() if counts is None else counts
  if config.html_entities and "&" in text:
    text = _unescape(text, found)
  text = _defuse(text, found)
  if config.footnotes and ("[" in text or "^" in text or "_____" in text):
    text = _drop_footnotes(text, found)
  if config.urls:
    text = _replace_urls(text, found)
  if config.quotes and (">" in text or "&gt;" in text):
    text = _mark_quotes(text, found)
  if config.whitespace:
    text = _squeeze(text, found)
  return text


def _unescape(text: str, found: collections.Counter[str]) -> str:
  plain = character_references.unescape(text)
  if plain is text or plain == text:
    return text
  found["html entities"] += 1
  return character_references.unescape(plain) if "&" in plain else plain


def _defuse(text: str, found: collections.Counter[str]) -> str:
  """Puts a space behind every `<` that could begin a marker.

  No later step takes white space out altogether, so none can undo it.
  """
  if "<" not in text and (
    text.isascii() or ("\uff1c" not in text and "\ufe64" not in text)
  ):
    return text
  text, count = _MARKER_START.subn(" ", text)
  found["< defused"] += count
  return text


def _drop_footnotes(text: str, found: collections.Counter[str]) -> str:
  if "_____" in text:
    for rule in _RULE.finditer(text):
      if _MODERATORS.match(text, rule.end()):
        text = text[: rule.start()]
        found["moderators' footnotes"] += 1
        break
  text, raised = _RAISED.subn("", text)
  text, bracketed = _BRACKETED.subn("", text)
  found["reference marks"] += bracketed + raised
  return text


def _replace_urls(text: str, found: collections.Counter[str]) -> str:
  count = links = 0
  if "](" in text:
    text, links = _MARKDOWN_LINK.subn(_link_text, text)
  if "://" in text or "www" in text.lower():
    text, count = _ADDRESS.subn(_url_and_sentence_end, text)
    if "://" in text:
      text, others = _OTHER_SCHEME.subn(_url_and_sentence_end, text)
      count += others
  if _SITE_HINT.search(text):
    text, sites = _SITE.subn(_url_and_sentence_end, text)
    count += sites
  if links:
    text = _REPEATED_URL.sub(URL, text)
  found["links"] += links
  found["urls"] += count
  return text


def _link_text(link: re.Match[str]) -> str:
  """`text <url>`, or `<url>` for a link that is only numbered."""
  text = link[1].strip(" []")
  return f"{text} {URL}" if text and not text.isdecimal() else URL


def _url_and_sentence_end(address: re.Match[str]) -> str:
  whole = address[0]
  return URL + whole[len(whole.rstrip(_SENTENCE_END)) :]


def _mark_quotes(text: str, found: collections.Counter[str]) -> str:
  """Puts runs of quoted lines, with only empty lines between, into one quotation."""
  lines: list[str] = []
  quoted: list[str] = []

  def close():
    if quoted:
      lines.append(f"{QUOTE_START} {' '.join(quoted)} {QUOTE_END}")
      quoted.clear()
      found["quotes"] += 1

  for line in text.splitlines():
    signs = _QUOTE_SIGNS.match(line)
    if signs is None:
      if line.strip():
        close()
      lines.append(line)
    elif content := line[signs.end() :].strip():
      quoted.append(content)
  close()
  return "\n".join(lines)


def _squeeze(text: str, found: collections.Counter[str]) -> str:
  text = " ".join(text.split())
  if not text.isprintable():
    text, count = _INVISIBLE.subn("", text)
    if count:
      found["invisible characters"] += count
      text = " ".join(text.split())
  return text
