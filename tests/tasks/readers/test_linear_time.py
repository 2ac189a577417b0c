"""Ten times the input takes about ten times as long, whatever it is made of."""

import functools
import gc
import json
import math
import time

import pytest

from commentree.tasks.config.preprocessing import CleaningConfig, TreeConfig
from commentree.tasks.readers import cmv_modes, hacker_news
from commentree.tasks.readers.parsing import deep_json, json_lines, json_records
from commentree.tasks.subtrees import spans
from commentree.tasks.trees import character_references, cleaning
from commentree.tasks.trees.comment_tree import ReadCounts, Span

_CLEANING = CleaningConfig()
# What patterns begin with and never end, alone and behind each other.
_UNITS = [
  "<a",
  "<a ",
  "a",
  "&#9",
  "&#x9",
  "&",
  "<",
  " ",
  "\n",
  '"',
  "'",
  "=",
  "a=",
  'a="',
  "a  ",
  "href=",
  "[",
  "](",
  "[a](http://",
  "http://a.b ",
  "> ",
  ">",
  "_____\n",
  "^",
  "{",
  '{"a":',
  "\\",
  "<claim>",
  "</premise>",
  "<claim></premise>",
  "<!--",
  "<![CDATA[",
  "<reply id='a'>",
  "</reply>",
]


def clean(text):
  cleaning.clean_text(text, _CLEANING)


def unescape(text):
  character_references.unescape("&#" + text)
  character_references.unescape("&#x" + text)


def hacker_news_text(text):
  hacker_news.plain("<" + text, ReadCounts())


def hacker_news_link(text):
  hacker_news.plain(f"<a {text}>", ReadCounts())


def annotated_reply(text):
  document = f'<thread ID="x"><OP>p</OP><reply id="c">{text}'
  list(cmv_modes.document_rows(document, TreeConfig(), ReadCounts()))


def annotated_attributes(text):
  document = f'<thread ID="x"><OP>p</OP><reply id="c" {text}>b</reply></thread>'
  list(cmv_modes.document_rows(document, TreeConfig(), ReadCounts()))


def json_line(text):
  json_lines.parse(text.encode(), ReadCounts())
  json_lines.parse(f'{{"a": "{text}'.encode(), ReadCounts())


def keys_of_records(text):
  json_records.first_keys(('{"a": ' + text).encode())
  json_records.first_keys(('[{"a": ' + text).encode())


def records(text):
  for start in ("[", '{"a": "b'):
    cut = json_records.of_blocks([(start + text).encode()], TreeConfig(), ReadCounts())
    assert len(list(cut)) <= len(text) + 1


def words(text):
  spans.words_through_cleaning(text, cleaning.clean_text(text, _CLEANING), _CLEANING)


def labelled(text):
  some = [Span(i, min(i + 9, len(text)), "a") for i in range(0, len(text), 7)]
  spans.through_cleaning(text, cleaning.clean_text(text, _CLEANING), some, _CLEANING)


def seconds(work, text, bound):
  """The least of five runs, or of fewer once one is as fast as it must be.

  Of this thread's processor time, garbage collection left out: what other tests left
  on the heap, and other threads, take none of it. What other processes take from the
  caches they take from some runs and not from all.
  """
  least = math.inf
  gc.disable()
  try:
    for _ in range(5):
      start = time.thread_time()
      work(text)
      least = min(least, time.thread_time() - start)
      if least < bound:
        break
  finally:
    gc.enable()
  return least


@pytest.mark.long
@pytest.mark.parametrize("unit", _UNITS, ids=json.dumps)
@pytest.mark.parametrize(
  "work",
  [
    clean,
    unescape,
    hacker_news_text,
    hacker_news_link,
    annotated_reply,
    annotated_attributes,
    json_line,
    keys_of_records,
    records,
    words,
    labelled,
  ],
  ids=lambda work: work.__name__,
)
def test_time_grows_with_length_and_not_with_its_square(work, unit):
  made = functools.partial(str.__mul__, unit)
  size = 2_000 if work in (words, labelled) else 10_000
  short = made(size // len(unit))
  # Quadratic work on the longer text takes a hundred times as long.
  floor = 0.002
  shorter = max(seconds(work, short, 0), floor)
  assert seconds(work, short * 10, 30 * shorter) < 30 * shorter


def test_deep_nesting_takes_little_longer_than_as_many_brackets_side_by_side():
  """Measured: 4 times as long; 20 times, if each token is a step in Python."""
  opened, closed = '{"a":[', "]}"
  deep = opened * 20_000 + closed * 20_000
  shallow = "[" + ",".join([opened * 50 + closed * 50] * 400) + "]"
  bound = 12 * seconds(json.loads, shallow, 0)
  assert seconds(deep_json.parse, deep, bound) < bound
