import collections
import dataclasses
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks.config.preprocessing import CleaningConfig, MarkersConfig
from commentree.tasks.trees import cleaning, markers

ALL = CleaningConfig()
NONE = CleaningConfig(
  html_entities=False, urls=False, footnotes=False, quotes=False, whitespace=False
)


def only(step):
  return dataclasses.replace(NONE, **{step: True})


@pytest.mark.parametrize(
  ("raw", "clean"),
  [
    ("a &amp; b &#8217;", "a & b \u2019"),
    ("&amp;#x27;", "'"),  # markdown's entity inside the dump's
    ("a&#" + "9" * 5000 + ";b &#0;", "a\ufffdb \ufffd"),
    ("&#x" + "f" * 5000 + " &amp;#" + "9" * 5000, "\ufffd \ufffd"),
    ("&#" + "0" * 5000 + "65; &#x" + "0" * 5000 + "41", "A A"),
    ("no entity; just text & more", "no entity; just text & more"),
  ],
)
def test_html_entities_become_characters(raw, clean):
  assert cleaning.clean_text(raw, only("html_entities")) == clean
  assert cleaning.clean_text(raw, NONE) == raw


@pytest.mark.parametrize(
  ("raw", "clean"),
  [
    ("see http://a.b/c?d=e#f.", "see <url>."),
    ("HTTPS://A.B, ftp://c/d", "<url>, <url>"),
    ("gluedhttp://a.b on", "glued<url> on"),
    ("www.a.org/x and WWW.B.com!", "<url> and <url>!"),
    ("http:// www.a.org b", "<url> b"),
    ("feed://a.b/c", "<url>"),
    ("as en.wikipedia.org/wiki/Tree_(graph) says", "as <url> says"),
    ("(http://a.b/x_(y))", "(<url>)"),
    ("<http://a.b> <www.c.d>", "<url> <url>"),
    ("[text](http://a.b/x_(y)) on", "text <url> on"),
    ('![pic](www.a.b "title") on', "pic <url> on"),
    ("[wiki](/r/trees/wiki)", "wiki <url>"),
    ("[[1]](https://a.b)", "<url>"),
    ("[http://a.b](http://a.b)", "<url>"),
    ("[url=http://a.b]text[/url]", "[url=<url>]text[/url]"),
    ("awww... that is www", "awww... that is www"),
    ("f(x) [not a link] (aside)", "f(x) [not a link] (aside)"),
    ("[text](see below)", "[text](see below)"),
  ],
)
def test_every_address_becomes_the_url_marker(raw, clean):
  assert cleaning.clean_text(raw, ALL) == clean
  assert markers.URL not in cleaning.clean_text(
    raw, dataclasses.replace(ALL, urls=False)
  )


@pytest.mark.parametrize(
  ("raw", "clean"),
  [
    ("> one\n>two\nmine", "<startq> one two <endq>\nmine"),
    ("mine\n\n &gt; one", "mine\n\n<startq> one <endq>"),
    (">one\n\n>> two", "\n<startq> one two <endq>"),
    (">one\nmine\n>two", "<startq> one <endq>\nmine\n<startq> two <endq>"),
    (">\n>  \nmine", "mine"),
    (">!spoiler!<", ">!spoiler!<"),
    ("a > b", "a > b"),
  ],
)
def test_quoted_lines_stand_between_the_quote_markers(raw, clean):
  assert cleaning.clean_text(raw, only("quotes")) == clean
  assert "<startq>" not in cleaning.clean_text(
    raw, dataclasses.replace(ALL, quotes=False)
  )


@pytest.mark.parametrize(
  ("raw", "clean"),
  [
    ("a claim[1], another.[12]", "a claim, another."),
    ("a claim^1. Next ^(2) one.^[3]", "a claim. Next  one."),
    ("[1] source", " source"),
    ("x^2 + 3^2, 5 km^2, a[1], e^1.5", "x^2 + 3^2, 5 km^2, a[1], e^1.5"),
    ("[2019] [sic] [a]", "[2019] [sic] [a]"),
    (
      "my view\n_____\n\n> *Hello, users! This is a footnote from your moderators.*",
      "my view\n",
    ),
    ("above\n_____\nbelow, no footnotes", "above\n_____\nbelow, no footnotes"),
  ],
)
def test_footnotes_go_and_what_looks_like_one_stays(raw, clean):
  assert cleaning.clean_text(raw, only("footnotes")) == clean
  assert cleaning.clean_text(raw, NONE) == raw


def test_white_space_is_squeezed_and_invisible_characters_go():
  raw = "  a\t\tb\n\n c\u00a0d e\u200bf \u200b g\x07 "
  assert cleaning.clean_text(raw, only("whitespace")) == "a b c d ef g"
  assert cleaning.clean_text(raw, NONE) == raw


def test_a_deleted_comment_that_is_kept_becomes_its_marker():
  for text in ("[deleted]", " [removed]\n", "[Deleted by user]"):
    assert cleaning.clean_text(text, NONE) == markers.DELETED
  assert cleaning.clean_text("[deleted] scenes", ALL) == "[deleted] scenes"


