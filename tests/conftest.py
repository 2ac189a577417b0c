"""Before any test imports JAX."""

from commentree.launch import quiet

quiet.keep_out_tpu_library()
