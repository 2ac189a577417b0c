"""What is peculiar to a format: stubs, keys of old versions, marked text, HTML."""

import json

import pytest

from commentree.tasks import readers
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers import cmv_modes, convokit, reddit_api, tree_jsonl
from commentree.tasks.readers.parsing import json_lines, json_records
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tests.support.tasks.reading import parents
from commentree.tests.support.tasks.reading import read_contents as read


def listing(*things):
  return {"kind": "Listing", "data": {"children": list(things)}}


def t1(ident, replies="", **data):
  body = f"body of {ident}"
  return {"kind": "t1", "data": {"id": ident, "body": body, "replies": replies, **data}}


def t3(ident, **data):
  return {"kind": "t3", "data": {"id": ident, "title": f"post {ident}", **data}}


def more(*ids, count=0):
  return {"kind": "more", "data": {"children": list(ids), "count": count}}


def test_stubs_are_counted_as_missing_and_as_nothing_else(tmp_path):
  nested = t1("a", listing(t1("b"), t1("d"), more("x", "y", count=5)))
  document = [listing(t3("p")), listing(nested, t1("c", None), more(count=0))]
  found, read_counts = read(tmp_path, a__json=json.dumps(document))
  assert parents(found["p"]) == {"a": "p", "b": "a", "d": "a", "c": "p"}
  assert [c.id for c in found["p"].comments] == ["p", "a", "b", "d", "c"]
  assert read_counts.comments == {comment_tree.KEPT: 4}
  assert read_counts.trees == {comment_tree.KEPT: 1}
  assert read_counts.missing == {
    comment_tree.MORE_STUBS: 2,
    comment_tree.MORE_IDS: 2,
    comment_tree.MORE_COUNT: 5,
  }
  assert "missing" in read_counts.as_dict()


def test_what_a_comment_says_of_its_place_counts_before_where_it_is_nested(tmp_path):
  moved = t1("b", parent_id="t3_p", link_id="t3_p")
  document = [listing(t3("p")), listing(t1("a", listing(moved)))]
  found, _ = read(tmp_path, a__json=json.dumps(document))
  assert parents(found["p"]) == {"a": "p", "b": "p"}


def test_parts_of_a_thread_in_several_files_become_one_tree(tmp_path):
  known = {"link_id": "t3_p"}
  first = [listing(t3("p")), listing(t1("a", parent_id="t3_p", **known), more("b"))]
  rest = listing(t1("b", parent_id="t1_a", **known), t1("a", parent_id="t3_p", **known))
  found, read_counts = read(
    tmp_path, a__json=json.dumps(first), b__json=json.dumps(rest)
  )
  assert parents(found["p"]) == {"a": "p", "b": "a"}
  assert read_counts.comments == {
    comment_tree.KEPT: 2,
    comment_tree.DROPPED_DUPLICATE: 1,
  }


@pytest.mark.parametrize("bad", ["", "[", "{no\n", '{"kind": "Listing"}\n'])
def test_a_file_may_hold_a_document_a_line(tmp_path, bad):
  documents = [[listing(t3(p)), listing(t1(f"{p}c"))] for p in "pq"]
  content = bad + "\n" + "\n\n".join(map(json.dumps, documents)) + "\n"
  found, read_counts = read(tmp_path, a__json=content)
  if bad:
    path = tmp_path / "a.json"
    read_counts = ReadCounts()
    rows = list(
      readers.format_of(str(path), "reddit_api").rows(
        str(path), TreeConfig(), read_counts
      )
    )
    assert len(rows) == 4
    fate = reddit_api.NO_LISTING if "kind" in bad else json_lines.BAD_JSON
    if bad == "[":
      assert read_counts.repaired == {json_records.REPAIRED_NOT_CLOSED: 1}
    else:
      assert read_counts.trees == {fate: 1}
  else:
    assert [parents(found[p]) for p in "pq"] == [{"pc": "p"}, {"qc": "q"}]


def test_posts_alone_comments_alone_and_single_things_are_read(tmp_path):
  posts = listing(t3("p"), t3("q"))
  comments = listing(t1("a", link_id="t3_p", parent_id="t3_p"), t1("lost"))
  single = t1("b", link_id="t3_q", parent_id="t3_q")
  values = {"a__json": posts, "b__json": comments, "c__json": single}
  found, read_counts = read(tmp_path, **{k: json.dumps(v) for k, v in values.items()})
  assert {k: parents(t) for k, t in found.items()} == {"p": {"a": "p"}, "q": {"b": "q"}}
  assert read_counts.comments == {comment_tree.KEPT: 2, comment_tree.DROPPED_NO_TREE: 1}


