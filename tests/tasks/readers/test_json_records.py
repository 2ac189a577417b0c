"""JSON of any layout is read: every record once, whatever is broken."""

import json
import time
import tracemalloc

import pytest
import rich.console
from hypothesis import given
from hypothesis import strategies as st

from commentree.tasks import readers
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing import files, json_lines, json_records, unread
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tests.support.tasks import reading

DEFAULT = TreeConfig()


def tree(ident, **fields):
  comment = {"id": f"{ident}c", "parent_id": ident, "body": f'a "{ident}" [b] {{c}}\\'}
  return {"id": ident, "title": "t", "comments": [comment], **fields}


def comment(ident, parent, **fields):
  text = f"text of {ident}"
  return {"id": ident, "link_id": "t3_p", "parent_id": parent, "body": text, **fields}


COMMENTS = [comment("a", "t3_p"), comment("b", "t1_a"), comment("c", "t1_b")]


def read(path, content, config=DEFAULT, name=None):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return reading.read(str(path), config, name)


def cut(content, size, limit=DEFAULT.max_line_bytes):
  """The records of a content that comes in blocks of a size."""
  read_counts = ReadCounts()
  blocks = [content[i : i + size] for i in range(0, len(content), size)]
  found = json_records.of_blocks(blocks, TreeConfig(max_line_bytes=limit), read_counts)
  return [record.content for record in found], read_counts


