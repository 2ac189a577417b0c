"""Mail is read as threads: mailboxes, Maildir folders and single messages."""

import pytest

from commentree.tasks import readers
from commentree.tasks.config.preprocessing import CleaningConfig, TreeConfig
from commentree.tasks.readers import mail
from commentree.tasks.readers.parsing import files
from commentree.tasks.trees import cleaning, comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts


def message(number, answers=(), body="Some text.", subject="Trees", more="", by="Ann"):
  references = " ".join(f"<{answered}@x>" for answered in answers)
  lines = [
    f"From: {by} <{by.lower()}@x>",
    f"Subject: {subject}",
    f"Message-ID: <{number}@x>",
    f"Date: Mon, 4 Mar 2024 10:{number:02}:00 +0000",
    *([f"References: {references}"] if answers else []),
    *([more] if more else []),
    "",
    body,
    "",
  ]
  return "\n".join(lines)


def box(*messages):
  return "".join(f"From a@x Mon Mar  4 10:00:00 2024\n{m}\n" for m in messages)


def trees_of(path, counts=None, **settings):
  counts = ReadCounts() if counts is None else counts
  return list(readers.iter_trees(str(path), TreeConfig(**settings), counts))


def shape(tree):
  ids = [comment.id for comment in tree.comments]
  return [(c.id, ids[c.parent] if c.parent >= 0 else None) for c in tree.comments]


def test_a_mailbox_becomes_threads_with_quotations_marked(tmp_path):
  path = tmp_path / "list.mbox"
  reply = "On Monday, Ann wrote:\n> Some text.\n\nI agree.\n\n-- \nBob, of X"
  path.write_text(
    box(
      message(1),
      message(3, [1, 2], "From here on\n>From there"),
      message(2, [1], reply, by="Bob"),
    )
  )
  counts = ReadCounts()
  (tree,) = trees_of(path, counts)
  assert shape(tree) == [("1@x", None), ("2@x", "1@x"), ("3@x", "2@x")]
  assert tree.comments[0].text == "Trees\n\nSome text."
  assert tree.comments[0].created_utc == 1709546460
  cleaned = cleaning.clean_text(tree.comments[1].text, CleaningConfig())
  assert "<startq> Some text. <endq>" in cleaned
  assert "of X" not in cleaned
  assert tree.comments[1].author == "Bob"
  assert counts.comments == {comment_tree.KEPT: 2}


def test_a_line_that_begins_with_from_inside_a_message_is_no_new_message(tmp_path):
  path = tmp_path / "list.mbox"
  path.write_text(box(message(1, body="One\nFrom me\n\n>From you"), message(2, [1])))
  (tree,) = trees_of(path)
  assert tree.comments[0].text == "Trees\n\nOne\nFrom me\n\nFrom you"
  assert len(tree.comments) == 2


def test_who_answers_a_missing_message_hangs_below_the_nearest_that_is_there(tmp_path):
  path = tmp_path / "list.mbox"
  path.write_text(
    box(message(1), message(4, [1, 3]), message(7, [5, 6]), message(8, [5]))
  )
  counts = ReadCounts()
  found = sorted(map(shape, trees_of(path, counts)), key=len)
  assert found[0] == [("1@x", None), ("4@x", "1@x")]
  top = found[1][0][0]
  assert found[1] == [(top, None), ("7@x", top), ("8@x", top)]
  assert counts.trees == {comment_tree.KEPT: 1, comment_tree.KEPT_NO_POST: 1}


def test_maildir_folders_and_single_messages_are_read(tmp_path):
  for folder in ("cur", "new", "tmp"):
    (tmp_path / "dir" / folder).mkdir(parents=True)
  (tmp_path / "dir/cur/1204680122.27c448.host:2,S").write_text(message(1))
  (tmp_path / "dir/new/1204680123.27c449.host").write_text(message(2, [1]))
  (tmp_path / "dir/tmp/unfinished").write_text(message(3, [1]))
  (tmp_path / "dir/three.eml").write_text(message(4, [2, 1], more="X-Y: z"))
  (tree,) = trees_of(tmp_path / "dir")
  assert [ident for ident, _ in shape(tree)] == ["1@x", "2@x", "4@x"]