def test_copies_of_a_stub_count_once_and_not_at_all_once_it_is_read(tmp_path):
  known = {"link_id": "t3_p"}
  a = t1("a", listing(more("x", "y", count=3)), parent_id="t3_p", **known)
  document = [listing(t3("p")), listing(a, more("z", count=1))]
  later = t1("a", listing(more("x", "w", count=4)), parent_id="t3_p", **known)
  copies = {
    "a__json": json.dumps(document),
    "b__json": json.dumps([document, document]),
    "c__json": json.dumps([listing(t3("p")), listing(later)]),
  }
  found, read_counts = read(tmp_path, **copies)
  assert parents(found["p"]) == {"a": "p"}
  assert read_counts.missing == {
    comment_tree.MORE_STUBS: 2,
    comment_tree.MORE_IDS: 4,
    comment_tree.MORE_COUNT: 5,
  }
  things = [t1(x, parent_id="t1_a", **known) for x in "xyw"]
  things.append({"kind": "more", "data": {"parent_id": "t1_x", "count": 1, "id": "_"}})
  answer = {"json": {"errors": [], "data": {"things": things}}}
  found, read_counts = read(tmp_path, **copies, d__json=json.dumps(answer))
  assert parents(found["p"]) == {"a": "p", "x": "a", "y": "a", "w": "a"}
  assert read_counts.missing == {
    comment_tree.MORE_STUBS: 2,
    comment_tree.MORE_IDS: 1,
    comment_tree.MORE_COUNT: 2,
  }


def test_a_comment_tree_of_an_archive_is_read(tmp_path):
  known = {"link_id": "t3_p"}
  below = t1("b", parent_id="t1_a", **known)
  things = [t1("a", listing(below, more("x", count=1)), parent_id="t3_p", **known)]
  found, read_counts = read(
    tmp_path, a__json=json.dumps({"data": [*things, more("y")]})
  )
  assert parents(found["p"]) == {"a": "p", "b": "a"}
  assert read_counts.missing == {
    comment_tree.MORE_STUBS: 2,
    comment_tree.MORE_IDS: 2,
    comment_tree.MORE_COUNT: 1,
  }


def test_comments_nested_in_others_are_each_read_once(tmp_path):
  def said(ident, **nested):
    return {"id": ident, "body": f"body of {ident}", **nested}

  deep = said("d", replies=[said("e"), "b", 7])
  record = {
    "id": "p",
    "comments": [
      said("a", replies=[said("b", children=[said("c", comments=[deep])])]),
      said("f", replies=[], parent_id="c", children=["a", "b"]),
      said(None, replies=[said("g"), None]),
      said("h", replies={"data": 1}),
    ],
  }
  found, read_counts = read(tmp_path, a__jsonl=json.dumps(record))
  expected = {"a": "p", "b": "a", "c": "b", "d": "c", "e": "d", "f": "c", "g": "p"}
  assert parents(found["p"]) == {**expected, "h": "p"}
  assert read_counts.comments == {
    comment_tree.KEPT: 8,
    comment_tree.DROPPED_NO_ID: 1,
    comment_tree.DROPPED_NOT_OBJECT: 1,
  }
  assert read_counts.repaired == {tree_jsonl.REPLIES_PASSED_OVER: 1}
  del record["id"]
  _, read_counts = read(tmp_path, a__jsonl=json.dumps(record))
  assert read_counts.comments[comment_tree.DROPPED_WITH_TREE] == 9


def test_a_post_may_have_its_comments_under_another_name(tmp_path):
  record = {"id": "p", "text": "post", "children": [{"id": "a", "text": "said"}]}
  found, read_counts = read(tmp_path, a__jsonl=json.dumps(record))
  assert [c.text for c in found["p"].comments] == ["post", "said"]
  assert read_counts.comments == {comment_tree.KEPT: 1}


def test_conversations_of_open_assistant_are_read_as_trees_and_as_messages(tmp_path):
  def message(ident, parent, **more):
    known = {"message_id": ident, "parent_id": parent, "text": f"text of {ident}"}
    return {**known, "role": f"role of {ident}", "lang": "en", **more}

  last = message("c", "b", deleted=True)
  whole = message("p", None, replies=[message("b", "p", replies=[last, None])])
  found, read_counts = read(
    tmp_path, a__jsonl=json.dumps({"message_tree_id": "p", "prompt": whole})
  )
  post, reply = found["p"].comments
  assert (post.text, reply.text) == ("text of p", "text of b")
  assert (reply.author, reply.language, reply.reply_deleted) == (
    "role of b",
    "en",
    True,
  )
  assert read_counts.comments == {
    comment_tree.KEPT: 1,
    comment_tree.SPLICED_DELETED: 1,
    comment_tree.DROPPED_NOT_OBJECT: 1,
  }
  messages = [
    message("d", "b", message_tree_id="p", created_date="2023-01-02T03:04:05+00:00"),
    message("b", "p", message_tree_id="p"),
    message("p", None, message_tree_id="p"),
    message("x", None, message_tree_id=None),
  ]
  found, read_counts = read(tmp_path, a__jsonl="\n".join(map(json.dumps, messages)))
  assert parents(found["p"]) == {"b": "p", "d": "b"}
  assert found["p"].comments[2].created_utc == 1672628645
  assert read_counts.comments == {comment_tree.KEPT: 2, comment_tree.DROPPED_NO_TREE: 1}


