"""Errors that the service answers, as a status and one sentence."""

from http import HTTPStatus


class ServiceError(Exception):
    """Answered as `{"error": message}` with `status`; retry_after: seconds, for clients."""

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


def busy(what: str, waiting: int) -> ServiceError:
    """The queue is full."""
    message = f"{waiting} {what} are waiting already: try again later, or raise --queue"
    return ServiceError(HTTPStatus.TOO_MANY_REQUESTS, message, 1)


def stopping() -> ServiceError:
    """The service ends."""
    return ServiceError(HTTPStatus.SERVICE_UNAVAILABLE, "the service is stopping", 1)
