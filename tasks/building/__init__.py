"""From sources of any size to a dataset of trees: `commentree build`.

Rows of comments come in any order; they are cut to parts on disk sorted by a hash of
their tree's id (`parts`), grouped from there by DuckDB, one range of the hash after the
other (`grouping`), and made into trees and records (`shards`), which `manifest` makes
into a dataset that TFDS reads. `building` tells how a build goes. No TensorFlow here,
nor anything of the model.
"""
