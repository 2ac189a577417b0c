import bz2
import contextlib
import gzip
import io
import itertools
import logging
import lzma
import random
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks.readers.parsing import compression, files, zstd_frame
from commentree.tasks.trees.comment_tree import ReadCounts

COMPRESS = {
  "gzip": gzip.compress,
  "gzip with a name": lambda data: named_gzip(data),
  "zstd": zstandard.ZstdCompressor().compress,
  "zstd with checksum": zstandard.ZstdCompressor(write_checksum=True).compress,
  "bzip2": bz2.compress,
  "xz": lzma.compress,
}
WHOLE = 1 << 30


def named_gzip(data):
  """With every optional field of the header."""
  plain = gzip.compress(data)
  extra = b"\x04\x00abcd" + b"name\0" + b"comment\0" + b"\x12\x34"
  return plain[:3] + b"\x1e" + plain[4:10] + extra + plain[10:]


def numbered(start, count, noise=20):
  """Lines that can be told from each other and are hard to compress."""
  rng = random.Random(start)
  return [
    b"%d:%s" % (start + i, rng.randbytes(noise).hex().encode()) for i in range(count)
  ]


def compressed(frames, compress):
  return [compress(b"".join(line + b"\n" for line in frame)) for frame in frames]


def read(path, content, max_line_bytes=WHOLE):
  path.write_bytes(content)
  read_counts = ReadCounts()
  found = list(files.lines(str(path), max_line_bytes, read_counts))
  assert read_counts.files.total() == 1
  return found, read_counts


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)
def test_frames_behind_each_other_are_one_file(tmp_path, compress):
  frames = [numbered(1000 * i, 300) for i in range(3)]
  content = b"".join(compressed(frames, compress))
  found, read_counts = read(tmp_path / "a", content)
  assert found == list(itertools.chain(*frames))
  assert read_counts.files == {files.READ: 1}


@pytest.mark.parametrize("place", ["begin", "near begin", "middle", "near end"])
@pytest.mark.parametrize("name", COMPRESS)
def test_behind_a_damaged_frame_reading_goes_on_at_the_next(
  tmp_path, name, place, caplog
):
  frames = [numbered(10_000 * i, 2000) for i in range(4)]
  parts = compressed(frames, COMPRESS[name])
  damaged = bytearray(parts[1])
  at = {
    "begin": 0,
    "near begin": 40,
    "middle": len(damaged) // 2,
    "near end": len(damaged) - 200,
  }[place]
  damaged[at : at + 100] = random.Random(0).randbytes(100)
  with caplog.at_level(logging.WARNING):
    found, read_counts = read(tmp_path / "a", b"".join([parts[0], damaged, *parts[2:]]))
  read_whole = set(found)
  for frame in (frames[0], *frames[2:]):
    assert read_whole.issuperset(frame)
  assert found.count(frames[2][0]) == 1
  if name != "zstd":  # which can be damaged without anybody being able to tell
    assert read_counts.files == {files.DAMAGED: 1}
    assert "is damaged" in caplog.text


def test_lines_cut_by_a_gap_are_two_bad_ones_at_most(tmp_path):
  lines = numbered(0, 6000)
  data = b"".join(line + b"\n" for line in lines)
  third = len(data) // 3 + 7  # no line's end
  parts = [data[:third], data[third : 2 * third], data[2 * third :]]
  compress = zstandard.ZstdCompressor(write_checksum=True).compress
  first, second, last = map(compress, parts)
  gap = second[:30] + b"\xff" * (len(second) - 30)
  found, _ = read(tmp_path / "a", first + gap + last)
  bad = [line for line in found if line and line not in lines]
  assert len(bad) == 2
  assert bad[0] == parts[0].rpartition(b"\n")[2]
  assert bad[1] == parts[2].partition(b"\n")[0]
  whole = parts[0].count(b"\n") + parts[2].count(b"\n") - 1
  assert sum(line in lines for line in found) == whole


@pytest.mark.parametrize(
  ("suffix", "compress"),
  [(".gz", gzip.compress), (".zst", COMPRESS["zstd"]), (".bz2", bz2.compress)],
)
def test_a_file_damaged_where_it_begins_is_known_by_its_name(
  tmp_path, suffix, compress
):
  frames = [numbered(0, 100), numbered(1000, 100)]
  first, second = compressed(frames, compress)
  found, read_counts = read(tmp_path / f"a{suffix}", b"\xff\xff" + first[2:] + second)
  assert [line for line in found if line] == frames[1]
  assert read_counts.files == {files.DAMAGED: 1}


