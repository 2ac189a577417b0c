"""Whatever a file holds, nothing raises and every comment is counted once."""

import json
import math
import random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks import readers
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers import cmv_modes, hacker_news, rows
from commentree.tasks.readers.parsing import deep_json, files
from commentree.tasks.readers.tables import columns
from commentree.tasks.readers.tables import records as table_records
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tests.support.tasks.any_json import (
  IDS,
  RECORDS,
  TEXTS,
  VALUES,
  objects,
  records_of,
)

CONFIGS = [
  TreeConfig(deleted=deleted, orphans=orphans, target_post=post)
  for deleted in ("splice", "keep")
  for orphans in ("attach", "drop")
  for post in (False, True)
]
NAMES = [format_.name for format_ in readers.FORMATS]
FEW = settings(max_examples=60, suppress_health_check=list(HealthCheck))


THINGS = st.recursive(
  st.builds(
    lambda kind, data: {"kind": kind, "data": data},
    st.sampled_from(["t1", "t3", "more", "t5"]) | VALUES,
    objects(
      "id", "link_id", "parent_id", "body", "title", "replies", "count", "children"
    )
    | VALUES,
  )
  | VALUES,
  lambda inner: st.builds(
    lambda children, ident: {
      "kind": "t1",
      "data": {
        "id": ident,
        "body": "text",
        "replies": {"kind": "Listing", "data": {"children": children}},
      },
    },
    st.lists(inner, max_size=3),
    IDS,
  ),
  max_leaves=8,
)
DOCUMENTS = (
  st.lists(
    st.builds(
      lambda children: {"kind": "Listing", "data": {"children": children}},
      st.lists(THINGS, max_size=4),
    ),
    max_size=3,
  )
  | VALUES
)


@pytest.fixture
def path(tmp_path):
  return tmp_path / "any"


def read(path, content, name, config=CONFIGS[0]):
  """The trees of a file, whose read_counts must hold together."""
  path.write_bytes(content)
  read_counts = ReadCounts()
  names = table_records.names(str(path), config) if name == "table" else []
  if names and columns.find(names, ()) is None:
    # The one thing that has to be asked for, before anything is read.
    with pytest.raises(UserError, match="which columns hold ids and texts"):
      readers.formats_of(str(path), config, name)
    return [], read_counts
  found = list(readers.iter_trees(str(path), config, read_counts, name))
  assert read_counts.kept == sum(len(tree.comments) - 1 for tree in found)
  assert read_counts.files.total() == 1
  for tree in found:
    assert all(c.parent < i for i, c in enumerate(tree.comments))
    for comment in tree.comments:
      comment.text.encode("utf-8")
      assert "\0" not in comment.text
      assert comment.created_utc is None or 0 <= comment.created_utc < 2**63
      assert comment.score is None or abs(comment.score) < 2**31
      for span in comment.spans:
        assert 0 <= span.start < span.end <= len(comment.text)
  return found, read_counts


def accounted(read_counts):
  missing = sum(read_counts.trees[fate] for fate in comment_tree.NO_POST)
  return read_counts.comments.total() + read_counts.trees.total() - missing


@pytest.mark.parametrize("name", RECORDS)
@FEW
@given(data=st.data(), config=st.sampled_from(CONFIGS))
def test_every_line_of_any_json_is_counted_once(path, name, data, config):
  records = data.draw(st.lists(RECORDS[name] | VALUES, max_size=8))
  dumped = [json.dumps(record).encode() for record in records]
  _, read_counts = read(path, b"\n".join(dumped), name, config)
  assert accounted(read_counts) == len(records_of(records))


@FEW
@given(DOCUMENTS, st.sampled_from(CONFIGS), st.sampled_from([None, 1]))
def test_every_thing_in_any_listing_is_counted_once(path, document, config, indent):
  _, read_counts = read(
    path, json.dumps(document, indent=indent).encode(), "reddit_api", config
  )
  parts = document if isinstance(document, list) else [document]
  # Arrays in a file are opened; so are those of answers.
  parts = [x for part in parts for x in opened(part)]
  things = 0
  for part in parts:
    if (children := listing(part)) is not None:
      things += counted(children)
    elif isinstance(part, dict) and part.get("kind") in ("t1", "t3"):
      things += counted([part])
    elif not (isinstance(part, dict) and part.get("kind") == "more"):
      things += 1  # a part without a listing
  assert accounted(read_counts) == things


def opened(part):
  if isinstance(part, list):
    return [x for inner in part for x in opened(inner)]
  return [part]


def listing(value):
  try:
    children = value["data"]["children"]
    return (
      children if isinstance(children, list) and value.get("kind") != "more" else None
    )
  except (KeyError, TypeError, IndexError, AttributeError):
    return None


