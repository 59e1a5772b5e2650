"""The service as a process: address, token, signals."""

import contextlib
import ipaddress
import os
import pathlib
import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from jaxrec.errors import ConfigError
from jaxrec.runtime.program import INTERRUPTED
from jaxrec.server.app import create_app
from jaxrec.server.service import Service

TOKEN = "JAXREC_TOKEN"
# Seconds that an idle connection is kept: longer than clients and load balancers (60 s) keep
# theirs, since one that is closed while a request is on its way has no answer.
KEEP_ALIVE = 75


def read_token(file: str) -> str:
    """The token of a file, or else of `$JAXREC_TOKEN`; empty where there is none.

    Raises ConfigError for one that cannot stand in a header.
    """
    where, token = f"${TOKEN}", os.environ.get(TOKEN)
    if file:
        where = f"--token-file={file}"
        try:
            token = pathlib.Path(file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot be read: {error}") from error
    if token is None:
        return ""
    token = token.strip()
    if not token or not all("!" <= character <= "~" for character in token):
        raise ConfigError(
            f"{where}: a token is a line of visible ASCII characters without spaces; make one "
            "with: openssl rand -hex 32"
        )
    return token


def check_address(host: str, token: str) -> None:
    """Raises ConfigError when others could reach a service without a token."""
    if token or host == "localhost":
        return
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        pass
    raise ConfigError(
        f"--host={host}: reachable by others, who could read and change users; give a token with "
        f"--token-file=FILE or ${TOKEN}, or use --host=127.0.0.1"
    )


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. port: 0 takes a free one. Raises ConfigError."""
    if not 0 <= port < 1 << 16:  # the system would take it modulo 65536
        raise ConfigError(f"--port={port}: a number from 0 to 65535 is needed")
    with contextlib.ExitStack() as opened:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = opened.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            raise ConfigError(f"--host={host} --port={port}: cannot be used: {error}") from error
        opened.pop_all()
    return listener


def url_of(listener: socket.socket) -> str:
    """Where clients reach it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(service: Service, listener: socket.socket, token: str) -> int:
    """Serves until SIGTERM or Ctrl-C; returns the exit status, 0 or 130.

    Requests that were accepted are answered first, for as long as the service lets requests wait.
    A service that still compiles ends the process.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        server.should_exit = True

    app = create_app(service, token, lambda: setattr(server, "should_exit", True))
    server = uvicorn.Server(configuration(app, service))
    # for signals before uvicorn listens to them; it raises those that it got again at its end
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        server.run(sockets=[listener])
        if service.state in ("starting", "ready"):  # uvicorn does not stop what it hardly began
            service.stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    status = INTERRUPTED if signal.SIGINT in received else 0
    if service.state == "failed":
        print(f"jaxrec serve: error: {service.failure}", file=sys.stderr)
        status = 2
    if service.compiling:  # Python would take itself down around a thread that still computes
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def configuration(app: FastAPI, service: Service) -> uvicorn.Config:
    """How uvicorn runs: quiet, as answers are counted in the metrics."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(service.limits.timeout) + 5,
        ws="none",
    )
