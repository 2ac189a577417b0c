"""Makes a Pushshift-like dump of any size, with all that goes wrong in real ones.

    python tests/support/tasks/pushshift_dump.py FOLDER --comments=5000000

Comments lie in random order in RC files and posts in RS files. There are posts missing,
orphans, deleted, removed and empty bodies, comments seen twice, with another text,
cycles of parents, lines that are no JSON, no object or of no tree, a last line cut off
in every file, and a file with a damaged zstd frame in its middle. The same arguments
give the same bytes.
Beside the files goes `TRUTH`: the read_counts of everything under `TreeConfig()`.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import pathlib

import numpy as np
import zstandard

from commentree.tasks.readers.parsing import files, json_lines
from commentree.tasks.trees import comment_tree

START_UTC = 1420070400  # 2015
SECONDS = 2 * 365 * 86400
LINES_AT_ONCE = 2**14

COMMENT = (
  b'{"archived":false,"author":"%b","author_created_utc":1496871510,'
  b'"author_flair_background_color":null,"author_flair_css_class":null,'
  b'"author_flair_richtext":[],"author_flair_text":null,"author_flair_type":"text",'
  b'"author_fullname":"t2_3edkh7x","body":"%b","can_gild":true,'
  b'"controversiality":0,"created_utc":%b,"distinguished":null,"edited":false,'
  b'"gilded":0,"id":"%b","link_id":"t3_%b","parent_id":"%b","retrieved_on":1540775571,'
  b'"score":%d,"stickied":false,"subreddit":"%b","subreddit_id":"t5_2qsev",'
  b'"subreddit_name_prefixed":"r\\/%b","ups":%d}'
)
POST = (
  b'{"author":"%b","created_utc":%d,"domain":"self.%b","id":"%b","is_self":true,'
  b'"num_comments":%d,"over_18":false,"permalink":"\\/r\\/%b\\/comments\\/%b\\/",'
  b'"score":%d,"selftext":"%b","subreddit":"%b","title":"%b"}'
)
SUBREDDITS = [
  b"AskReddit",
  b"politics",
  b"science",
  b"changemyview",
  *(b"sub%d" % i for i in range(60)),
]


@dataclasses.dataclass(frozen=True)
class DumpConfig:
  """What to make.

  Attributes:
    comments: comments with a place in a tree; odd lines come on top.
    files: RC files; there is an RS file for every two.
    seed: of all that is drawn.
    long_text: words of one comment, the largest.
    window_log: of the zstd frames.
  """

  comments: int = 10_000
  files: int = 4
  seed: int = 0
  long_text: int = 3_000
  window_log: int = 24


def _corpus(rng: np.random.Generator) -> tuple[bytes, np.ndarray]:
  """Words of Zipf's law as they stand in JSON, and where each begins."""
  letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
  lengths = rng.integers(1, 10, 5_000)
  stems = ["".join(letters[rng.geometric(0.12, n) % 26]) for n in lengths]
  stems[50::97] = [f"don\\u2019t{i}" for i in range(len(stems[50::97]))]
  stems[60::97] = [f"&gt; {stem}\\n\\n" for stem in stems[60::97]]
  stems[70::97] = [f"{stem}." for stem in stems[70::97]]
  drawn = rng.zipf(1.3, 400_000) % len(stems)
  words = [stems[i].encode() for i in drawn.tolist()]
  starts = np.cumsum([0, *(len(word) + 1 for word in words)])
  return b" ".join(words) + b" ", starts


def _tree_sizes(rng: np.random.Generator, comments: int) -> np.ndarray:
  sizes = np.minimum(rng.pareto(1.3, comments) * 3 + 1, 4_000).astype(np.int64)
  ends = np.cumsum(sizes)
  sizes = sizes[: np.searchsorted(ends, comments) + 1]
  sizes[-1] -= sizes.sum() - comments
  return sizes


