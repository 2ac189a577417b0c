"""Before any test imports JAX."""

import hypothesis

from commentree.launch import quiet

quiet.keep_out_tpu_library()

# How long an example takes says more of the machine's other work than of ours.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")