LAYOUTS = {
  "lines": lambda records: "".join(json.dumps(r) + "\n" for r in records),
  "array": json.dumps,
  "indented array": lambda records: json.dumps(records, indent=1),
  "array of a record a line": lambda records: (
    "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n"
  ),
  "array without commas": lambda records: (
    "[\n" + "\n".join(map(json.dumps, records)) + "\n]"
  ),
  "array a line": lambda records: "\n".join(json.dumps([r]) for r in records),
  "arrays in an array": lambda records: json.dumps([records[:1], records[1:]]),
  "documents": lambda records: "\n".join(json.dumps(r, indent=2) for r in records),
  "answer": lambda records: json.dumps({"data": records, "metadata": {"a": [1]}}),
  "indented answer": lambda records: json.dumps(
    {"error": None, "data": records}, indent=4
  ),
  "answer a line": lambda records: "\n".join(
    json.dumps({"data": [r]}) for r in records
  ),
  "one line without an end": lambda records: " ".join(map(json.dumps, records)),
  "line ends of DOS": lambda records: json.dumps(records, indent=1).replace(
    "\n", "\r\n"
  ),
  "documents without a line between": lambda records: "".join(
    json.dumps(r, indent=2) for r in records
  ),
  "an array whose lines begin with commas": lambda records: (
    "[" + "\n,".join(map(json.dumps, records)) + "]"
  ),
  "an array as Jackson writes it": lambda records: (
    "[ " + ", ".join(json.dumps(r, indent=2) for r in records) + " ]"
  ),
  "texts of RFC 7464": lambda records: "".join(
    f"\x1e{json.dumps(r, indent=1)}\n" for r in records
  ),
  "documents behind an empty object": lambda records: "\n".join(
    json.dumps(r, indent=1) for r in [{}, *records]
  ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_trees_and_comments_are_read_in_any_layout(tmp_path, layout):
  empty = "empty" in layout
  found, read_counts = read(tmp_path / "a.json", LAYOUTS[layout](COMMENTS))
  assert [(c.id, c.parent) for c in found[0].comments[1:]] == [
    ("a", 0),
    ("b", 1),
    ("c", 2),
  ]
  neither = {comment_tree.DROPPED_NEITHER: 1} if empty else {}
  assert read_counts.comments == {comment_tree.KEPT: 3, **neither}
  found, read_counts = read(
    tmp_path / "b.json", LAYOUTS[layout]([tree("p"), tree("q")])
  )
  assert [t.id for t in found] == ["p", "q"]
  assert found[0].comments[1].text == 'a "p" [b] {c}\\'
  no_list = {comment_tree.TREE_NO_LIST: 1} if empty else {}
  assert read_counts.trees == {comment_tree.KEPT: 2, **no_list}
  apart = {json_lines.REPAIRED_LINES: 1} if layout.startswith("one line") else {}
  assert read_counts.repaired == apart


@pytest.mark.parametrize(
  "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
@pytest.mark.parametrize("layout", ["lines", "indented array"])
def test_unicode_is_read_in_any_encoding(tmp_path, encoding, layout):
  written = LAYOUTS[layout]([tree("p", title="\u00e9 \u4e2d"), tree("q")])
  written = written.replace("\\u00e9", "\u00e9").replace("\\u4e2d", "\u4e2d")
  found, read_counts = read(tmp_path / "a.json", written.encode(encoding))
  assert [t.comments[0].text for t in found] == ["\u00e9 \u4e2d", "t"]
  assert read_counts.comments == {comment_tree.KEPT: 2}
  assert read_counts.repaired == {}


VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text(),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
  ),
  max_leaves=8,
)


@pytest.mark.long
@given(
  st.lists(st.dictionaries(st.text(), VALUES, max_size=3), min_size=1, max_size=6),
  st.sampled_from([None, 0, 2, "\t"]),
  st.booleans(),
  st.integers(1, 40),
)
def test_elements_come_out_as_they_are_however_they_are_cut_into_blocks(
  values, indent, ascii_only, size
):
  written = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
  content = written.encode("utf-8", "surrogatepass")
  found, read_counts = cut(content, size)
  assert [json.loads(c) for c in found] == json.loads(content)
  assert read_counts.repaired == {}


@given(st.binary(max_size=200), st.integers(1, 50))
def test_records_do_not_depend_on_the_blocks_they_come_in(content, size):
  for start in (b"", b"[", b'[{"a": 1},', b'{"a"'):
    whole, _ = cut(start + content, 10**6)
    assert cut(start + content, size)[0] == whole or b"\n\n" in content


BROKEN = ['{"id": "x", "title": "cut o', '{"id": "x", "com', '{"id": "x",}', "{]"]


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("begin", ["[\n", '{"data": [\n'])
def test_a_broken_element_costs_no_other_one_where_each_begins_a_line(
  tmp_path, broken, begin
):
  lines = [json.dumps(tree("p")), broken, *(json.dumps(tree(x)) for x in "qrs")]
  end = "\n]" if begin == "[\n" else "\n]}"
  found, read_counts = read(tmp_path / "a.json", begin + ",\n".join(lines) + end)
  assert [t.id for t in found] == ["p", "q", "r", "s"]
  assert read_counts.trees == {comment_tree.KEPT: 4, json_lines.BAD_JSON: 1}


@pytest.mark.parametrize("begin", ["[\n", '{"data": [\n'])
def test_wherever_an_element_breaks_off_no_other_one_is_lost(begin):
  broken = '{"id": "x", "n": [1, {"a": "b"}], "comments": [{"id": "y"}], "s": 3}'
  others = [json.dumps(tree(name)) for name in "pqrst"]
  for end in range(1, len(broken)):
    lines = [*others[:2], broken[:end], *others[2:]]
    for between in (",\n", "\n"):
      found, _ = cut((begin + between.join(lines) + "\n]").encode(), 30)
      kept = {content.decode() for content in found}
      # Where a value may follow, the next one is taken for that.
      start = (broken[:end] + between).rstrip()
      in_array = start.count("[") > start.count("]") and start[-1] in "[,"
      hidden = {"r"} if in_array or start[-1] == ":" else set()
      missing = {json.loads(other)["id"] for other in others if other not in kept}
      assert missing <= hidden, broken[:end]


def pages(names, indent=None):
  """Answers of three comments each."""
  every = [comment(name, "t3_p", richtext=[{"e": "text"}]) for name in names]
  three = [every[start : start + 3] for start in range(0, len(every), 3)]
  return [
    json.dumps({"data": some, "meta": {"n": [3]}}, indent=indent) for some in three
  ]


@pytest.mark.parametrize("indent", [None, 2])
def test_wherever_an_answer_breaks_off_no_later_one_is_lost(indent):
  first, broken, *others = pages("abcdefghijkl", indent)
  for end in range(1, len(broken)):
    content = "\n".join([first, broken[:end], *others])
    found, _ = cut(content.encode(), 100)
    kept = {record["id"] for record in map(whole, found) if "id" in record}
    # Where a value may follow, the next answer is taken for that.
    hidden = set("ghi") if broken[:end].rstrip()[-1] in ":,[" else set()
    assert set("abcghijkl") - hidden <= kept, broken[:end]


def whole(content):
  """The object that bytes are; empty for anything else."""
  try:
    value = json.loads(content)
  except ValueError:
    return {}
  return value if isinstance(value, dict) else {}


INDENTED = [
  lambda records: json.dumps(records, indent=2),
  lambda records: json.dumps(records, indent=0),
  lambda records: json.dumps(records, indent="\t"),
  lambda records: "\n".join(json.dumps(r, indent=1) for r in records),
  lambda records: "".join(json.dumps(r, indent=1) for r in records),
  LAYOUTS["an array as Jackson writes it"],
  LAYOUTS["an array whose lines begin with commas"],
]


@pytest.mark.parametrize("layout", INDENTED)
@pytest.mark.parametrize("put", ["", "[", "{", "}", "]", '"', '{"a":', "},{", "\n"])
def test_one_mistake_costs_few_records(layout, put):
  names = [f"n{i}" for i in range(20)]
  records = [comment(name, "t3_p", flair=[{"e": "x"}, {"u": [1]}]) for name in names]
  content = layout(records)
  start, end = content.index('"n9"'), content.index('"n10"')
  for at in range(start, end, 11):
    for without in (0, 1, 25):
      broken = content[:at] + put + content[at + without :]
      found, _ = cut(broken.encode(), 500)
      kept = {record["id"] for record in map(whole, found) if "id" in record}
      assert len(set(names) - kept) <= 3, broken[at - 30 : at + 30]


def test_a_whole_record_is_not_cut_wherever_its_lines_begin():
  record = '{ "id": "p",\n  "comments": [\n{ "id": "a" },\n[{ "id": "b" }\n]]}'
  for content in (record, f"[\n{record}\n]", f"{record}\n{record}"):
    found, _ = cut(content.encode(), 10)
    assert {content.decode() for content in found} == {record}


def test_lines_that_were_put_together_are_taken_apart(tmp_path):
  a, b, c = map(json.dumps, COMMENTS)
  for together in (a + b, f"{a} {b}", f"{a},{b}", f"{a};{b};", f"{a}\0\0{b}\0"):
    found, read_counts = read(tmp_path / "RC_a.jsonl", f"{together}\n{c}\n")
    assert [each.id for each in found[0].comments[1:]] == ["a", "b", "c"]
    assert read_counts.comments == {comment_tree.KEPT: 3}
    assert read_counts.repaired == {json_lines.REPAIRED_LINES: 1}
  for end in range(a.index('"text') + 2, len(a) - 2):
    found, read_counts = read(tmp_path / "RC_a.jsonl", f"{a[:end]}{b}\n{c}\n")
    assert [each.id for each in found[0].comments[1:]] == ["b", "c"], a[:end]
    assert read_counts.comments[json_lines.DROPPED_BAD_JSON] == 1
    assert sum(read_counts.comments.values()) == 3
  many = a * (2 * json_records.LONGEST_HEAD_BYTES // len(a))
  assert not json_records.is_lines(many.encode())
  long = json.dumps(tree("p", title=many)).encode()
  assert json_records.is_lines(long[: json_records.LONGEST_HEAD_BYTES])


def test_a_broken_line_gives_none_of_what_is_in_it(tmp_path):
  inner = json.dumps(tree("q"))
  for broken in (
    '{"id": "p", "comments": [' + inner + ", " + inner,
    '{"id": "p"]], "comments": [' + inner + "]}",
    f'{{"id": "p", "title": "a "b" c", "x": {inner}}}',
    "{'id': 'p', 'title': 'a [b', 'comments': [], 'x': {}}",
  ):
    found, read_counts = read(
      tmp_path / "a.jsonl", broken + "\n" + json.dumps(tree("r"))
    )
    assert [t.id for t in found] == ["r"]
    assert read_counts.trees == {comment_tree.KEPT: 1, json_lines.BAD_JSON: 1}


def test_nuls_that_a_crash_leaves_cost_no_comment(tmp_path):
  lines = [json.dumps(each) for each in COMMENTS]
  for content in (
    "\0" * 600 + "\n".join(lines),
    lines[0] + "\n" + "\0" * 600 + "\n".join(lines[1:]) + "\0" * 9,
    "\0" * 600 + json.dumps(COMMENTS, indent=1) + "\0" * 9,
  ):
    found, _ = read(tmp_path / "RC_a.jsonl", content)
    assert [each.id for each in found[0].comments[1:]] == ["a", "b", "c"]


def test_an_array_before_objects_on_lines_is_one_line_of_them():
  objects = [json.dumps(tree(name)).encode() for name in "pqr"]
  for stray in (b'["not", "an", "object"]', b"[null]", b"[1, 2]"):
    assert json_records.is_lines(b"\n".join([stray, *objects]))
    assert not json_records.is_lines(stray)
  for records in (b"[" + objects[0] + b"]", b"[" + objects[0], b"[[1]]", b"[]", b"["):
    assert not json_records.is_lines(b"\n".join([records, *objects]))
  head, _ = json_records._peek(iter([b'["a"]\n', *(o + b"\n" for o in objects)]))
  assert json_records.is_lines(head)


def test_an_array_that_is_cut_off_gives_what_comes_before(tmp_path):
  content = json.dumps([tree("p"), tree("q"), tree("r")], indent=1)
  found, read_counts = read(tmp_path / "a.json", content[: content.index('"r"') + 20])
  assert [t.id for t in found] == ["p", "q"]
  assert read_counts.trees == {comment_tree.KEPT: 2, json_lines.BAD_JSON: 1}
  assert read_counts.repaired == {json_records.REPAIRED_NOT_CLOSED: 1}


def test_an_element_too_long_is_left_out_and_the_next_one_read(tmp_path):
  values = [tree("p"), tree("q", title="x" * 5000), tree("r")]
  for content in (json.dumps(values), json.dumps(values, indent=1)):
    found, read_counts = read(
      tmp_path / "a.json", content, TreeConfig(max_line_bytes=2000)
    )
    assert [t.id for t in found] == ["p", "r"]
    assert read_counts.trees == {comment_tree.KEPT: 2, files.LINE_TOO_LONG: 1}


@pytest.mark.long
def test_memory_does_not_grow_with_an_array(tmp_path):
  def peak(count):
    path = tmp_path / "a.json"
    with path.open("w") as file:
      file.write("[")
      for i in range(count):
        file.write(("," if i else "") + json.dumps(tree(f"t{i}", title="x" * 500)))
      file.write("]")
    tracemalloc.start()
    assert sum(1 for _ in readers.iter_trees(str(path), DEFAULT, ReadCounts())) == count
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return used

  peak(2_000)
  assert peak(8_000) < 1.5 * peak(2_000)


def test_a_first_record_longer_than_is_looked_at_first_does_not_hide_the_format(
  tmp_path,
):
  long = {"gallery": ["x" * 100] * 900, "id": "p", "title": "t", "created_utc": 1}
  posts = [long, {"id": "q", "title": "t", "created_utc": 2, "selftext": ""}]
  for name, layout in LAYOUTS.items():
    path = tmp_path / "a.json"
    path.write_text(layout(posts))
    assert readers.format_of(str(path)).name == "pushshift", name


def test_a_file_in_which_nothing_is_found_is_named_with_a_line_of_it(
  tmp_path, caplog, monkeypatch
):
  monkeypatch.setattr(unread, "_warned", 0)
  odd = tmp_path / "odd.json"
  odd.write_text('\n{"version": 3, "settings": {"a": "' + "b" * 200 + '"}}\n')
  good = tmp_path / "good.json"
  good.write_text(json.dumps([tree("p")]))
  read_counts = ReadCounts()
  found = list(readers.iter_trees(str(tmp_path), DEFAULT, read_counts))
  assert [t.id for t in found] == ["p"]
  assert read_counts.files == {files.READ: 1, files.NOTHING_FOUND: 1}
  (warning,) = [r.getMessage() for r in caplog.records]
  assert warning.startswith(f"{odd}: nothing was found in it, read as tree_jsonl; it")
  assert """begins '{"version": 3, "settings": {"a": "bbb""" in warning
  assert "docs/data.md" in warning
  assert len(warning) < 400


@pytest.mark.parametrize("unit", [b"[", b"[{", b"]", b"}", b"[1" + b"]" * 99])
def test_brackets_are_taken_many_at_once(unit):
  content = b"[\n" + unit * (2**22 // len(unit))
  start = time.process_time()
  found, _ = cut(content, 2**18)
  assert time.process_time() - start < 2
  assert sum(map(len, found)) <= len(content)


def test_lines_with_what_strict_json_does_not_have_are_lines():
  lines = [b'{"id": "p", "score": NaN, "comments": []}', b'[NaN, {"comments": []}]']
  assert json_records.is_lines(b"\n".join(lines))
  assert json_records.is_lines(lines[0] + b'\n{"text": "\xff\\ud800\x01"}\n' + lines[1])


def test_a_line_nested_too_deeply_for_python_is_a_line():
  deep = b'{"id": "a", "comments": [' + b'{"replies": [' * 2000 + b"]}" * 2000 + b"]}"
  assert json_records.is_lines(deep + b"\n" + b"[" * 1000)
  assert not json_records.is_lines(deep[:-1] + b'\n{"id":\n"b",\n{\n')


def test_ids_that_do_not_fit_their_parents_are_told_from_a_dump_with_holes(tmp_path):
  read_counts = ReadCounts()
  read_counts.comments.update({comment_tree.KEPT: 10, comment_tree.KEPT_ORPHAN: 90})
  (remark,) = read_counts.remarks()
  assert remark.startswith("90% of the comments answer one that is not there")
  with open(tmp_path / "told", "w") as file:
    read_counts.tell(rich.console.Console(file=file, width=70))
  assert f"warning: {remark}\n" in (tmp_path / "told").read_text()
  read_counts.comments.update({comment_tree.KEPT: 1000})
  assert read_counts.remarks() == []