class Dump:
  """The dump, drawn as arrays; `write` makes files of it."""

  def __init__(self, config: DumpConfig):
    self.config = config
    self.rng = rng = np.random.default_rng(config.seed)
    self.corpus, self.word_starts = _corpus(rng)
    sizes = _tree_sizes(rng, config.comments)
    n, num_trees = config.comments, len(sizes)
    self.tree = np.repeat(np.arange(num_trees), sizes)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = np.arange(n) - starts
    above = starts + (rng.random(n) * place).astype(np.int64)
    self.parent = np.where((rng.random(n) < 0.35) | (place == 0), -1, above)
    self.gone = rng.choice(4, n, p=[0.93, 0.05, 0.015, 0.005])  # see `_body`
    self.orphan = rng.random(n) < 0.01
    self.has_post = rng.random(num_trees) < 0.9
    self.words = np.minimum(rng.lognormal(3.0, 1.1, n) + 1, config.long_text).astype(
      np.int64
    )
    self.first_word = rng.integers(0, 390_000, n)
    self.created = (
      START_UTC + rng.integers(0, SECONDS // 2, num_trees)[self.tree] + place * 60
    )
    self.score = np.rint(rng.normal(3, 20, n)).astype(np.int64)
    self.author = rng.integers(0, max(n // 8, 9), n)
    self.subreddit = rng.zipf(1.4, num_trees) % len(SUBREDDITS)
    # Beside those with a place: comments seen twice, cycles of two with a comment
    # below, and lines of other kinds.
    self.twice = rng.choice(n, n // 50)
    self.in_cycle = rng.choice(num_trees, max(num_trees // 100, 1), replace=False)
    self.odd = max(n // 1000, 1)  # of each kind

  def truth(self) -> comment_tree.ReadCounts:
    """What becomes of everything."""
    read_counts = comment_tree.ReadCounts()
    alive = self.gone == 0
    read_counts.comments.update(
      {
        comment_tree.KEPT: int((alive & ~self.orphan).sum()),
        comment_tree.KEPT_ORPHAN: int((alive & self.orphan).sum()),
        comment_tree.SPLICED_DELETED: int(((self.gone == 1) | (self.gone == 2)).sum()),
        comment_tree.SPLICED_EMPTY: int((self.gone == 3).sum()),
        comment_tree.DROPPED_DUPLICATE: len(self.twice),
        comment_tree.DROPPED_CYCLE: 3 * len(self.in_cycle),
        # One cut off in each file.
        json_lines.DROPPED_BAD_JSON: self.odd + self.config.files,
        comment_tree.DROPPED_NOT_OBJECT: self.odd,
        comment_tree.DROPPED_NO_TREE: self.odd,
      }
    )
    some = np.bincount(self.tree[alive], minlength=len(self.has_post)) > 0
    for has_post, has_comments, fate in (
      (True, True, comment_tree.KEPT),
      (False, True, comment_tree.KEPT_NO_POST),
      (True, False, comment_tree.TREE_EMPTY),
      (False, False, comment_tree.TREE_EMPTY_NO_POST),
    ):
      number = ((self.has_post == has_post) & (some == has_comments)).sum()
      read_counts.trees[fate] += int(number)
    read_counts.files[files.READ] = self.config.files + (self.config.files + 1) // 2
    read_counts += self._damaged_truth()
    for field in dataclasses.fields(read_counts):
      counts = getattr(read_counts, field.name)
      setattr(read_counts, field.name, +collections.Counter(counts))  # without zeros
    return read_counts

  def write(self, folder: pathlib.Path) -> comment_tree.ReadCounts:
    """Writes the files and returns the truth, which goes to `TRUTH`, too."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(self.config.seed + 1)
    n = self.config.comments
    kinds = [
      np.stack([np.full(count, kind), numbers])
      for kind, numbers, count in (
        (0, np.arange(n), n),
        (5, self.twice, len(self.twice)),
        (1, np.repeat(self.in_cycle, 3), 3 * len(self.in_cycle)),
        (2, np.arange(self.odd), self.odd),
        (3, np.arange(self.odd), self.odd),
        (4, np.arange(self.odd), self.odd),
      )
    ]
    lines = np.concatenate(kinds, axis=1)
    # The three of a cycle are told apart by their number's sign and place.
    lines = np.concatenate([lines, [np.arange(lines.shape[1]) % 3]])
    lines = lines[:, rng.permutation(lines.shape[1])]
    for number, part in enumerate(np.array_split(lines, self.config.files, axis=1)):
      name = f"RC_{2015 + number // 12}-{number % 12 + 1:02}.zst"
      self._write_file(folder / name, self._comment_lines(part))
    posts = rng.permutation(np.flatnonzero(self.has_post))
    num_files = (self.config.files + 1) // 2
    for number, some in enumerate(np.array_split(posts, num_files)):
      self._write_file(folder / f"RS_{2015 + number}.zst", self._post_lines(some))
    self._write_damaged(folder / "RC_damaged.zst")
    truth = self.truth()
    (folder / "TRUTH").write_text(json.dumps(truth.as_dict(), indent=2))
    return truth

  def _write_file(self, path, lines):
    parameters = zstandard.ZstdCompressionParameters.from_level(
      1, window_log=self.config.window_log
    )
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    cut_off = b'{"body":"the last line is cu' if path.name.startswith("RC") else b""
    with open(path, "wb") as file:
      while some := list(itertools.islice(lines, LINES_AT_ONCE)):
        file.write(stream.compress(b"\n".join(some) + b"\n"))
      file.write(stream.compress(cut_off) + stream.flush())

  def _comment_lines(self, part):
    for kind, number, variant in zip(*part.tolist()):
      if kind == 0:
        yield self._comment(number)
      elif kind == 1:
        yield self._cycle(number, variant)
      elif kind == 2:
        yield b'{"id": "bad%d", "body": no json' % number
      elif kind == 3:
        yield b'["not", "an", "object"]'
      elif kind == 5:
        yield self._comment(number, 7)
      else:
        yield b'{"id": "lost%d", "body": "of no tree", "parent_id": "t1_x"}' % number

  def _comment(self, i, words_on=0):
    tree = int(self.tree[i])
    parent = int(self.parent[i])
    if self.orphan[i]:
      above = b"t1_gone%d" % i
    else:
      above = b"t3_p%x" % tree if parent < 0 else b"t1_c%x" % parent
    subreddit = SUBREDDITS[self.subreddit[tree]]
    gone = self.gone[i]
    author = b"[deleted]" if gone == 1 else b"author_%x" % self.author[i]
    created = b'"%d"' if i % 5 == 0 else b"%d"
    score = self.score[i]
    return COMMENT % (
      author,
      self._body(i, gone, words_on),
      created % self.created[i],
      b"c%x" % i,
      b"p%x" % tree,
      above,
      score,
      subreddit,
      subreddit,
      score,
    )

  def _body(self, i, gone, words_on):
    if gone:
      return (b"", b"[deleted]", b"[removed]", b" ")[gone]
    first = self.first_word[i] + words_on
    start, end = self.word_starts[first], self.word_starts[first + self.words[i]]
    return self.corpus[start : end - 1]

  def _cycle(self, tree, variant):
    """`x` answers `y`, which answers `x`, as does `z`."""
    fields = {
      "id": f"{'xyz'[variant]}{tree}",
      "link_id": f"t3_p{tree:x}",
      "parent_id": f"t1_{'yxx'[variant]}{tree}",
      "body": "in a cycle",
    }
    return json.dumps(fields).encode()

  def _post_lines(self, numbers):
    for tree in numbers.tolist():
      subreddit = SUBREDDITS[self.subreddit[tree]]
      first = self.first_word[tree]
      start, middle, end = self.word_starts[[first, first + 8, first + 8 + tree % 90]]
      yield POST % (
        b"author_%x" % self.author[tree],
        START_UTC,
        subreddit,
        b"p%x" % tree,
        10,
        subreddit,
        b"p%x" % tree,
        7,
        self.corpus[middle:end] if tree % 3 else b"",
        subreddit,
        self.corpus[start : middle - 1],
      )

  _DAMAGED_TREES = 90  # in frames of 30 trees, of which the second is damaged

  def _write_damaged(self, path):
    compressor = zstandard.ZstdCompressor()
    content = b""
    for first in range(0, self._DAMAGED_TREES, 30):
      lines = [
        COMMENT
        % (
          b"ann",
          b"text",
          b"5",
          b"d%d" % t,
          b"q%d" % t,
          b"t3_q%d" % t,
          1,
          b"s",
          b"s",
          1,
        )
        for t in range(first, first + 30)
      ]
      frame = bytearray(compressor.compress(b"\n".join(lines) + b"\n"))
      if first == 30:
        frame[len(frame) - 200 :] = bytes(200)
        frame[5:30] = b"\xff" * 25
      content += frame
    path.write_bytes(content)

  def _damaged_truth(self):
    return comment_tree.ReadCounts(
      comments=collections.Counter({comment_tree.KEPT: 60}),
      trees=collections.Counter({comment_tree.KEPT_NO_POST: 60}),
      files=collections.Counter({files.DAMAGED: 1}),
    )


def write_small(folder: pathlib.Path) -> pathlib.Path:
  """Writes a dump of four files, that a build reads in seconds."""
  Dump(DumpConfig(comments=8_000, files=4)).write(folder)
  return folder


def main():
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("folder", type=pathlib.Path)
  for field in dataclasses.fields(DumpConfig):
    parser.add_argument(f"--{field.name}", type=int, default=field.default)
  arguments = vars(parser.parse_args())
  folder = arguments.pop("folder")
  Dump(DumpConfig(**arguments)).write(folder)


if __name__ == "__main__":
  main()
