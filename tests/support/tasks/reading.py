"""Trees of files, as readers find them, and what was counted on the way."""

from commentree.tasks import readers
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.trees.comment_tree import ReadCounts


def read(patterns, config=TreeConfig(), name=None):
  """The trees of files, of the format of this name or of that which fits."""
  counts = ReadCounts()
  return list(readers.iter_trees(patterns, config, counts, name)), counts


def read_by_id(patterns, config=TreeConfig(), name=None):
  trees, counts = read(patterns, config, name)
  return {tree.id: tree for tree in trees}, counts


def parents(tree):
  """Comments of a tree by id: the id of what each answers."""
  return {c.id: tree.comments[c.parent].id for c in tree.comments[1:]}


def read_contents(folder, config=TreeConfig(), **contents):
  """Trees by id of files of these contents (`__` in a name is a dot); and counts."""
  paths = []
  for name, content in contents.items():
    path = folder / name.replace("__", ".")
    path.write_text(content)
    paths.append(str(path))
  return read_by_id(paths, config)