def test_encoded_headers_charsets_and_parts_become_text(tmp_path):
  path = tmp_path / "list.mbox"
  mixed = (
    "Content-Type: multipart/mixed; boundary=B\nMIME-Version: 1.0\n\n--B\n"
    "Content-Type: text/html; charset=utf-8\n\n"
    "<html><head><style>p {}</style></head><p>html &amp; all</p></html>\n--B\n"
    "Content-Type: text/plain; charset=iso-8859-1\n"
    "Content-Transfer-Encoding: quoted-printable\n\ncaf=E9\n--B--\n"
  )
  header = "From: =?utf-8?q?J=C3=B6rg?= <j@x>\nMessage-ID: <1@x>\nSubject: =?no?q?x?=\n"
  html = (
    "Message-ID: <2@x>\nReferences: <1@x>\nContent-Type: text/html\n\n"
    "<style>p {}</style><p>html &amp; all</p>\n"
  )
  path.write_text(box(header + mixed, html))
  (tree,) = trees_of(path)
  assert tree.comments[0].author == "Jörg"
  assert tree.comments[0].text.endswith("\n\ncafé")
  assert tree.comments[1].text == "html & all"


def test_a_message_that_is_too_long_or_without_an_id_is_counted(tmp_path):
  path = tmp_path / "list.mbox"
  path.write_text(
    box(message(1), message(2, [1], "x" * 5_000), message(3, [1]), "From: a\n\nNo id.")
  )
  counts = ReadCounts()
  (tree,) = trees_of(path, counts, max_line_bytes=2_000)
  assert [ident for ident, _ in shape(tree)] == ["1@x", "3@x"]
  assert counts.comments == {
    comment_tree.KEPT: 1,
    comment_tree.DROPPED_NO_ID: 1,
    files.DROPPED_LINE_TOO_LONG: 1,
  }


@pytest.mark.parametrize(
  "hostile",
  [
    "Content-Type: multipart/mixed; boundary=B\n\n"
    + "--B\nContent-Type: multipart/mixed; boundary=B\n\n" * 3_000,
    "From: " + "<" * 100_000,
    "References: " + "<a" * 100_000,
    'Content-Type: text/plain; charset="\x00"\n\nx',
    "Content-Type: text/html\n\n" + "<style" * 30_000,
  ],
  ids=["nested parts", "address", "references", "charset", "style"],
)
def test_hostile_messages_cost_no_other_one(tmp_path, hostile):
  path = tmp_path / "list.mbox"
  path.write_text(box(message(1), f"Message-ID: <2@x>\n{hostile}\n", message(3, [1])))
  counts = ReadCounts()
  found = trees_of(path, counts)
  assert [("1@x", None), ("3@x", "1@x")] in map(shape, found)


def test_messages_that_answer_each_other_in_a_circle_are_counted(tmp_path):
  path = tmp_path / "list.mbox"
  path.write_text(box(message(1, [2]), message(2, [1]), message(3), message(4, [3])))
  counts = ReadCounts()
  assert len(trees_of(path, counts)) == 1
  assert counts.comments[comment_tree.DROPPED_CYCLE] == 2
  assert mail.FORMAT.name in [format_.name for format_ in readers.FORMATS]


@pytest.mark.parametrize(
  "first", ["no header\n\ntext\n", "\n\ntext\n", ": x\n\ntext\n"]
)
def test_a_broken_first_message_costs_no_other_one(tmp_path, first):
  path = tmp_path / "list"
  path.write_text("\n" + box(first, message(1), message(2, [1])))
  counts = ReadCounts()
  (tree,) = trees_of(path, counts)
  assert shape(tree) == [("1@x", None), ("2@x", "1@x")]
  assert counts.comments[comment_tree.DROPPED_NO_ID] == 1


def test_a_time_in_a_line_that_begins_with_from_begins_no_message(tmp_path):
  path = tmp_path / "list.mbox"
  path.write_text(box(message(1), message(2, [1], "\nFrom A to B at 10:30, by train")))
  (tree,) = trees_of(path)
  assert tree.comments[1].text == "From A to B at 10:30, by train"
