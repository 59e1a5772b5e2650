"""What every request passes before its route: token, size, time; and what is counted of it."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxrec.server.limits import BODY_BYTES
from jaxrec.server.metrics import Metrics

LOG = logging.getLogger(__name__)
OPEN = ("/health", "/ready")
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, *, token: str, timeout: float, metrics: Metrics) -> None:
        """token: that requests must bear; empty: none is needed, and only local names are served.

        timeout: seconds in which a body must have come.
        """
        self.app, self.token, self.timeout, self.metrics = app, token, timeout, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers itself what may not pass."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._pass(scope, receive, sending)
        except Exception:
            LOG.exception("%s %s", scope["method"], scope["path"])
            if not status:
                await refuse(sending, 500, "the service failed: its log says where")
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        problem = None if scope["path"] in OPEN else self._stranger(headers)
        if problem is not None:
            await refuse(send, *problem)
            return
        too_large = (413, f"the body has more than {BODY_BYTES} bytes: send it in parts")
        length = headers.get("content-length", b"0")
        if length.isdigit() and int(length) > BODY_BYTES:
            await refuse(send, *too_large)
            return
        body = b""
        try:
            async with asyncio.timeout(self.timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    if len(body) > BODY_BYTES:
                        await refuse(send, *too_large)
                        return
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            await refuse(send, 408, f"the body did not come within {self.timeout:g} seconds")
            return
        sent = False

        async def whole() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, whole, send)

    def _stranger(self, headers: Mapping[str, bytes]) -> tuple[int, str] | None:
        """Status and sentence for a request without the token, or for another host's name."""
        if not self.token:
            host = headers.get("host", b"").decode("latin-1").lower()
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name in LOCAL_NAMES:
                return None
            return 403, f"host {name!r}: a service without a token answers to localhost only"
        scheme, _, given = headers.get("authorization", b"").partition(b" ")
        # compared in constant time: how long a refusal takes tells nothing of the token
        same = hmac.compare_digest(given.strip(), self.token.encode())
        if scheme.lower() == b"bearer" and same:
            return None
        return 401, "the header `Authorization: Bearer TOKEN` with the service's token is needed"


async def refuse(send: Send, status: int, message: str) -> None:
    """Answers one sentence."""
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status in (408, 413):  # the rest of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": message}).encode()})
