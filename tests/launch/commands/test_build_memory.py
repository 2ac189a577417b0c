"""What builds take of hostile input, by command: `pytest -s -m slow` prints a table."""

from __future__ import annotations

import bz2
import json
import pathlib
import time
from collections.abc import Callable, Iterator

import pytest
import zstandard

from commentree.tests.support.launch.build_processes import resident_mb, start

MEMORY_MB = 350
# The share of --memory that it may be over, and what Python takes for the imports.
MOST_MB = 1.25 * MEMORY_MB + 150


def tree(number: int = 1, body: str = "an answer of a few words") -> bytes:
  comment = {"id": f"c{number}", "parent_id": f"t{number}", "body": body}
  made = {"id": f"t{number}", "title": "a title", "comments": [comment]}
  return json.dumps(made, ensure_ascii=False).encode()


def repeated(data: bytes, count: int) -> Iterator[bytes]:
  for _ in range(count):
    yield data


def bz2_of_little(folder: pathlib.Path) -> None:
  packer = bz2.BZ2Compressor()
  with open(folder / "zeros.jsonl.bz2", "wb") as stream:
    for block in repeated(bytes(2**20), 4_000):
      stream.write(packer.compress(block))
    stream.write(packer.flush())


def zstd(folder: pathlib.Path, blocks: Iterator[bytes], window_log: int = 20) -> None:
  settings = zstandard.ZstdCompressionParameters.from_level(
    3, window_log=window_log, enable_ldm=window_log > 27
  )
  with (
    open(folder / "input.jsonl.zst", "wb") as stream,
    zstandard.ZstdCompressor(compression_params=settings).stream_writer(stream) as to,
  ):
    for block in blocks:
      to.write(block)


def wide_window(folder: pathlib.Path) -> None:
  zstd(folder, repeated(b"x" * 2**20, 3_000), window_log=31)


def line_feeds(folder: pathlib.Path) -> None:
  zstd(folder, repeated(b"\n" * 2**20, 2_000))


def long_line(folder: pathlib.Path) -> None:
  lists = b"[" + b"{}," * 17_000_000 + b"{}]"
  (folder / "lists.jsonl").write_bytes(
    tree() + b'\n{"id": "t2", "x": ' + lists + b"}\n"
  )


def long_comment(folder: pathlib.Path) -> None:
  begin, end = tree(body="|").split(b"|")
  zstd(folder, iter([begin, *repeated(b"word " * 2**18, 80), end, b"\n", tree(2)]))


def long_lines_not_ascii(folder: pathlib.Path) -> None:
  """Lines just below the limit, whose letters take two to four times the bytes."""
  with open(folder / "letters.jsonl", "wb") as stream:
    for number in range(40):
      stream.write(tree(number, "\U0001f600 слово " * 400_000) + b"\n")


def huge_tree(folder: pathlib.Path) -> None:
  with open(folder / "tree.jsonl", "wb") as stream:
    stream.write(b'{"id": "t1", "title": "a", "selftext": "b", "comments": [')
    for number in range(400_000):
      comment = {"id": f"c{number}", "parent_id": "t1", "body": "words " * 10}
      stream.write(json.dumps(comment).encode() + b",")
    stream.write(json.dumps({"id": "c", "parent_id": "t1", "body": "x"}).encode())
    stream.write(b"]}\n")


def array_of_trees(folder: pathlib.Path) -> None:
  with open(folder / "array.json", "wb") as stream:
    stream.write(b"[" + tree())
    for number in range(2, 300_000):
      stream.write(b",\n" + tree(number))
    stream.write(b"]\n")


INPUTS: dict[str, Callable[[pathlib.Path], None]] = {
  "4 GB of zeros in 3 kB of bz2": bz2_of_little,
  "3 GB in zstd with a window of 2 GB": wide_window,
  "2 GB of line feeds in zstd": line_feeds,
  "a line of 51 MB, {} 17 million times": long_line,
  "a comment of 100 MB": long_comment,
  "40 lines of 7 MB, not ASCII": long_lines_not_ascii,
  "a tree of 400,000 comments": huge_tree,
  "a JSON array of 300,000 trees": array_of_trees,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_a_build_of_hostile_input_keeps_to_its_memory(name, tmp_path):
  (tmp_path / "input").mkdir()
  INPUTS[name](tmp_path / "input")
  process = start(
    *("--source", tmp_path / "input", "--out", tmp_path / "out"),
    *(f"--memory={MEMORY_MB}MB", "--workers=2"),
  )
  peak_mb = 0.0
  while process.poll() is None:
    peak_mb = max(peak_mb, resident_mb(process.pid))
    time.sleep(0.05)
  told = process.communicate()[1]
  last = told.strip().splitlines()[-1]
  print(f"\n| {name} | {peak_mb:,.0f} MB | {process.returncode} | {last} |")
  assert "Traceback" not in told
  assert peak_mb < MOST_MB
  # Built, or nothing was left to build; never killed, and nothing to mend here.
  assert process.returncode in (0, 2), told
