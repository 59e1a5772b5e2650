"""The processes of a run find each other, before JAX's coordination service starts.

JAX ends a process with a dump of C++ frames when nothing answers at the coordinator's address, or
when a process stays away. So they meet there first: process 0 listens, the others say who they are,
and all go on together, or each says in one sentence who was missing. Nothing is authenticated: as
for JAX's service itself, the port belongs inside a trusted network. Process 0 listens on the
address that was given, and on no other.
"""

import contextlib
import errno
import ipaddress
import os
import socket
import time
from collections.abc import Mapping

from jaxrec.errors import ConfigError

BIND = "JAX_COORDINATOR_BIND_ADDRESS"
GO = "go"
PAUSE = 0.2  # seconds between two attempts to connect
_HELLO = "jaxrec process {process} of {processes}"
_LINE = 200  # bytes of a message, at most


def split(coordinator: str) -> tuple[str, int]:
    """Host, without the brackets of IPv6, and port of HOST:PORT."""
    host, _, port = coordinator.rpartition(":")
    return host.strip("[]"), int(port)


def bind_address(coordinator: str, environment: Mapping[str, str] = os.environ) -> str:
    """IP:PORT that process 0 listens on: an address of HOST, of IPv4 where it has one.

    JAX's own variable $JAX_COORDINATOR_BIND_ADDRESS says another one, where HOST is no address of
    process 0's machine (it is translated, or that of a service in Kubernetes); 0.0.0.0 is every
    interface. Raises ConfigError for a name that has no address.
    """
    asked = environment.get(BIND, "") or coordinator
    flag = f"${BIND}={asked}" if environment.get(BIND) else f"--coordinator={coordinator}"
    try:
        host, port = split(asked)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "allowed is HOST:PORT"
        raise ConfigError(f"{flag}: {reason}") from error
    first = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    address = str(first[4][0])
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def meet(coordinator: str, processes: int, process: int, timeout: float) -> None:
    """Returns when all processes are there.

    Raises ConfigError when they are not within `timeout` seconds, and for another number of
    processes there than here.
    """
    if process:
        _join(coordinator, processes, process, timeout)
    elif processes > 1:
        _gather(coordinator, processes, timeout)


def _gather(coordinator: str, processes: int, timeout: float) -> None:
    """Process 0: waits for all others, then lets them go."""
    deadline = time.monotonic() + timeout
    missing = set(range(1, processes))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(coordinator))
        guests: list[socket.socket] = []
        while missing:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                guest, _ = server.accept()
            except TimeoutError as error:
                names = ", ".join(map(str, sorted(missing)))
                raise ConfigError(
                    f"--coordinator={coordinator}: {len(missing)} of {processes} processes did not "
                    f"come within {timeout:g} s: --process={names}. Start the same command there"
                    f"{_only_here(coordinator)}"
                ) from error
            stack.enter_context(guest)
            guest.settimeout(5)
            said = _read(guest)
            known = [n for n in missing if said == _HELLO.format(process=n, processes=processes)]
            if known:
                missing.remove(known[0])
                guests.append(guest)
            elif said.startswith("jaxrec "):
                _send(guest, f"process 0 waits for others of {processes} processes, this is {said}")
        for guest in guests:
            _send(guest, GO)
        for guest in guests:  # they hang up first, so that the port is free at once
            _read(guest)


def _only_here(coordinator: str) -> str:
    """What is said of a name that means this machine alone, as its own name may do in its files."""
    listening, (host, _) = split(bind_address(coordinator))[0], split(coordinator)
    if host in ("localhost", listening) or not ipaddress.ip_address(listening).is_loopback:
        return ""
    return f". {host} is {listening} here, which no other machine reaches: give an address"


def _listen(coordinator: str) -> socket.socket:
    address = bind_address(coordinator)
    host, port = split(address)
    try:
        if ":" not in host:
            return socket.create_server((host, port))
        every = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=every)
    except OSError as error:
        advice = "choose a free port"
        if error.errno == errno.EADDRNOTAVAIL:
            advice = (
                f"{host} is no address of this machine. Where it is forwarded here, set "
                f"{BIND}=0.0.0.0:{port} to listen on every interface"
            )
        raise ConfigError(
            f"--coordinator={coordinator}: process 0 cannot listen there ({error.strerror}): "
            f"{advice}"
        ) from error


def _join(coordinator: str, processes: int, process: int, timeout: float) -> None:
    """Any other process: says who it is and waits for all."""
    deadline = time.monotonic() + timeout
    reason = "nothing answered"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(split(coordinator), timeout=left) as host:
                _send(host, _HELLO.format(process=process, processes=processes))
                host.settimeout(max(deadline - time.monotonic(), 0.01))
                answer = _read(host)
        except OSError as error:
            reason = error.strerror or str(error) or reason
        else:
            if answer == GO:
                return
            if answer.startswith("process 0"):
                raise ConfigError(f"--coordinator={coordinator}: {answer}; --processes must agree")
            reason = "what answered is no process 0 of this run, or it ended"
        time.sleep(min(PAUSE, max(deadline - time.monotonic(), 0)))
    raise ConfigError(
        f"--coordinator={coordinator}: process 0 was not reached within {timeout:g} s "
        f"({reason}). Check host and port, and that process 0 is started"
    )


def _send(to: socket.socket, text: str) -> None:
    with contextlib.suppress(OSError):  # it hung up: the reader says what that means
        to.sendall(f"{text}\n".encode())


def _read(source: socket.socket) -> str:
    """A line; what came of it where the other side hung up or stays silent."""
    data = b""
    with contextlib.suppress(OSError):
        while b"\n" not in data and len(data) < _LINE:
            part = source.recv(_LINE)
            if not part:
                break
            data += part
    return data.decode(errors="replace").partition("\n")[0]