def test_replies_that_are_no_listing_are_passed_over(tmp_path):
  document = [listing(t3("p")), listing(t1("a", 5), t1("b", {"kind": "x"}))]
  found, read_counts = read(tmp_path, a__json=json.dumps(document))
  assert parents(found["p"]) == {"a": "p", "b": "p"}
  assert read_counts.repaired == {reddit_api.REPLIES_PASSED_OVER: 2}


UTTERANCE_KEYS = {
  "v1": ("root", "user", "reply_to"),
  "v2": ("conversation_id", "speaker", "reply-to"),
  "v3": ("conversation_id", "speaker", "reply_to"),
}


@pytest.mark.parametrize("version", UTTERANCE_KEYS)
def test_corpora_of_every_version_are_read(tmp_path, version):
  conversation, speaker, reply_to = UTTERANCE_KEYS[version]

  def utterance(ident, answers, text, **meta):
    known = {conversation: "p", speaker: f"by {ident}", reply_to: answers}
    return json.dumps(
      {"id": ident, "text": text, "timestamp": 9, "meta": meta, **known}
    )

  about = {"title": "title", "subreddit": "here"}
  lines = [
    utterance("b", "a", "second"),
    utterance("a", "p", "first", score=4),
    utterance("p", None, "self", score=7),
  ]
  (tmp_path / "conversations.json").write_text(
    json.dumps({"p": about if version == "v1" else {"meta": about, "vectors": []}})
  )
  found, read_counts = read(tmp_path, utterances__jsonl="\n".join(lines))
  tree = found["p"]
  assert parents(tree) == {"a": "p", "b": "a"}
  assert [c.author for c in tree.comments] == ["by p", "by a", "by b"]
  assert [c.score for c in tree.comments] == [7, 4, None]
  assert tree.comments[0].text == "title\n\nself"
  assert tree.subreddit == "here"
  assert read_counts.trees == {comment_tree.KEPT: 1}


@pytest.mark.parametrize("about", ["{no json", "[]", '{"p": 5}', '{"p": {"meta": 5}}'])
def test_a_corpus_without_readable_titles_is_read_without_titles(tmp_path, about):
  (tmp_path / "conversations.json").write_text(about)
  lines = [
    {
      "id": "p",
      "conversation_id": "p",
      "speaker": "x",
      "text": "self",
      "reply_to": None,
    },
    {
      "id": "a",
      "conversation_id": "p",
      "speaker": "x",
      "text": "text",
      "reply_to": "p",
    },
  ]
  found, read_counts = read(
    tmp_path, utterances__jsonl="\n".join(map(json.dumps, lines))
  )
  assert found["p"].comments[0].text == "self"
  unreadable = not about.startswith('{"p": {')
  assert read_counts.files[convokit.TITLES_UNREADABLE] == unreadable


def thread(body, title="<claim>CMV: x</claim>", ident="p"):
  return f'<?xml version="1.0"?>\n<thread ID="{ident}"><title>{title}</title>{body}'


def marked(comment):
  return [(comment.text[s.start : s.end], s.label) for s in comment.spans]


OP = '<OP author="ann">\n\n<premise>so &amp; so</premise> rest\n</OP>'


def test_replies_answer_the_one_before_and_keep_what_is_marked(tmp_path):
  body = (
    f'{OP}<reply id="a" author="bob">\n <claim type="x" id = "1" > out '
    "<premise>in</premise> &#8710;</claim>,<claim> </claim></reply>"
    '<reply id="b" author="ann"><premise>\u201cyes\u201d</premise></reply></thread>'
  )
  found, read_counts = read(tmp_path, a__xml=thread(body))
  post, first, second = found["p"].comments
  assert parents(found["p"]) == {"a": "p", "b": "a"}
  assert post.text == "CMV: x\n\nso & so rest"
  assert marked(post) == [("CMV: x", "claim"), ("so & so", "premise")]
  assert first.text == "out in \u2206,"
  assert marked(first) == [("out in \u2206", "claim"), ("in", "premise")]
  assert marked(second) == [("\u201cyes\u201d", "premise")]
  assert [c.author for c in (post, first, second)] == ["ann", "bob", "ann"]
  assert read_counts.repaired == {}


