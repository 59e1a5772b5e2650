"""Bodies of requests and answers, as pydantic models."""

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

INT64 = 2**63


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("NUL in a text")
    return text


Id: TypeAlias = (
    Annotated[int, Field(ge=-INT64, lt=INT64)]
    | Annotated[str, Field(max_length=1024), AfterValidator(_no_nul)]
)
Seconds: TypeAlias = int | Annotated[float, Field(allow_inf_nan=False)]


class Body(BaseModel):
    """A body: no other fields, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True)


class RecommendBody(Body):
    """Whom to recommend to, and what."""

    users: list[Id] = Field(min_length=1, description="a list of user ids, at least one")
    k: int = Field(10, ge=1, description="the length of a list, an integer from 1")
    now: Seconds | list[Seconds] | None = Field(
        None, description="the time of the request in seconds since 1970, or one for each user"
    )
    exclude: list[Id] | list[list[Id]] | None = Field(
        None, description="a list of item ids to leave out, or one list for each user"
    )
    candidates: list[Id] | list[list[Id]] | None = Field(
        None, description="a list of item ids to choose from, or one list for each user"
    )
    exclude_seen: bool = Field(
        False, description="true leaves out what the store remembers of a user (keep_seen)"
    )


class EventBody(Body):
    """One event."""

    # null is a matter of data.incomplete, as in files
    user: Id | None = Field(description="a user id, an integer or a text")
    item: Id | None = Field(description="an item id, an integer or a text")
    time: Seconds | None = Field(description="the time of the event in seconds since 1970")


class EventsBody(Body):
    """Events in any order."""

    events: list[EventBody] = Field(
        min_length=1, description="a list of objects with user, item and time, at least one"
    )
    idempotency_key: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="a text of 1 to 200 characters that only this append has",
    )


class SwapBody(Body):
    """Another model and its store, as paths on the server."""

    workdir: str = Field(min_length=1, description="the folder of the run")
    states: str = Field(min_length=1, description="the path or URL of its store")
    which: str = Field("best", description="the checkpoint: best, latest or a step")


class Recommended(BaseModel):
    """The list of one user, best first."""

    user: int | str
    known: bool = Field(description="false: the user has no state, the scores are training counts")
    items: list[int] | list[str] = Field(description="k items, or fewer where no more are left")
    scores: list[float]


class RecommendAnswer(BaseModel):
    """Lists in the order of the users."""

    model: str = Field(description="digest of the model")
    generation: int = Field(description="1 at the start of the service, one more per swap")
    results: list[Recommended]


class AppendAnswer(BaseModel):
    """Counts of an append; null where it was finished after a crash of the service."""

    events: int | None = Field(description="events added to states")
    users: int | None = Field(description="users whose states were updated")
    unknown_items: int | None = Field(description="events of items that the model does not know")
    late: int | None = Field(description="events older than what is compressed already")
    repeated: int | None = Field(description="of the events, those that a state has twice now")
    incomplete: int = Field(description="events with a null, dropped with data.incomplete=drop")
    already_applied: bool = Field(description="the key was known: nothing was added")


class DeleteAnswer(BaseModel):
    """Whether there was a state."""

    deleted: bool


class SwapAnswer(BaseModel):
    """What is served now."""

    model: str
    generation: int
    programs: int = Field(description="compiled before the swap")
    replayed: int = Field(description="events of the journal that the new store did not have")


class StateAnswer(BaseModel):
    """State of the service."""

    state: str


class ErrorAnswer(BaseModel):
    """What is wrong, and what to do."""

    error: str
