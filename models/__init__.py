"""The network, its losses and the T5X-style model class: JAX, Flax and clu only.

Nothing here imports TensorFlow, SeqIO, gin or `commentree.tasks`; data arrives as
the forest arrays described in `batch.py`.

Shapes are written as suffixes, one capital per axis (`x_BRLD`):

  B  examples (forests) in the batch      D  width of the model (`emb_dim`)
  R  rows of an example                   H  attention heads
  L  columns (tokens) of a row            K  width of a head (`head_dim`)
  N  tokens of an example, R * L          F  width of the MLP (`mlp_dim`)
  E  encoder slots (pooled comments)      V  pieces in the vocabulary
  T  target slots (masked comments)       M  masked positions of a group
  U  target ids, T + 1: 0 is padding      A  ancestors a target may see
  J  pooled vectors per comment           S  cross-attention keys, 1 + E * J
  C  tokens of a concatenated thread      X  targets of all examples, B * T
  Q  queries, such as masked positions     W  rows of all examples, B * R
  G  groups of rows, of one or more each
  P  distances or depths, one each up to `max_ancestor_distance`

Encoder and decoder see rows as their batch, so inside them `R` stands for B * R; where
both are named it is `W`. A module that has other letters explains them at its head.
"""
