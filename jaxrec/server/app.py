"""The routes, as a FastAPI application."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

import jaxrec.server.messages as bodies
from jaxrec.errors import DataError, JaxrecError, StoreError
from jaxrec.server import appending
from jaxrec.server.batching import Waiting
from jaxrec.server.errors import ServiceError
from jaxrec.server.guard import Guard
from jaxrec.server.problems import (
    check_kinds,
    check_most,
    error_of_validation,
    one_key,
    sentence,
    user_of_path,
)
from jaxrec.server.service import Service
from jaxrec.serving import requests

T = TypeVar("T")
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": bodies.ErrorAnswer, "description": text}
    for status, text in (
        (401, "no token"),
        (413, "too large"),
        (422, "a field that cannot be used"),
        (429, "the queue is full"),
        (503, "not ready, stopping, or the store cannot be used"),
        (504, "not answered in time"),
    )
}


def create_app(
    service: Service, token: str = "", failed: Callable[[], None] = lambda: None
) -> FastAPI:
    """The application; it starts and stops `service`.

    token: that requests must bear; empty: none is needed. failed: see `Service.start`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        service.start(failed)
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="jaxrec",
        description="Recommendations from stored user states.",
        lifespan=lifespan,
        responses=ERRORS,
        redoc_url=None,
    )
    app.add_middleware(Guard, token=token, timeout=service.limits.timeout, metrics=service.metrics)
    _add_errors(app)
    _add_users(app, service)
    _add_administration(app, service, token)
    return app


def _add_users(app: FastAPI, service: Service) -> None:
    limits = service.limits

    @app.post("/recommend", response_model=bodies.RecommendAnswer, summary="The best next items")
    async def recommend(body: bodies.RecommendBody) -> Response:
        check_most("users", len(body.users), limits.max_batch, "--max-batch")
        check_most("k", body.k, limits.max_k, "--max-k")
        generation = service.generation
        try:
            check_kinds(body)
            users, request = requests.make_request(
                generation.catalog,
                body.users,
                body.k,
                now=body.now,
                exclude_seen=body.exclude_seen,
                exclude=body.exclude,
                candidates=body.candidates,
            )
            generation.check(request)
        except (TypeError, ValueError) as error:
            message = str(error).removeprefix("recommend: ")
            raise ServiceError(422, message) from error
        for name, rows in (("exclude", request.exclude), ("candidates", request.candidates)):
            check_most(name, max(map(len, rows or ((),))), limits.max_ids, "--max-ids")
        waiting = Waiting(generation, users, request)
        answer = await within(service, service.submit(waiting), "the request was not answered")
        results = [
            {"user": user, "known": known, "items": items[:count], "scores": scores[:count]}
            for user, known, items, scores, count in zip(
                users,
                answer.known.tolist(),
                answer.items.tolist(),
                answer.scores.tolist(),
                (answer.scores > -float("inf")).sum(1).tolist(),
                strict=True,
            )
        ]
        return as_json(
            {"model": generation.version, "generation": generation.number, "results": results}
        )

    @app.post("/events", response_model=bodies.AppendAnswer, summary="Add events")
    async def events(
        body: bodies.EventsBody, idempotency_key: Annotated[str | None, Header()] = None
    ) -> Response:
        """Durable when it is answered. With an idempotency key it may be repeated."""
        check_most("events", len(body.events), limits.max_events, "--max-events")
        service.check_ready()
        key = one_key(idempotency_key, body.idempotency_key)
        check_kinds(body)
        columns = appending.complete(body.events, service.generation.incomplete)
        incomplete = len(body.events) - len(columns.users)
        appended = await within(
            service,
            service.changes.append(key, columns),
            "the events may have been added or not: repeat the request with the same idempotency "
            "key; it was not answered",
        )
        names = ("events", "users", "unknown_items", "late", "repeated")
        counts = dict(zip(names, appended.counts or [None] * len(names), strict=True))
        service.metrics.left_out.labels("incomplete").inc(incomplete)
        return as_json(
            {**counts, "incomplete": incomplete, "already_applied": appended.already_applied}
        )

    @app.delete(
        "/users/{user_id:path}", response_model=bodies.DeleteAnswer, summary="Forget a user"
    )
    async def delete(user_id: str) -> Response:
        """The id as in the data: digits, where the training data's user ids are integers."""
        service.check_ready()
        user = user_of_path(user_id, text=service.generation.catalog.text_users)
        existed = await within(
            service,
            service.changes.delete([user]),
            "the user may have been forgotten or not: repeat the request; it was not answered",
        )
        return as_json({"deleted": existed[0]})


def _add_administration(app: FastAPI, service: Service, token: str) -> None:
    @app.get("/health", response_model=bodies.StateAnswer, summary="Whether the process lives")
    async def health() -> Response:
        return as_json({"state": service.state})

    @app.get("/ready", response_model=bodies.StateAnswer, summary="Whether requests are answered")
    async def ready() -> Response:
        return as_json({"state": service.state}, 200 if service.state == "ready" else 503)

    @app.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        text = generate_latest(service.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @app.post("/admin/swap", response_model=bodies.SwapAnswer, summary="Serve another model")
    async def swap(body: bodies.SwapBody) -> Response:
        """Answered when the new model serves; requests go on meanwhile."""
        if not token:
            raise ServiceError(
                403, "a swap needs a service with a token: start it with --token-file"
            )
        done = await asyncio.to_thread(service.swap, body.workdir, body.states, body.which)
        return as_json(
            {
                "model": done.generation.version,
                "generation": done.generation.number,
                "programs": done.programs,
                "replayed": done.replayed,
            }
        )


def _add_errors(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> Response:
        del request
        status, message = 500, str(error)
        headers: dict[str, str] = {}
        if isinstance(error, RequestValidationError):
            status, message = error_of_validation(error.errors())
        elif isinstance(error, ServiceError):
            status = error.status
            if error.retry_after is not None:
                headers["retry-after"] = str(error.retry_after)
        elif isinstance(error, HTTPException):
            status, message = error.status_code, sentence(error)
            headers.update(error.headers or {})
        elif isinstance(error, StoreError):
            status = 503
        elif isinstance(error, DataError):
            status = 422
        elif isinstance(error, JaxrecError):
            status = 409
        return as_json({"error": message}, status, headers)

    for kind in (RequestValidationError, ServiceError, HTTPException, JaxrecError):
        app.add_exception_handler(kind, answer)


async def within(service: Service, future: "Future[T]", problem: str) -> T:
    """The result, waited for at most as long as the service says. Raises ServiceError (504)."""
    seconds = service.limits.timeout
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
    except TimeoutError as error:
        raise ServiceError(504, f"{problem} within {seconds:g} s: the service is busy") from error


def as_json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer that is not checked again."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text.encode(), status, headers, "application/json")
