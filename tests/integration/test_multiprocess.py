"""Real processes on one machine that train together, are stopped and are killed."""

import ipaddress
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxrec.errors import ConfigError
from jaxrec.runtime import checkpoint, distributed

DEVICES = 4
STEPS = 10


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(folder, processes, steps=STEPS, faults=()):
    """(exit status, output, messages) of every process; faults: process -> arguments."""
    address, faults = f"127.0.0.1:{free_port()}", dict(faults)
    running = []
    for index in range(processes):
        place = {
            distributed.COORDINATOR: address,
            distributed.PROCESSES: str(processes),
            distributed.PROCESS: str(index),
        }
        environment = {
            **os.environ,
            **(place if processes > 1 else {}),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(DEVICES // processes),
        }
        arguments = [str(folder), str(steps), *faults.get(index, ())]
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.integration.peer", *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        printed = [process.communicate(timeout=60) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(p.returncode, *texts) for p, texts in zip(running, printed, strict=True)]


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process with all devices, never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    [(status, printed, errors)] = start(folder, 1)
    assert status == 0, errors
    return losses(folder), printed


def assert_same(folder, whole):
    found = losses(folder)
    assert list(found) == list(range(1, STEPS + 1))
    assert found == pytest.approx(whole[0], abs=1e-6)


def test_stopped_everywhere_and_continued_by_another_number_of_processes(whole, tmp_path):
    ended = start(tmp_path, 2, faults={1: ("batch-SIGTERM", "4")})
    assert [status for status, *_ in ended] == [0, 0], ended
    words = [printed.splitlines()[-1].split()[:3] for _, printed, _ in ended]
    assert words[0] == words[1]
    assert words[0][0] == "preempted"
    saved = int(words[0][1])
    assert 5 <= saved <= 7  # one step is running when the others hear of it
    assert checkpoint.steps(tmp_path / "checkpoints")[-1] == saved
    assert not ended[1][2].count("step ")  # only the first process reports

    [(status, printed, errors)] = start(tmp_path, 1)
    assert status == 0, errors
    assert f"continuing from step {saved}" in errors
    assert_same(tmp_path, whole)
    assert float(printed.split()[3]) == pytest.approx(float(whole[1].split()[3]), abs=1e-5)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(whole, tmp_path, victim):
    before = time.monotonic()
    ended = start(tmp_path, 2, faults={victim: ("batch-SIGKILL", "8")})
    assert ended[victim][0] == -signal.SIGKILL
    status, _, errors = ended[1 - victim]
    assert status not in (0, -signal.SIGKILL)
    assert "lost another process" in errors or "another task died" in errors
    assert time.monotonic() - before < 60  # start-up and the timeout of 10 s
    saved = checkpoint.steps(tmp_path / "checkpoints")[-1]
    assert saved in (6, 8)

    ended = start(tmp_path, 2)
    assert [status for status, *_ in ended] == [0, 0], ended
    assert f"continuing from step {saved}" in ended[0][2]
    assert_same(tmp_path, whole)


def test_an_error_in_one_process_ends_all_with_its_message(tmp_path):
    ended = start(tmp_path, 2, faults={1: ("error", "3")})
    assert ended[1][0] == 2
    assert "error in process 1 of 2: the disk is gone" in ended[1][2]
    assert ended[0][0] not in (0, None)


def test_an_error_of_the_first_process_is_everyones(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")  # no run of ours
    ended = start(tmp_path, 2)
    assert [status for status, *_ in ended] == [2, 2]
    assert "name another --workdir" in ended[0][2]
    assert "process 0 stopped: workdir" in ended[1][2]


def listening(process):
    """Addresses of IPv4 and IPv6 that a process listens on, {port: {address}}."""
    inodes = {
        os.readlink(link)[8:-1]
        for link in pathlib.Path(f"/proc/{process}/fd").iterdir()
        if os.readlink(link).startswith("socket:[")
    }
    found = {}
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                words = (bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8))
                given = ipaddress.ip_address(b"".join(words))
                given = getattr(given, "ipv4_mapped", None) or given
                found.setdefault(int(port, 16), set()).add(str(given))
    return found


LISTENS = """
import sys, jax
from jaxrec.runtime import distributed
distributed.start(distributed.place(), timeout=60)
print("started", flush=True)
sys.stdin.readline()
jax.distributed.shutdown()
"""


@pytest.mark.skipif(not pathlib.Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_jax_listens_on_the_address_that_was_given(host):
    port = free_port()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", LISTENS],
            env={
                **os.environ,
                distributed.COORDINATOR: f"{host}:{port}",
                distributed.PROCESSES: "2",
                distributed.PROCESS: str(index),
                "JAX_PLATFORMS": "cpu",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    try:
        assert [process.stdout.readline() for process in running] == ["started\n"] * 2
        assert listening(running[0].pid)[port] == {host}
        assert port not in listening(running[1].pid)
        for process in running:
            process.stdin.write("\n")
            process.stdin.flush()
        assert [process.wait(30) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("given", "environment", "found"),
    [
        (("", None, None), {}, None),
        (("none", None, None), {"SLURM_STEP_NUM_TASKS": "4"}, None),
        (("", None, None), {"SLURM_STEP_NUM_TASKS": "4"}, ("auto", None, None)),
        (("", None, None), {"TPU_WORKER_HOSTNAMES": "a,b"}, ("auto", None, None)),
        (("", None, None), {"TPU_WORKER_HOSTNAMES": "a"}, None),
        (("h:1", 3, 2), {}, ("h:1", 3, 2)),
        (
            ("", None, None),
            {"JAXREC_COORDINATOR": "h:1", "JAXREC_PROCESSES": "2", "JAXREC_PROCESS": "0"},
            ("h:1", 2, 0),
        ),
    ],
)
def test_where_a_process_stands(given, environment, found):
    assert distributed.place(*given, environment=environment) == found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("h", 2, 0), "--coordinator='h': allowed are HOST:PORT, auto, none"),
        (("h:1", None, 0), "--processes .*JAXREC_PROCESSES.*a number is needed"),
        (("h:1", 2, None), "--process .*JAXREC_PROCESS.*a number is needed"),
        (("h:1", 2, 2), "--process=2: allowed are 0 to 1"),
    ],
)
def test_impossible_places_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        distributed.place(*given, environment={})
