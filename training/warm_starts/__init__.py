"""Parameters from files that other programs wrote, or from our own of other shapes.

`sources` names the arrays that files of any kind hold and reads parts of them; `rules`
says which of them a parameter comes from, and accounts for every parameter and every
array; `apply` fills the parameters, each host its own part. Nothing here imports
TensorFlow, nothing is unpickled, and what a file claims is checked before memory is
taken for it.
"""
