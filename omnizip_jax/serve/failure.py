"""What a client is told when a request cannot be served."""

from __future__ import annotations

from typing import Any

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    500: "internal_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Failure(Exception):
    """A refusal, in words that a client may see.

    Args:
        message: what was expected, what came, and what to do.
        status: of HTTP.
        param: the part of the request that is at fault.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None):
        # What it quotes may hold half characters, which no answer can.
        super().__init__(message.encode(errors="backslashreplace").decode())
        self.status, self.param = status, param

    @property
    def kind(self) -> str:
        """The type of an error, as OpenAI names them."""
        return _KINDS.get(self.status, "invalid_request_error")

    @property
    def body(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": self.param,
                "code": self.status,
            }
        }


def explained(error: Exception) -> Failure:
    """What a client hears of an error: of bad input all, of a bug nothing."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, ValueError):
        return Failure(str(error))
    return Failure("the server made a mistake; its log says more", 500)
