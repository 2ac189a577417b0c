"""Reads files of every format the slow and obvious way, to compare the readers with.

Shares no code with them: plain `json`, `xml` and `html.parser`, dictionaries and
recursion. Takes clean files only, as ours are, and what `DEFAULTS` say of deleted and
orphaned comments.
"""

import bz2
import collections
import csv
import dataclasses
import email
import email.header
import gzip
import html.parser
import io
import json
import lzma
import pathlib
import re
import xml.etree.ElementTree as ElementTree

import zstandard

GONE = {"", "[deleted]", "[removed]"}


@dataclasses.dataclass
class Thread:
  """A thread as its source has it; comments in the order in which they come."""

  title: str | None = None
  selftext: str | None = None
  post_seen: bool = False
  comments: list = dataclasses.field(default_factory=list)
  post_spans: tuple = ()


@dataclasses.dataclass
class Said:
  """A comment; `parent` is a comment's id, or None for the post."""

  id: str
  parent: str | None
  text: str
  spans: tuple = ()


def contents(path):
  data = pathlib.Path(path).read_bytes()
  if data[:2] == b"\x1f\x8b":
    return gzip.decompress(data)
  if data[:3] == b"BZh":
    return bz2.decompress(data)
  if data[:5] == b"\xfd7zXZ":
    return lzma.decompress(data)
  if data[:4] == b"\x28\xb5\x2f\xfd":
    reader = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(
      io.BytesIO(data), read_across_frames=True
    )
    return reader.read()
  return data


def records(path):
  return [json.loads(x) for x in contents(path).split(b"\n") if x.strip()]


def bare(ident):
  return re.sub(r"^t[13]_", "", str(ident))


def tree_jsonl(paths):
  threads = {}
  for path in paths:
    for record in records(path):
      thread = threads[record["id"]] = Thread(record["title"], record["selftext"], True)
      for c in record["comments"]:
        parent = None if c["parent_id"] == record["id"] else c["parent_id"]
        thread.comments.append(Said(c["id"], parent, c["body"] or ""))
  return threads


def pushshift(paths):
  threads = collections.defaultdict(Thread)
  for path in paths:
    for record in records(path):
      if "link_id" in record:
        parent = record["parent_id"]
        threads[bare(record["link_id"])].comments.append(
          Said(
            record["id"],
            None if parent.startswith("t3_") else bare(parent),
            record["body"],
          )
        )
      else:
        thread = threads[record["id"]]
        thread.title, thread.selftext = record["title"], record["selftext"]
        thread.post_seen = True
  return dict(threads)


def reddit_api(paths):
  threads = {}

  def walk(thing, thread, parent):
    if thing["kind"] == "t1":
      data = thing["data"]
      thread.comments.append(Said(data["id"], parent, data["body"]))
      if data["replies"]:
        for child in data["replies"]["data"]["children"]:
          walk(child, thread, data["id"])

  for path in paths:
    posts, comments = json.loads(contents(path))
    post = posts["data"]["children"][0]["data"]
    thread = threads[post["id"]] = Thread(post["title"], post["selftext"], True)
    for child in comments["data"]["children"]:
      walk(child, thread, None)
  return threads


def convokit(paths):
  threads = collections.defaultdict(Thread)
  for path in paths:
    beside = pathlib.Path(path).parent / "conversations.json"
    about = json.loads(beside.read_text()) if beside.exists() else {}
    for record in records(path):
      conversation = record.get("conversation_id") or record.get("root")
      reply_to = record.get("reply-to") or record.get("reply_to")
      thread = threads[conversation]
      if record["id"] == conversation:
        meta = about.get(conversation, {}).get("meta", about.get(conversation, {}))
        thread.title, thread.selftext = meta.get("title"), record["text"]
        thread.post_seen = True
      else:
        parent = None if reply_to in (conversation, record["id"]) else reply_to
        thread.comments.append(Said(record["id"], parent, record["text"]))
  return dict(threads)


def cmv_modes(paths):
  threads = {}
  for path in paths:
    source = contents(path).decode()
    try:
      root = ElementTree.fromstring(source)
    except ElementTree.ParseError:  # a reply that does not end
      source = re.sub(r"(?<!</reply>)(\s*<reply)", r"</reply>\1", source)
      source = re.sub(r"(</OP>\s*)</reply>", r"\1", source)
      root = ElementTree.fromstring(source)
    title, title_spans = _marked(root.find("title"))
    op, op_spans = _marked(root.find("OP"))
    shift = len(title) + 2 if title else 0
    known = threads.setdefault(root.get("ID"), Thread(title, op, True))
    known.post_spans = known.post_spans or _sorted(
      title_spans + [(s + shift, e + shift, x) for s, e, x in op_spans]
    )
    last = None
    for reply in root.iter("reply"):
      text, spans = _marked(reply)
      known.comments.append(Said(reply.get("id"), last, text, _sorted(spans)))
      last = reply.get("id")
  return threads


def _sorted(spans):
  return tuple(sorted(spans, key=lambda span: (span[0], -span[1])))


def _marked(element):
  """Stripped text of an element, and the spans in it."""
  written, spans = "", []

  def walk(node):
    nonlocal written
    start = len(written)
    written += node.text or ""
    for child in node:
      walk(child)
      written += child.tail or ""
    if node is not element and written[start:].strip():
      inner = written[start:]
      begin = start + len(inner) - len(inner.lstrip())
      spans.append((begin, begin + len(inner.strip()), node.tag))

  walk(element)
  cut = len(written) - len(written.lstrip())
  return written.strip(), [(s - cut, e - cut, x) for s, e, x in spans]