@pytest.mark.parametrize(
  ("title", "op", "text", "spans"),
  [
    ("", OP, "so & so rest", ["so & so"]),
    ("[deleted]", OP, "so & so rest", ["so & so"]),
    (" <claim>t</claim> ", "<OP>[removed]</OP>", "t", ["t"]),
    (" <claim>t</claim> ", "", "t", ["t"]),
    ("<claim>[deleted]</claim>", "<OP/>", "", []),
  ],
)
def test_marks_of_a_post_fit_its_text_whatever_is_deleted(
  tmp_path, title, op, text, spans
):
  content = thread(op + "<reply id='a'>text</reply></thread>", title)
  found, _ = read(tmp_path, a__xml=content)
  post = found["p"].comments[0]
  assert post.text == text
  assert [t for t, _ in marked(post)] == spans
  config = TreeConfig(deleted="keep", target_post=True)
  for tree in read(tmp_path, config, a__xml=content)[0].values():
    for span in tree.comments[0].spans:
      assert tree.comments[0].text[span.start : span.end] in spans


@pytest.mark.parametrize(
  ("body", "expected", "repaired"),
  [
    # A reply that does not end, and one inside it that does.
    ("<reply id='a'>x<claim>y</claim><reply id='b'>z</reply>", [["y"], []], (1, 0)),
    # A claim that does not end, ends with its reply.
    ("<reply id='a'>x<claim>y</reply><reply id='b'>z</reply>", [["y"], []], (1, 0)),
    # Crossed tags: the inner one ends with the outer one.
    (
      "<reply id='a'><claim>x<premise>y</claim>z</premise></reply>"
      "<reply id='b'>z</reply>",
      [["xy", "y"], []],
      (1, 1),
    ),
    # Ends of what never began, in and between replies.
    (
      "</OP><reply id='a'>x</claim></reply></reply><reply id='b'>z</reply>",
      [[], []],
      (0, 3),
    ),
    # The file ends in the middle of a reply.
    ("<reply id='a'>x</reply><reply id='b'><claim>z", [[], ["z"]], (3, 0)),
  ],
)
def test_files_that_are_not_well_formed_are_mended(tmp_path, body, expected, repaired):
  end = "" if body.endswith("z") else "</thread>"
  found, read_counts = read(tmp_path, a__xml=thread("<OP>op</OP>" + body + end))
  comments = found["p"].comments[1:]
  assert parents(found["p"]) == {"a": "p", "b": "a"}
  assert [[text for text, _ in marked(c)] for c in comments] == expected
  closed = read_counts.repaired[cmv_modes.REPAIRED_NOT_CLOSED]
  assert (closed, read_counts.repaired[cmv_modes.REPAIRED_NOT_OPENED]) == repaired


def test_threads_that_begin_with_the_same_post_become_one_tree(tmp_path):
  first = thread(OP + "<reply id='a'>x</reply><reply id='b'>y</reply></thread>")
  second = thread(OP + "<reply id='a'>x</reply><reply id='c'>z</reply></thread>")
  found, read_counts = read(tmp_path, a__xml=first, b__xml=second)
  assert parents(found["p"]) == {"a": "p", "b": "a", "c": "a"}
  assert read_counts.trees == {comment_tree.KEPT: 1, comment_tree.TREE_DUPLICATE: 1}


@pytest.mark.parametrize(
  ("content", "tree_fates", "comment_fates"),
  [
    ("<html>nothing</html>", {cmv_modes.NO_THREAD: 1}, {}),
    (
      "<thread><reply id='a'>x</reply></thread>",
      {comment_tree.TREE_NO_ID: 1},
      {comment_tree.DROPPED_WITH_TREE: 1},
    ),
    ("<thread ID='p'></thread>", {comment_tree.TREE_EMPTY: 1}, {}),
    (
      "<thread ID='p'><reply>x</reply></thread>",
      {comment_tree.TREE_EMPTY: 1},
      {comment_tree.DROPPED_NO_ID: 1},
    ),
  ],
)
def test_xml_without_a_thread_or_ids_is_skipped(
  tmp_path, content, tree_fates, comment_fates
):
  path = tmp_path / "a.xml"
  path.write_text(content)
  read_counts = ReadCounts()
  found = list(readers.iter_trees(str(path), TreeConfig(), read_counts, "cmv_modes"))
  assert found == []
  assert read_counts.trees == tree_fates
  assert read_counts.comments == comment_fates


def test_comments_markup_and_sections_are_told_from_text(tmp_path):
  body = (
    "<OP>a<!-- <claim>no</claim> -->b<![CDATA[<claim>&amp;]]>c<br/>&copy;&lt;</OP>"
    "<!--> <reply id='no'>no</reply> </!--><reply id='a'>x < y > z</reply></thread>"
  )
  found, read_counts = read(tmp_path, a__xml=thread(body, title=""))
  assert [c.text for c in found["p"].comments] == [
    "ab<claim>&amp;c<br/>&copy;<",
    "x < y > z",
  ]
  assert read_counts.repaired == {}
