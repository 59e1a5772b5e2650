"""What is wrong with a request, as a status and one sentence that names the field."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from starlette.exceptions import HTTPException

from jaxrec.server import messages
from jaxrec.server.errors import ServiceError
from jaxrec.serving.raw_inputs import MIXED
from jaxrec.types import UserId

BODIES = (messages.RecommendBody, messages.EventsBody, messages.EventBody, messages.SwapBody)
KEY_LENGTH = 200


def error_of_validation(errors: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
    """Status and sentence for what FastAPI found in a body."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return 400, f"the body is no JSON: {first['ctx']['error']}"
    if first["type"] == "extra_forbidden":
        return 422, f"{_name(first['loc'][1:])}: there is no such field; see /docs"
    # parts of the place that name a branch of a union are pydantic's own
    place = [part for part in first["loc"][1:] if isinstance(part, int) or _is_field(part)]
    if not place:
        return (
            422,
            "a JSON object is needed as body, with the header Content-Type: application/json",
        )
    name = _name(place)
    names = [part for part in place if isinstance(part, str)]
    if first["type"] == "missing":
        return 422, f"{name} is missing: it is {_description(names[-1])}"
    reason = first["msg"].removeprefix("Value error, ")
    return (
        422,
        f"{name}: {reason[:1].lower()}{reason[1:]}; {names[-1]} is {_description(names[-1])}",
    )


def _is_field(part: object) -> bool:
    return any(part in body.model_fields for body in BODIES)


def _name(place: Iterable[int | str]) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _description(name: str) -> str:
    found = (body.model_fields[name].description for body in BODIES if name in body.model_fields)
    return next(found, "") or ""


def sentence(error: HTTPException) -> str:
    """What Starlette refuses, with the remedy."""
    if error.status_code == 404:
        return "there is no such route: see /docs"
    if error.status_code == 405:
        return "this route has other methods: see /docs"
    if error.status_code == 400:
        return "the body cannot be read as JSON in UTF-8"
    return str(error.detail)


def check_most(name: str, value: int, most: int, flag: str) -> None:
    """Raises ServiceError (422) for a value beyond a limit of the service."""
    if value > most:
        raise ServiceError(
            422, f"{name}: {value} is more than {most}; ask for less, or start with a larger {flag}"
        )


def check_kinds(body: BaseModel) -> None:
    """Raises ServiceError (422) where integers and texts are mixed: 5 and "5" differ."""
    columns: list[tuple[str, Sequence[object]]] = []
    if isinstance(body, messages.EventsBody):
        columns.append(("events.user", [event.user for event in body.events]))
        columns.append(("events.item", [event.item for event in body.events]))
    if isinstance(body, messages.RecommendBody):
        columns.append(("users", body.users))
        for name in ("exclude", "candidates"):
            columns += [(name, row) for row in _rows(getattr(body, name))]
    for name, values in columns:
        if len({type(value) for value in values if value is not None}) > 1:
            raise ServiceError(422, f"{name}: {MIXED}")


def _rows(lists: Any) -> list[list[int | str]]:
    if not lists:
        return []
    return lists if isinstance(lists[0], list) else [lists]


def one_key(header: str | None, field: str | None) -> str:
    """The idempotency key of an append; empty without one. Raises ServiceError (422)."""
    if header is not None and field is not None and header != field:
        raise ServiceError(
            422, "idempotency_key: header Idempotency-Key and field differ; give one of them"
        )
    key = field if header is None else header
    if key is None:
        return ""
    if not 1 <= len(key) <= KEY_LENGTH:
        raise ServiceError(
            422, f"Idempotency-Key: {len(key)} characters; a text of 1 to {KEY_LENGTH} is needed"
        )
    return key


def user_of_path(text_id: str, *, text: bool) -> UserId:
    """A user id from a path. Raises ServiceError (422) unless it can be one of the catalog's."""
    if text:
        if not text_id or "\0" in text_id or len(text_id.encode()) > 1024:
            raise ServiceError(422, "user_id: a text of 1 to 1024 bytes is needed")
        return text_id
    if not re.fullmatch(r"-?[0-9]{1,19}", text_id) or not -(2**63) <= int(text_id) < 2**63:
        raise ServiceError(
            422, f"user_id {text_id[:40]!r}: the training data's user ids are integers of 64 bits"
        )
    return int(text_id)
