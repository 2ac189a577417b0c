"""Made-up threads, and how they are written in every format."""

import csv
import dataclasses
import email.header
import email.utils
import html
import json
import random
import xml.sax.saxutils

WORDS = ["tree", "reply", "post", "claim", "because", "\xe9t\xe9", "\U0001f600"]
WORDS += ["<b>", "&", '"x"', "~"]


@dataclasses.dataclass
class Comment:
  id: str
  parent: str | None  # None: the post
  body: str
  author: str | None
  created: int


@dataclasses.dataclass
class Thread:
  id: str
  title: str
  selftext: str
  comments: list


def words(rng, most=8):
  return " ".join(rng.choices(WORDS, k=rng.randrange(1, most)))


def threads(seed, count=6, most=12, odd=True):
  """Threads of random shape; with `odd`, deleted, orphaned, cyclic and repeated."""
  rng = random.Random(seed)
  made, number = [], 1000 * (seed + 1)
  for _ in range(count):
    number += 1
    thread = Thread(str(number), words(rng), rng.choice(["", words(rng)]), [])
    for _ in range(rng.randrange(most)):
      number += 1
      parent = rng.choice([None, *(c.id for c in thread.comments)])
      body = words(rng)
      if odd and rng.random() < 0.15:
        body = "[deleted]"
      if odd and rng.random() < 0.1:
        parent = str(number)  # which no comment has
        number += 1
      thread.comments.append(
        Comment(str(number), parent, body, rng.choice(["ann", "bob", None]), number)
      )
      number += 1
    if odd and thread.comments:
      if rng.random() < 0.3:  # a cycle, or its own parent
        rng.choice(thread.comments).parent = rng.choice(thread.comments).id
      if rng.random() < 0.3:
        thread.comments.append(rng.choice(thread.comments))
    made.append(thread)
  return made


def chains(seed, count=6):
  """Threads of which every comment answers the one before."""
  made = threads(seed, count, odd=False)
  for thread in made:
    for above, comment in zip([None, *thread.comments], thread.comments):
      comment.parent = above.id if above else None
  return made


def lines(path, values):
  path.write_text("".join(json.dumps(value) + "\n" for value in values))
  return [str(path)]


def tree_jsonl(folder, made):
  return lines(
    folder / "trees.jsonl",
    [
      {
        "id": t.id,
        "title": t.title,
        "selftext": t.selftext,
        "author": "op",
        "comments": [
          {
            "id": c.id,
            "parent_id": c.parent or t.id,
            "author": c.author,
            "body": c.body,
            "created_utc": c.created,
          }
          for c in t.comments
        ],
      }
      for t in made
    ],
  )


def pushshift(folder, made):
  """Comments and posts shuffled into two files; every other thread without its post."""
  rng = random.Random(0)
  comments = [
    {
      "id": c.id,
      "link_id": f"t3_{t.id}",
      "parent_id": f"t1_{c.parent}" if c.parent else f"t3_{t.id}",
      "author": c.author or "[deleted]",
      "body": c.body,
      "created_utc": rng.choice([c.created, str(c.created)]),
    }
    for t in made
    for c in t.comments
  ]
  posts = [
    {
      "id": t.id,
      "title": t.title,
      "selftext": t.selftext,
      "author": "op",
      "created_utc": 1,
    }
    for t in made[::2]
  ]
  rng.shuffle(comments)
  half = len(comments) // 2
  return lines(folder / "RC_1.jsonl", comments[:half]) + lines(
    folder / "RC_2.jsonl", [*posts, *comments[half:]]
  )


