"""The harness of every test: eight host devices, strict shapes, a compilation cache.

Compiling dominates the suite's time. Compiled functions are kept between runs in
`$JAXREC_TEST_CACHE` (default: a folder of the system's temporary directory, outside the
clone); its entries are written atomically, so pytest-xdist workers and the programs that tests
start share it. And the compiler is told to optimize little: tests compute next to nothing. XLA's
older emitters for the CPU take half the time of the newer ones to compile a model of the tests,
and a program in one piece a tenth less than one that is split among threads.

A test is skipped where something optional is missing. `$JAXREC_SKIPPED` names a file that gets the
names of skipped tests; `pytest --no-skips @FILE` runs them, and fails when one is skipped again.
"""

import importlib.metadata
import os
import pathlib
import tempfile

DEVICES = 8
SLOW_TIMEOUT = 1800  # seconds; of other tests: setup.cfg
CACHE = os.environ.get("JAXREC_TEST_CACHE") or str(
    pathlib.Path(tempfile.gettempdir()) / "jaxrec-test-cache"
)

# read by jax when it is imported, here and in programs that tests start
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# a flag that XLA does not know ends the process: the jaxlib of later versions has only the new ones
FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# Tests compare numbers made on the host's devices: an accelerator would only add noise. A test
# that needs one starts its own process.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", DEVICES)
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "local", deadline=None, max_examples=25, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "ci", hypothesis.settings.get_profile("local"), derandomize=True, database=None
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="fail when a test is skipped")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # a worker of pytest-xdist: the main process gets its reports
        return
    skipped = [report.nodeid for report in reporter.stats.get("skipped", [])]
    if "JAXREC_SKIPPED" in os.environ:
        lines = "".join(f"{name}\n" for name in skipped)
        pathlib.Path(os.environ["JAXREC_SKIPPED"]).write_text(lines)
    if skipped and session.config.getoption("no_skips"):
        reporter.write_line(f"\n--no-skips: {len(skipped)} skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


MAPS = pathlib.Path("/proc/self/maps")  # of Linux
MOST_MAPS = 20_000


@pytest.fixture(autouse=True, scope="module")
def programs_of_modules():
    """Compiled programs are let go behind a module when there are many.

    Each holds memory maps, of which the kernel allows a process 65,530. A worker with the programs
    of the whole suite had 55,000 of them near its end; one that crashed there probably had more.
    """
    yield
    if not MAPS.exists() or MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
