"""Strategies of JSON that looks like records of comments, and of any other."""

import math

from hypothesis import strategies as st

IDS = st.sampled_from(["a", "t1_a", "t3_a", "p", "t3_p", "b", " ", "", 1, 2, 7, "1"])


TEXTS = st.text(st.characters(), max_size=8) | st.sampled_from(
  ["", "\0", "\ud800", "\ud83d\ude00", "[deleted]", " [Removed]\n", "<p>&#0;&#55296;<a"]
)


NUMBERS = (
  st.integers()
  | st.floats()
  | st.sampled_from([10**400, -(10**400), 2**63, 2**32, 1e999, math.nan])
)


VALUES = st.recursive(
  st.none() | st.booleans() | NUMBERS | TEXTS | IDS,
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
  max_leaves=6,
)


def objects(*fields):
  """JSON objects with some of these fields, each any value, ids being likely."""
  return st.fixed_dictionaries({}, optional=dict.fromkeys(fields, IDS | VALUES))


RECORDS = {
  "pushshift": objects(
    *("id", "link_id", "parent_id", "author", "body", "created_utc", "score"),
    *("subreddit", "title", "selftext", "other"),
  ),
  "convokit": objects(
    *("id", "conversation_id", "root", "reply_to", "reply-to", "speaker", "user"),
    *("text", "timestamp", "meta", "other"),
  ),
  "hacker_news": st.builds(
    lambda record, kind: {**record, **({"type": kind} if kind else {})},
    objects(
      *("id", "by", "parent", "kids", "text", "type", "time", "dead", "deleted"),
      *("title", "url", "score"),
    ),
    st.sampled_from([None, "comment", "comment", "story", "poll", "pollopt", "x"]),
  ),
}


def records_of(values):
  """Lines; or, where the first is an array, the elements of all that are arrays.

  An array of values among objects is a line.
  """
  if not values or not isinstance(values[0], list):
    return values
  first, *others = values
  plain = first and not any(isinstance(value, (dict, list)) for value in first)
  if plain and 2 * sum(isinstance(value, dict) for value in others) > len(others):
    return values

  def elements(value, depth=0):
    if not isinstance(value, list) or depth == 8:
      return [value]
    return [x for inner in value for x in elements(inner, depth + 1)]

  return elements(values, -1)
