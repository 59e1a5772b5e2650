"""The harness of every test: eight host devices, strict shapes, a compilation cache.

Compiling dominates the suite's time, so compiled functions are kept between runs in
`$JAXREC_TEST_CACHE` (default: a folder of the system's temporary directory, outside the
clone). Its entries are written atomically, so pytest-xdist workers share it.
"""

import os
import pathlib
import tempfile

import hypothesis
import jax

DEVICES = 8
CACHE = os.environ.get("JAXREC_TEST_CACHE") or str(
    pathlib.Path(tempfile.gettempdir()) / "jaxrec-test-cache"
)

# Tests compare numbers made on the host's devices: an accelerator would only add noise. A test
# that needs one starts its own process.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", DEVICES)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

hypothesis.settings.register_profile(
    "local", deadline=None, max_examples=25, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "ci", hypothesis.settings.get_profile("local"), derandomize=True, database=None
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")