def test_frames_may_have_padding_between_them(tmp_path):
  frames = [numbered(0, 10), numbered(100, 10)]
  for compress in (gzip.compress, lzma.compress):
    content = b"\0\0\0\0".join(compressed(frames, compress)) + b"\0" * 8
    found, read_counts = read(tmp_path / "a", content)
    assert found == list(itertools.chain(*frames))
    assert read_counts.files == {files.READ: 1}


def test_what_looks_like_a_frame_but_is_none_is_passed_over(tmp_path):
  """A magic number inside damaged contents, with and without a sound header."""
  frames = [numbered(0, 2000), numbered(10_000, 500)]
  damaged, good = compressed(frames, COMPRESS["zstd with checksum"])
  decoys = b"\x28\xb5\x2f\xfd" * 50 + good[:20] + b"\xff" * 40
  content = damaged[:100] + b"\xff" * 100 + decoys + damaged[500:] + good
  found, read_counts = read(tmp_path / "a", content)
  assert found[-500:] == frames[1]
  assert read_counts.files == {files.DAMAGED: 1}


def test_a_header_that_no_compressor_writes_is_none(tmp_path):
  decoy = bytearray(gzip.compress(b"decoy\n"))
  decoy[9] = 77  # an operating system that none has
  good = gzip.compress(b"good\n")
  content = gzip.compress(b"first\n") + b"\xff" * 50 + decoy + b"\xff" * 50 + good
  found, _ = read(tmp_path / "a", content)
  assert [line for line in found if line] == [b"first", b"good"]


def test_a_header_that_claims_all_that_follows_costs_its_own_frame_alone(tmp_path):
  frames = [numbered(0, 2), numbered(1000, 2)]
  first, second = compressed(frames, named_gzip)
  swallowing = first[:11] + b"\x7f" + first[12:]  # the length of an optional field
  found, read_counts = read(tmp_path / "a", swallowing + second)
  assert [line for line in found if line] == frames[1]
  assert read_counts.files == {files.DAMAGED: 1}
  # Where nothing follows, it is the end that is missing.
  found, read_counts = read(tmp_path / "a", second + swallowing)
  assert found == frames[1]
  assert read_counts.files == {files.TRUNCATED: 1}


@given(
  st.sampled_from(sorted(COMPRESS)),
  st.lists(st.integers(0, 80), min_size=1, max_size=3),
  st.data(),
)
def test_no_damage_raises_nor_loses_an_untouched_frame(
  tmp_path_factory, name, sizes, data
):
  frames = [numbered(1000 * i, n, noise=9) for i, n in enumerate(sizes)]
  parts = [bytearray(part) for part in compressed(frames, COMPRESS[name])]
  victim = data.draw(st.integers(0, len(parts) - 1))
  for _ in range(data.draw(st.integers(1, 3))):
    place = data.draw(st.integers(0, len(parts[victim]) - 1))
    parts[victim][place] ^= data.draw(st.integers(1, 255))
  if data.draw(st.booleans()):
    del parts[victim][data.draw(st.integers(0, len(parts[victim]))) :]
  suffix = {"gz": ".gz", "zs": ".zst", "bz": ".bz2", "xz": ".xz"}[name[:2]]
  path = tmp_path_factory.getbasetemp() / f"any{suffix}"
  found, _ = read(path, b"".join(map(bytes, parts)))
  before = list(itertools.chain(*frames[:victim]))
  assert found[: len(before)] == before
  behind = list(itertools.chain(*frames[victim + 1 :]))
  if behind and parts[victim]:
    # The first line may follow what the damaged frame ended with.
    assert set(behind[1:]) <= set(found)


