"""The one error that a request can end with, and the table of what a client sees of it."""

from typing import Any, NoReturn

from raystyle.errors import RaystyleError

# code -> status and OpenAI's type. Clients branch on these; `retryable` ones carry Retry-After.
CODES: dict[str, tuple[int, str]] = {
    "invalid_value": (400, "invalid_request_error"),
    "context_length_exceeded": (400, "invalid_request_error"),
    "invalid_api_key": (401, "invalid_request_error"),
    "forbidden": (403, "invalid_request_error"),
    "not_found": (404, "invalid_request_error"),
    "model_not_found": (404, "invalid_request_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "timeout": (408, "server_error"),
    "request_too_large": (413, "invalid_request_error"),
    "headers_too_large": (431, "invalid_request_error"),
    "rate_limit_exceeded": (429, "rate_limit_error"),
    "server_busy": (429, "rate_limit_error"),
    "internal_error": (500, "server_error"),
    "unavailable": (503, "server_error"),
}


class RequestError(RaystyleError):
    """A request that cannot be answered as asked: a code of `CODES`, a sentence, and where it is known the parameter.

    It crosses Ray from the replica to the ingress, so it pickles by its arguments.
    """

    def __init__(self, code: str, message: str, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(code, message, param, retry_after_s)
        self.code, self.message, self.param, self.retry_after_s = code, message, param, retry_after_s

    @property
    def status(self) -> int:
        return CODES[self.code][0]

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        error = {"message": self.message, "type": CODES[self.code][1], "param": self.param, "code": self.code}
        return {"error": error}

    def __str__(self) -> str:
        return self.message


def refuse(message: str, param: str | None = None) -> NoReturn:
    """Raises `RequestError` `invalid_value`: what is asked cannot be."""
    raise RequestError("invalid_value", message, param)