def test_what_was_cleaned_is_counted():
  counts = collections.Counter()
  cleaning.clean_text("&gt; q\n[a](http://b) www.c <mask> d.[1]", ALL, counts)
  cleaning.clean_text("www.c", ALL, counts)
  assert +counts == {
    "html entities": 1,
    "< defused": 1,
    "reference marks": 1,
    "links": 1,
    "urls": 2,
    "quotes": 1,
  }


def as_a_tokenizer_reads(text):
  """Compatibility forms folded and invisible characters gone, as in SentencePiece.

  A line end is a space to SentencePiece and BERT's tokenizer, no invisible character.
  """
  text = unicodedata.normalize("NFKC", text).translate(dict.fromkeys(b"\t\n\r", " "))
  return "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf"))


ALL_MARKERS = markers.all_markers(MarkersConfig(max_users=3))
BITS = [
  *ALL_MARKERS,
  *("<", "\uff1c", "\ufe64", ">", "\uff1e", "mask>", "url>", "start", "q>", "ma"),
  *("&lt;", "&amp;lt;", "&#60;", "&#0;", "\u200b", "\x1c", "\x07", "\u00ad", "\u2060"),
  *("[1]", "^1", "_____\n", "\n", "\n> ", " ", "[", "](http://", ")", "www.", "://"),
]


@given(st.lists(st.sampled_from(BITS), max_size=8).map("".join))
def test_no_user_can_write_a_marker(text):
  read = as_a_tokenizer_reads(cleaning.clean_text(text, NONE))
  assert not any(marker in read for marker in ALL_MARKERS)
  read = as_a_tokenizer_reads(cleaning.clean_text(text, ALL))
  ours = (markers.URL, markers.QUOTE_START, markers.QUOTE_END)
  assert not any(marker in read for marker in ALL_MARKERS if marker not in ours)
  assert read.count(markers.QUOTE_START) == read.count(markers.QUOTE_END)
  assert read.count(markers.URL) <= text.count("://") + text.count("www.")


@pytest.mark.parametrize(
  "text",
  [
    *("<mask>", "\uff1cmask\uff1e", "\ufe64mask>", "&lt;mask&gt;", "&amp;lt;mask>"),
    *("<\u200bmask>", "<\x1cmask>", "<\u00admask>", "<\u200d\u2060mask>", "<[1]mask>"),
    *("<^1mask>", "<<mask>", "a<b <mask> <user_0>", "<[mask>](http://a.b)"),
  ],
)
def test_no_disguise_makes_a_marker(text):
  for config in (ALL, NONE):
    assert "<mask>" not in as_a_tokenizer_reads(cleaning.clean_text(text, config))


def test_a_marker_that_a_user_wrote_stays_readable():
  assert cleaning.clean_text("say <mask> & I <3 it", ALL) == "say < mask> & I <3 it"


def is_cleaned_within(seconds, text):
  """Whether it takes no longer in the best of three goes: the machine may be busy."""
  for _ in range(3):
    started = time.process_time()
    cleaning.clean_text(text, ALL)
    if time.process_time() - started < seconds:
      return True
  return False


@pytest.mark.parametrize(
  "unit",
  [
    *("a", "<", ">", "&", "[", "]", "(", "^", "_", "\n", " ", "\x07", "\u200b", "."),
    *(
      "[[",
      "[]",
      "[a](",
      "](",
      "[a](http:",
      "[a](http:(b)",
      "[a](/ ",
      '[a](/ "',
      "![ ",
    ),
    *(
      "http://",
      "http://(",
      "www.",
      "<http://",
      "a://",
      "a.",
      "a.b/",
      "a-.com/",
      "a.uk/",
    ),
    *(
      "[1",
      "^1",
      "^(1",
      "_____\n",
      "_____ \n\n",
      "_____\nfootnote ",
      "> ",
      ">\n",
      "&gt;",
    ),
    *(
      "&amp;",
      "&#60;",
      "<mask>",
      "<user_",
      "\uff1c",
      "[deleted]",
      "(a)",
      "http:// www.",
    ),
  ],
)
@pytest.mark.parametrize("head", ["", "[a](/", "x.com/ :// ", "http://"])
def test_a_long_text_of_anything_is_cleaned_in_linear_time(head, unit):
  """A quadratic pattern would take minutes."""
  assert is_cleaned_within(2, head + unit * (2**18 // len(unit)))


def test_a_megabyte_of_markdown_is_cleaned_within_seconds():
  unit = (
    "> q [1]\nSee [this](http://a.b/c_(d)) & www.e.com/f^2 &amp; <mask>...\n\n_____\n"
  )
  text = unit * (2**20 // len(unit))
  assert is_cleaned_within(4, text)
  counts = collections.Counter()
  cleaning.clean_text(text, ALL, counts)
  assert counts["links"] == counts["urls"] == 2**20 // len(unit)


@given(st.text())
def test_cleaning_takes_any_text_and_leaves_single_spaces(text):
  clean = cleaning.clean_text(text, ALL)
  assert clean == " ".join(clean.split())


@pytest.mark.parametrize("step", [f.name for f in dataclasses.fields(CleaningConfig)])
def test_a_switch_that_is_neither_on_nor_off_is_refused(step):
  with pytest.raises(UserError, match=step):
    CleaningConfig(**{step: "yes"})
