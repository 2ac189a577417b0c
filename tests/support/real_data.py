"""Real files of comments: read where they are, and tests of them skipped where not."""

import pathlib

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"

# Where the files of each format lie.
REAL = {
  "tree_jsonl": ["4forums.jsonl.gz"],
  "pushshift": ["pushshift/*"],
  "reddit_api": ["reddit_api/*"],
  "convokit": ["convokit/utterances.jsonl"],
  "cmv_modes": ["cmv_modes/*/*.xml"],
}