def reddit_api(folder, made):
  """A file a thread; orphans are left out, since nothing nests them."""
  paths = []
  for t in made:

    def listing(parent, t=t):
      children = [
        {
          "kind": "t1",
          "data": {
            "id": c.id,
            "link_id": f"t3_{t.id}",
            "parent_id": f"t1_{parent}" if parent else f"t3_{t.id}",
            "author": c.author,
            "body": c.body,
            "created_utc": float(c.created),
            "replies": listing(c.id),
          },
        }
        for c in {c.id: c for c in t.comments}.values()
        if c.parent == parent
      ]
      if not children:
        return ""
      children.append({"kind": "more", "data": {"count": 3, "children": ["x", "y"]}})
      return {"kind": "Listing", "data": {"children": children}}

    post = {"id": t.id, "title": t.title, "selftext": t.selftext, "author": "op"}
    document = [
      {"kind": "Listing", "data": {"children": [{"kind": "t3", "data": post}]}},
      listing(None) or {"kind": "Listing", "data": {"children": []}},
    ]
    path = folder / f"{t.id}.json"
    path.write_text(json.dumps(document, indent=random.Random(t.id).choice([None, 2])))
    paths.append(str(path))
  return paths


def convokit(folder, made):
  """Of the newer or the oldest keys, by the first thread's id."""
  old = int(made[0].id) // 1000 % 2
  keys = (
    ("root", "user", "reply-to") if old else ("conversation_id", "speaker", "reply_to")
  )
  titles = {t.id: {"title": t.title} for t in made}
  about = titles if old else {key: {"meta": value} for key, value in titles.items()}
  (folder / "conversations.json").write_text(json.dumps(about))
  (folder / "speakers.json").write_text("{}")

  def utterance(ident, conversation, author, parent, text, created):
    values = dict(zip(keys, (conversation, author, parent)))
    return {"id": ident, "text": text, "timestamp": created, "meta": {}, **values}

  return lines(
    folder / "utterances.jsonl",
    [utterance(t.id, t.id, "op", None, t.selftext, 1) for t in made]
    + [
      utterance(c.id, t.id, c.author, c.parent or t.id, c.body, c.created)
      for t in made
      for c in t.comments
    ],
  )


def cmv_modes(folder, made):
  """A file a thread, which must be a chain; words are marked here and there."""
  paths = []
  for t in made:
    rng = random.Random(t.id)

    def marked(text, rng=rng, depth=0):
      subtrees = []
      for word in text.split(" "):
        word = xml.sax.saxutils.escape(word)
        if depth < 3 and rng.random() < 0.3:
          label = rng.choice(["claim", "premise"])
          word = f'<{label} type="x" id="1">{rng.choice(["", " "])}{word}'
          if rng.random() < 0.4:
            word += marked(" inner words", depth=depth + 1)
          word += f"</{label}>"
        subtrees.append(word)
      return " ".join(subtrees)

    replies = "".join(
      f'<reply id="{c.id}" author="{c.author or "[deleted]"}">\n\n{marked(c.body)}\n'
      "</reply>\n"
      for c in t.comments
    )
    path = folder / f"{t.id}.xml"
    path.write_text(
      f'<?xml version="1.0"?>\n<thread ID="{t.id}">\n<title> {marked(t.title)}</title>'
      f'\n<source>http://example.org/</source>\n<OP author="op">\n{marked(t.selftext)}'
      f"\n</OP>\n{replies}<!-- <reply>not this</reply> --></thread>\n"
    )
    paths.append(str(path))
  return paths


def hacker_news(folder, made):
  """Items shuffled into two files; every other story is not there."""
  items = [
    {"id": int(t.id), "type": "story", "title": html.escape(t.title), "time": 1}
    for t in made[::2]
  ]
  for t in made:
    for c in t.comments:
      item = {
        "id": int(c.id),
        "type": "comment",
        "parent": int(c.parent or t.id),
        "time": c.created,
      }
      if c.body == "[deleted]":
        item["deleted"] = True
      else:
        link = '<a href="http:&#x2F;&#x2F;example.org&#x2F;long">http:&#x2F;...</a>'
        body = html.escape(c.body).replace("reply", link).replace("claim", "a<p>claim")
        item |= {"text": body, "by": c.author}
      items.append(item)
  random.Random(1).shuffle(items)
  half = len(items) // 2
  return lines(folder / "1.jsonl", items[:half]) + lines(
    folder / "2.jsonl", items[half:]
  )