class _Plain(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.text, self.in_link = "", False

  def handle_starttag(self, tag, attrs):
    if tag == "p":
      self.text += "\n\n"
    elif tag == "pre":
      self.text += "\n"
    elif tag == "a":
      self.text += dict(attrs)["href"]
      self.in_link = True

  def handle_endtag(self, tag):
    if tag == "a":
      self.in_link = False

  def handle_data(self, data):
    if not self.in_link:
      self.text += data


def _plain(source):
  parser = _Plain()
  parser.feed(source)
  parser.close()
  return parser.text.strip()


def hacker_news(paths):
  everything = [record for path in paths for record in records(path)]
  items = {record["id"]: record for record in reversed(everything)}

  def story(ident, seen=frozenset()):
    """What an item hangs below; None in a cycle."""
    parent = items[ident].get("parent") if ident in items else None
    if parent is None or ident in seen:
      return None if ident in seen else ident
    return story(parent, seen | {ident})

  threads = collections.defaultdict(Thread)
  for item in everything:
    ident = item["id"]
    if item["type"] == "comment":
      root = story(ident)
      parent = None if item["parent"] == root else str(item["parent"])
      text = "[deleted]" if item.get("deleted") else _plain(item["text"])
      threads[str(root)].comments.append(Said(str(ident), parent, text))
    else:
      thread = threads[str(ident)]
      thread.title, thread.post_seen = html.unescape(item["title"]), True
      thread.selftext = _plain(item.get("text") or "")
  return dict(threads)


def oasst(paths):
  threads = collections.defaultdict(Thread)

  def add(message, parent, tree_id):
    ident = message["message_id"]
    if ident == tree_id:
      threads[tree_id].selftext = message["text"]
      threads[tree_id].post_seen = True
    else:
      above = None if parent == tree_id else parent
      threads[tree_id].comments.append(Said(ident, above, message["text"]))
    for reply in message.get("replies", []):
      add(reply, ident, tree_id)

  for path in paths:
    for record in records(path):
      top = record.get("prompt", record)
      add(top, top["parent_id"], record["message_tree_id"])
  return dict(threads)


def mail(paths):
  """Of threads whose first messages are there, which end the references' lists."""
  threads = collections.defaultdict(Thread)
  found = []
  for path in paths:
    content = contents(path)
    parts = re.split(rb"(?m)^From .*\n", content) if path.endswith("x") else [content]
    found += [email.message_from_bytes(part) for part in parts if part.strip()]

  def ids(message, name):
    return re.findall("<(.*?)>", message.get(name, ""))

  for message in found:
    (ident,) = ids(message, "Message-ID")
    text = message.get_payload(decode=True).decode().strip()
    above = ids(message, "References")
    if not above:
      ((title, _),) = email.header.decode_header(message["Subject"])
      thread = threads[ident]
      thread.title, thread.post_seen, thread.selftext = title.decode(), True, text
      continue
    (parent,) = ids(message, "In-Reply-To")
    said = Said(ident, None if parent in (above[0], ident) else parent, text)
    threads[above[0]].comments.append(said)
  return dict(threads)


def table(paths):
  threads = collections.defaultdict(Thread)
  for path in paths:
    if path.endswith(".csv"):
      with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    else:
      rows = list(records(path))
    for row in rows:
      thread = threads[row["post_id"]]
      if row["comment_id"] == row["post_id"]:
        thread.title, thread.selftext = row["title"], row["content"]
        thread.post_seen = True
      else:
        parent = None if row["reply_to"] == row["post_id"] else row["reply_to"]
        thread.comments.append(Said(row["comment_id"], parent, row["content"]))
  return dict(threads)


def trees(threads):
  """What there should be of threads: {tree id: (post's text, {id: what it is})}.

  What a comment is: (nearest living ancestor's id or None for the post, text, spans).
  """
  found = {}
  for ident, thread in threads.items():
    first = {}
    for said in thread.comments:
      first.setdefault(said.id, said)

    def place(said, seen, first=first):
      """The living ancestor a comment hangs below; KeyError in a cycle."""
      if said.parent is None or said.parent not in first:
        return None
      if said.parent in seen:
        raise KeyError("a cycle")
      parent = first[said.parent]
      above = place(parent, seen | {parent.id})
      return above if parent.text.strip().lower() in GONE else parent.id

    comments = {}
    for said in first.values():
      if said.text.strip().lower() not in GONE:
        try:
          comments[said.id] = (place(said, {said.id}), said.text, said.spans)
        except KeyError:
          continue
    if comments:
      parts = [(part or "").strip() for part in (thread.title, thread.selftext)]
      post = "\n\n".join(part for part in parts if part.lower() not in GONE)
      found[ident] = (post, comments)
  return found


READERS = {
  "tree_jsonl": tree_jsonl,
  "pushshift": pushshift,
  "reddit_api": reddit_api,
  "convokit": convokit,
  "cmv_modes": cmv_modes,
  "hacker_news": hacker_news,
  "oasst": oasst,
  "mail": mail,
  "table": table,
}


def summary(found):
  """Our trees in the form of `trees`."""
  return {
    tree.id.removeprefix("t3_"): (
      tree.comments[0].text,
      {
        c.id: (
          tree.comments[c.parent].id if c.parent else None,
          c.text,
          tuple(map(tuple, c.spans)),
        )
        for c in tree.comments[1:]
      },
    )
    for tree in found
  }