def counted(children):
  """Things that are no stubs in a listing, by recursion."""
  things = 0
  for child in children:
    data = child.get("data") if isinstance(child, dict) else None
    if isinstance(data, dict) and child.get("kind") == "more":
      continue
    things += 1
    if isinstance(data, dict) and child.get("kind") == "t1":
      things += counted(listing(data.get("replies")) or [])
  return things


@FEW
@given(
  st.lists(
    st.sampled_from(
      [
        *("<thread ID='a'>", "<thread>", "</thread>", "<title>", "</title>", "<OP>"),
        *("</OP>", '<reply id="1" author="ann">', "<reply>", "</reply>", "<reply/>"),
        *("<claim type='x'>", "</claim>", "<premise>", "</premise>", "<claim", ">"),
        *("<!--", "-->", "<![CDATA[", "]]>", "<!DOCTYPE x [", "]>", "<?", "?>", "&"),
        *(
          "&#0;",
          "&#xD800;",
          "&#1114112;",
          "&#x41;",
          "&lt;",
          "&nope;",
          " ",
          "\n",
          "\0",
        ),
        *("word", "\u2003", "[deleted]", "\ufffe", "\U0001f600"),
      ]
    )
    | TEXTS,
    max_size=25,
  ),
  st.sampled_from(CONFIGS),
)
def test_every_reply_of_any_xml_is_counted_once(path, tokens, config):
  content = "".join(tokens).encode("utf-8", "surrogatepass")
  _, read_counts = read(path, content, "cmv_modes", config)
  assert read_counts.trees.total() == 1
  document = content.decode("utf-8-sig", "replace").replace("\0", "")
  replies = list(cmv_modes.document_rows(document, config, ReadCounts()))[1:]
  if (
    cmv_modes.NO_THREAD not in read_counts.trees
    and comment_tree.TREE_NO_ID not in read_counts.trees
  ):
    assert read_counts.comments.total() == len(replies)


@pytest.mark.parametrize("name", NAMES)
@FEW
@given(content=st.binary(max_size=300), config=st.sampled_from(CONFIGS))
def test_any_bytes_are_read_by_any_format(path, name, content, config):
  read(path, content, name, config)
  read(path, b'{"id": "a", "comments": [' + content, name, config)
  read(path, b"<thread ID='a'><reply id='b'>" + content + b"</reply>", name, config)


@pytest.mark.parametrize("name", NAMES)
def test_the_deepest_nesting_is_read_or_refused_by_any_format(path, name):
  deep = 10_000
  for begin, end in ((b"[", b"]"), (b'{"data":', b"}"), (b"<claim>", b"</claim>")):
    for inner in (b"", b"1"):
      read(path, begin * deep + inner + end * deep, name)
      read(path, begin * deep, name)
  value = b"[" * deep + b"]" * deep
  line = b'{"id": "a", "link_id": "p", "conversation_id": "p", "body": %s}' % value
  read(path, line + b"\n" + line.replace(b'"a"', value), name)


def test_a_listing_of_any_depth_is_read(path):
  depth = 5000
  head = (
    b'{"kind": "Listing", "data": {"children": [{"kind": "t1", "data": {"id": "c%d",'
    b' "link_id": "t3_p", "body": "text", "replies": '
  )
  content = b"".join(head % i for i in range(depth)) + b'""' + b"}}]}}" * depth
  (tree,), read_counts = read(path, content, None)
  assert read_counts.comments == {comment_tree.KEPT: depth}
  assert max(tree.depths()) == depth


def test_parents_of_any_depth_are_found(path):
  depth = 3000
  items = [
    {"id": i, "type": "comment", "parent": i - 1, "text": "x"} for i in range(2, depth)
  ]
  items.append({"id": 1, "type": "story", "title": "t"})
  random.Random(0).shuffle(items)
  (tree,), read_counts = read(
    path, b"\n".join(json.dumps(i).encode() for i in items), None
  )
  assert max(tree.depths()) == depth - 2
  assert read_counts.comments == {comment_tree.KEPT: depth - 2}


@given(
  st.lists(
    st.tuples(st.integers(1, 12), st.integers(0, 15)),
    max_size=20,
    unique_by=lambda x: x[0],
  )
)
def test_roots_are_those_found_a_step_at_a_time(links):
  parents = dict(links)
  roots = hacker_news.Roots(list(parents), list(parents.values()))
  for ident in range(1, 17):
    seen, at = [], ident
    while parents.get(at) and at not in seen:
      seen.append(at)
      at = parents[at]
    expected = hacker_news.NO_ROOT if at in seen else at
    assert roots.of(ident) == (expected if ident in parents else None)