@given(
  st.sampled_from(compression.COMPRESSIONS), st.binary(max_size=300), st.booleans()
)
def test_any_bytes_can_stand_behind_a_magic_number(
  tmp_path_factory, method, content, named
):
  path = tmp_path_factory.getbasetemp() / f"b{method.suffix if named else ''}"
  read(path, method.magic + content)
  read(path, content)


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)
def test_a_file_cut_anywhere_yields_no_line_that_is_not_in_it(tmp_path, compress):
  frames = [numbered(0, 200), numbered(1000, 200)]
  content = b"".join(compressed(frames, compress))
  data = b"".join(line + b"\n" for frame in frames for line in frame)
  for end in range(0, len(content), max(1, len(content) // 60)):
    found, _ = read(tmp_path / "a", content[:end])
    assert data.startswith(b"\n".join(found)) or not any(found)


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)
def test_blocks_are_small_however_well_a_file_is_compressed(tmp_path, compress):
  size = 2**23
  path = tmp_path / "a"
  path.write_bytes(compress(bytes(size)))
  with open(path, "rb") as file:
    sizes = [len(block) for block in compression.blocks(file, [])]
  assert sum(sizes) == size
  assert max(sizes) <= 2**18


def wide_zstd(size, window_log=27):
  """A frame that does not tell what it holds."""
  parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log)
  whole = io.BytesIO()
  compressor = zstandard.ZstdCompressor(compression_params=parameters)
  with compressor.stream_writer(whole, closefd=False) as writer:
    for _ in range(size >> 20):
      writer.write(b"line\n" * (2**20 // 5) + b"\n")
  return whole.getvalue()


def test_a_window_larger_than_the_memory_is_told_with_the_files_name(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(compression, "_LEAST_WINDOW_BYTES", 0)
  content = wide_zstd(2 << 20)
  with (
    compression.window_limit(2**20),
    pytest.raises(UserError, match=r"b.zst: takes more memory to be unpacked .*128 MB"),
  ):
    read(tmp_path / "b.zst", content)
  _, read_counts = read(tmp_path / "b.zst", content)
  assert read_counts.files == {files.READ: 1}


def test_a_window_counts_as_much_as_was_unpacked(tmp_path):
  with compression.window_limit(2**20):
    found, _ = read(tmp_path / "a.zst", wide_zstd(2 << 20, window_log=30))
  assert len(found) == 2 * (2**20 // 5)
  assert compression.window_bytes(tmp_path / "a.zst") < 2**20


@given(
  st.lists(st.binary(max_size=200), min_size=1, max_size=5),
  st.booleans(),
  st.booleans(),
  st.integers(1, 40),
)
def test_a_frame_of_zstd_is_decoded_whatever_bites_it_comes_in(
  chunks, has_checksum, tells_size, bite
):
  data = b"".join(chunks) * 50
  content = zstandard.ZstdCompressor(
    write_checksum=has_checksum, write_content_size=tells_size
  ).compress(data)
  content += b"behind"
  decoder = zstd_frame.ZstdFrame(2**27, 2**27)
  found, place = [], 0
  while not decoder.eof:
    fed = b""
    if decoder.needs_input:
      assert place < len(content)
      fed = content[place : place + bite]
      place += bite
    found.append(decoder.decompress(fed, max_length=2**18))
  assert b"".join(found) == data
  assert decoder.unused_data + content[place:] == b"behind"


def test_frames_without_data_are_passed_over(tmp_path):
  skipped = b"\x5a\x2a\x4d\x18" + (9000).to_bytes(4, "little") + b"x" * 9000
  empty = b"\x51\x2a\x4d\x18" + bytes(4)
  lines = numbered(0, 10)
  (frame,) = compressed([lines], COMPRESS["zstd"])
  found, read_counts = read(tmp_path / "a", skipped + frame + empty + frame + skipped)
  assert found == lines + lines
  assert read_counts.files == {files.READ: 1}


def test_a_header_of_gzip_without_an_end_is_not_held(tmp_path):
  endless = gzip.compress(b"")[:3] + b"\x08" + gzip.compress(b"")[4:10]
  content = endless + b"x" * 2**20 + gzip.compress(b"sound\n")
  found, read_counts = read(tmp_path / "a.gz", content)
  assert found == [b"sound"]
  assert read_counts.files == {files.DAMAGED: 1}


def test_what_damaged_frames_claim_is_not_read_again_and_again(tmp_path, monkeypatch):
  monkeypatch.setattr(compression, "_READ_TWICE_BYTES", 0)
  # Stored blocks that reach over the members behind them.
  member = (
    gzip.compress(b"")[:10] + b"\x00" + struct.pack("<HH", 30_000, ~30_000 & 0xFFFF)
  )
  fed = 0
  whole = compression._GzipMember.decompress

  def counted(self, data, /, max_length):
    nonlocal fed
    fed += len(data)
    return whole(self, data, max_length=max_length)

  monkeypatch.setattr(compression._GzipMember, "decompress", counted)
  for number in (2_000, 20_000):
    fed = 0
    content = member * number
    (tmp_path / "a.gz").write_bytes(content)
    with (
      open(tmp_path / "a.gz", "rb") as file,
      contextlib.suppress(compression.CutOffError),
    ):
      for _ in compression.blocks(file, []):
        pass
    assert fed < 20 * len(content)
