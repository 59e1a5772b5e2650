"""Exit status and the one line of a mistake; the folder of compiled programs."""

import configparser
import pathlib
import socket
import threading

import jax
import pytest

from jaxrec.errors import ConfigError, DataError
from jaxrec.runtime import compile_cache, rendezvous
from jaxrec.runtime.program import EXTRAS, Failure, exit_status

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (DataError("a.csv: no rows"), 2, "p: error: a.csv: no rows"),
        (OSError("two\nlines"), 2, "p: error: two lines"),
        (Failure("they differ"), 1, "p: they differ"),
        (KeyboardInterrupt(), 130, "p: interrupted"),
        (
            ModuleNotFoundError("no", name="optuna.samplers"),
            2,
            "p: error: optuna is not installed: pip install 'jaxrec[tune]'",
        ),
    ],
)
def test_an_error_is_a_line(error, status, line, capsys):
    def main(argv):
        raise error

    assert exit_status("p", main, []) == status
    assert capsys.readouterr().err == line + "\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_status("p", lambda argv: 1 // 0, [])
    with pytest.raises(ModuleNotFoundError):
        exit_status("p", lambda argv: __import__("no_such_package"), [])


def test_extras_are_those_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    for package, extra in EXTRAS.items():
        spelt = {package, package.replace("_", "-")}
        assert any(name in extras[extra] for name in spelt), package


def test_where_compiled_programs_are_kept(tmp_path, monkeypatch, capsys):
    assert compile_cache.folder("off", {"HOME": "/h"}) is None
    assert compile_cache.folder("here", {}) == pathlib.Path("here")
    home = compile_cache.folder("", {"HOME": "/h"})
    assert home.parent == pathlib.Path("/h/.cache/jaxrec/compiled")
    xdg = compile_cache.folder("", {"HOME": "/h", "XDG_CACHE_HOME": "/c"})
    assert xdg == pathlib.Path("/c/jaxrec/compiled") / home.name
    assert compile_cache.folder("", {}) is None

    before = jax.config.values["jax_compilation_cache_dir"]
    threshold = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    try:
        compile_cache.use("")  # that of the tests stays
        assert jax.config.values["jax_compilation_cache_dir"] == before
        compile_cache.use(str(tmp_path / "mine"))
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "mine")
        (tmp_path / "file").write_text("")
        compile_cache.use(str(tmp_path / "file" / "below"))
        assert "compiled programs are not kept" in capsys.readouterr().err
        compile_cache.use("off")
        assert jax.config.values["jax_compilation_cache_dir"] is None
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        compile_cache.use("")
        assert pathlib.Path(jax.config.values["jax_compilation_cache_dir"]).is_dir()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", threshold)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_processes_meet_on_the_address_that_was_given():
    address = f"127.0.0.1:{free_port()}"
    assert rendezvous.bind_address(address) == address
    with rendezvous._listen(address) as server:  # as process 0 does, and JAX behind it
        assert server.getsockname()[0] == "127.0.0.1"
    others = [
        threading.Thread(target=rendezvous.meet, args=(address, 3, process, 20))
        for process in (1, 2)
    ]
    for other in others:
        other.start()
    rendezvous.meet(address, 3, 0, 20)
    for other in others:
        other.join(20)
        assert not other.is_alive()
    rendezvous.meet(address, 1, 0, 0.1)  # alone there is nobody to meet


@pytest.mark.parametrize(
    ("coordinator", "variable", "address"),
    [
        ("127.0.0.2:5", "", "127.0.0.2:5"),
        ("10.0.0.7:5", "", "10.0.0.7:5"),
        ("[::1]:5", "", "[::1]:5"),
        ("localhost:5", "", "127.0.0.1:5"),
        ("0.0.0.0:5", "", "0.0.0.0:5"),
        ("10.0.0.7:5", "0.0.0.0:6", "0.0.0.0:6"),
        ("10.0.0.7:5", "[::]:5", "[::]:5"),
    ],
)
def test_where_process_0_listens(coordinator, variable, address):
    assert rendezvous.bind_address(coordinator, {rendezvous.BIND: variable}) == address


def test_addresses_that_nobody_can_listen_on(monkeypatch):
    with pytest.raises(ConfigError, match=r"--coordinator=no\.invalid:5: \w+"):
        rendezvous.bind_address("no.invalid:5", {})
    with pytest.raises(ConfigError, match=r"BIND_ADDRESS=x: allowed is HOST:PORT"):
        rendezvous.bind_address("127.0.0.1:5", {rendezvous.BIND: "x"})
    port = free_port()
    words = rf"198\.51\.100\.7 is no address of this .* {rendezvous.BIND}=0\.0\.0\.0:{port} "
    with pytest.raises(ConfigError, match=words):
        rendezvous.meet(f"198.51.100.7:{port}", 2, 0, 0.3)
    own_name = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: own_name)
    with pytest.raises(ConfigError, match=r"node7 is 127\.0\.1\.1 here, which no other machine"):
        rendezvous.meet(f"node7:{port}", 2, 0, 0.3)


def test_whoever_does_not_come_is_named():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=r"process 0 was not reached within 0\.3 s .*refused"):
        rendezvous.meet(address, 2, 1, 0.3)
    with pytest.raises(ConfigError, match=r"2 of 3 processes did not come .*--process=1, 2\."):
        rendezvous.meet(address, 3, 0, 0.3)
    with socket.create_server(("127.0.0.1", 0)) as other:  # it never answers
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"not reached within 0\.3 s \(what answered is no"):
            rendezvous.meet(taken, 2, 1, 0.3)
        with pytest.raises(ConfigError, match=r"process 0 cannot listen there .*a free port"):
            rendezvous.meet(taken, 2, 0, 0.3)
    failed = []

    def join():
        with pytest.raises(ConfigError, match="process 0 waits for others of 2 processes"):
            rendezvous.meet(address, 3, 1, 5)
        failed.append(True)

    thread = threading.Thread(target=join)
    thread.start()
    with pytest.raises(ConfigError, match="did not come within 1 s: --process=1"):
        rendezvous.meet(address, 2, 0, 1)
    thread.join(10)
    assert failed