@pytest.mark.parametrize(
  "opener", ["<!--", "<![CDATA[", "<?", "<!DOCTYPE x [", "<claim a='", "<claim ", "&#1"]
)
def test_what_never_ends_takes_no_longer_than_its_length(path, opener):
  content = "<thread ID='a'><reply id='b'>" + opener * 100_000
  (tree,), _ = read(path, content.encode(), "cmv_modes")
  assert len(tree.comments) == 2


def test_entities_are_never_expanded(path):
  lol = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 20))
  content = (
    f'<?xml version="1.0"?><!DOCTYPE thread [<!ENTITY l0 "ha">{lol}]>'
    '<thread ID="a"><OP>&l19;</OP><reply id="b">&l19; &lt;</reply></thread>'
  )
  (tree,), read_counts = read(path, content.encode(), None)
  assert [c.text for c in tree.comments] == ["&l19;", "&l19; <"]
  assert read_counts.repaired == {}


JSON = st.recursive(
  st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
  lambda inner: (
    st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
  ),
)


@pytest.mark.long
@given(JSON, st.data())
def test_what_is_nested_too_deeply_for_python_is_parsed_as_python_would(value, data):
  written = json.dumps(value, ensure_ascii=data.draw(st.booleans()))
  if data.draw(st.booleans()):
    place = data.draw(st.integers(0, len(written)))
    sign = data.draw(st.sampled_from([*',:[]{}"1 x', ""]))
    written = written[:place] + sign + written[place + data.draw(st.integers(0, 1)) :]
  try:
    expected = repr(json.loads(written, strict=False))
  except ValueError:
    expected = "none"
  for levels in (1, 2, 100):
    try:
      found = repr(deep_json.parse(written, levels))
    except ValueError:
      found = "none"
    assert found == expected


@pytest.mark.parametrize(
  "written",
  [
    *("[,]", "{,}", "[1,]", '{"a":1,}', "", "  ", "[1 2]", '{"a" 1}', "[[]", "[]]"),
    *("[] []", '{"a":{}}', "[1,,2]", '{"a"::1}', "[:]", '{"a":}', "1 ", "[1]x", "[1"),
    *('{"a":1 "b":2}', "{1:2}", "[{}{}]", "[{},{}]", '{"a"}', '{"a":1}}', "[}", "{]"),
    *('{"a":[1}', '["a":1]', '"a', "nul", "[tru]", "{[]:1}", ",", "]", '{"a","b"}'),
  ],
)
def test_what_is_no_json_is_none_however_deep(written):
  try:
    expected = json.loads(written)
  except ValueError:
    expected = "none"
  for levels in (1, 2, 100):
    try:
      assert deep_json.parse(written, levels) == expected
    except ValueError:
      assert expected == "none"


@given(st.binary(max_size=400) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_beginning_is_looked_at(head):
  for format_ in readers.FORMATS:
    assert format_.matches("name", head) in (True, False)


@given(VALUES)
@example(math.inf)
@example(1e300)
@example(10**400)
@example("9" * 20)
@example("inf")
def test_any_value_is_normalised(value):
  read_counts = ReadCounts()
  assert isinstance(rows.identifier(value, read_counts), (str, type(None)))
  assert isinstance(rows.text(value, read_counts), (str, type(None)))
  assert isinstance(rows.seconds(value), (int, type(None)))
  assert isinstance(rows.votes(value), (int, type(None)))
  assert 0 <= (rows.seconds(value) or 0) < 2**63
  assert abs(rows.votes(value) or 0) < 2**31
  assert isinstance(hacker_news.plain(value, read_counts), (str, type(None)))


def test_text_of_html_is_what_was_written_in_any_order_of_tags():
  for written, expected in [
    ("one<p>two<p>three", "one\n\ntwo\n\nthree"),
    (
      'see <a href="http:&#x2F;&#x2F;x.org&#x2F;a?b&amp;c" rel="x">http:...</a>!',
      "see http://x.org/a?b&c!",
    ),
    ("<i>so</i> &lt;b&gt; &amp;lt;", "so <b> &lt;"),
    ("<pre><code>  if x:\n    y\n</code></pre>after", "if x:\n    y\nafter"),
    ("a < b > c <3", "a < b > c <3"),
    ("<a>no address</a> <a href='x'>open", "no address x"),
  ]:
    assert hacker_news.plain(written, ReadCounts()) == expected


def test_a_file_too_long_to_be_one_document_is_skipped(path):
  config = TreeConfig(max_line_bytes=1000)
  reply = b"<reply id='b'>" + b"x\n" * 1000 + b"</reply>"
  _, read_counts = read(path, b"<thread ID='a'>" + reply, None, config)
  assert read_counts.trees == {files.FILE_TOO_LONG: 1}
  pretty = json.dumps([{"kind": "Listing", "data": {"children": [0] * 999}}], indent=1)
  _, read_counts = read(path, pretty.encode(), None, config)
  assert read_counts.trees == {files.LINE_TOO_LONG: 1}