def oasst(folder, made):
  """Messages shuffled, or trees, by the first thread's id; orphans only as messages."""

  def message(ident, text, author, parent, thread):
    return {
      "message_id": ident,
      "parent_id": parent,
      "message_tree_id": thread.id,
      "role": author,
      "lang": "en",
      "text": text,
    }

  if int(made[0].id) // 1000 % 2:
    records = [
      message(i, text, author, parent, t)
      for t in made
      for i, text, author, parent in [
        (t.id, f"{t.title} {t.selftext}", "op", None),
        *((c.id, c.body, c.author, c.parent or t.id) for c in t.comments),
      ]
    ]
    random.Random(2).shuffle(records)
    return lines(folder / "messages.jsonl", records)

  def replies(parent, t):
    return [
      {**message(c.id, c.body, c.author, None, t), "replies": replies(c.id, t)}
      for c in {c.id: c for c in t.comments}.values()
      if c.parent == parent
    ]

  return lines(
    folder / "trees.jsonl",
    [
      {
        "message_tree_id": t.id,
        "prompt": {
          **message(t.id, f"{t.title} {t.selftext}", "op", None, t),
          "replies": replies(None, t),
        },
      }
      for t in made
    ],
  )


def mail(folder, made):
  """Messages shuffled into a mailbox and single files."""

  def message(ident, parent, thread, author, body, created):
    above = list(dict.fromkeys(i for i in (thread, parent) if i and i != ident))
    lines = [
      f"Message-ID: <{ident}>",
      f"Date: {email.utils.formatdate(created)}",
      *([f"From: {author} <{author}@example.org>"] if author else []),
      *([f"In-Reply-To: <{parent}>"] if parent else []),
      *([f"References: {' '.join(f'<{i}>' for i in above)}"] if above else []),
    ]
    return lines, body

  messages = [
    message(c.id, c.parent or t.id, t.id, c.author, c.body, c.created)
    for t in made
    for c in t.comments
  ]
  for t in made:
    (first, *others), body = message(t.id, None, None, "op", t.selftext, 1)
    subject = email.header.Header(t.title, "utf-8", maxlinelen=10_000).encode()
    messages.append(([first, f"Subject: {subject}", *others], body))
  random.Random(3).shuffle(messages)
  written = ["\n".join([*lines, "", body, ""]) for lines, body in messages]
  (folder / "list.mbox").write_text(
    "".join(f"From a@b Mon Mar  4 10:00:00 2024\n{m}\n" for m in written[2:])
  )
  for number, single in enumerate(written[:2]):
    (folder / f"{number}.eml").write_text(single)
  return [str(folder / name) for name in ("list.mbox", "0.eml", "1.eml")]


def table(folder, made):
  """Rows shuffled into a file of CSV and one of JSON; all names are usual ones."""
  names = ("comment_id", "post_id", "reply_to", "title", "user", "content", "time")
  rows = [(t.id, t.id, None, t.title, "op", t.selftext, 1) for t in made]
  rows += [
    (c.id, t.id, c.parent or t.id, None, c.author, c.body, c.created)
    for t in made
    for c in t.comments
  ]
  random.Random(4).shuffle(rows)
  half = len(rows) // 2
  with open(folder / "1.csv", "w", newline="") as file:
    csv.writer(file).writerows([names, *rows[:half]])
  records = [dict(zip(names, row)) for row in rows[half:]]
  return [str(folder / "1.csv"), *lines(folder / "2.jsonl", records)]


WRITERS = {
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


def write(name, folder, seed, count=6):
  """Writes threads in a format; returns the paths of what holds comments."""
  folder.mkdir(parents=True, exist_ok=True)
  made = chains(seed, count) if name == "cmv_modes" else threads(seed, count)
  return WRITERS[name](folder, made)
