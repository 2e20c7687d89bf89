"""How jobs and results are written to Redis: as JSON.

ARQ's default is pickle, with which whoever can write to Redis can run code here.
"""

from traceback import format_exception
from typing import Annotated, Any

from pydantic import BaseModel, Field
from pydantic_core import to_json

STORED_FOR_MS = 30 * 24 * 60 * 60 * 1000  # after a job is due; longer than `job_expires`
ABORTED = "CancelledError"  # the exception of a job that somebody had ended


class StoredJob(BaseModel):
    """A job under ARQ's own short names; times are in milliseconds since 1970."""

    f: str  # the task's name
    a: tuple[Any, ...]  # its arguments by position
    k: dict[str, Any]  # its arguments by name
    t: int | None  # the try to begin with, when it is not the first
    et: Annotated[int, Field(ge=0, le=253_402_300_799_999)]  # when, until 9999, it was enqueued


class StoredResult(StoredJob):
    """The end of a job, whose `t` is its last try."""

    s: bool  # whether it succeeded
    r: Any  # what the task returned, or a StoredError
    st: int  # when the last try began
    ft: int  # when it ended


class StoredError(BaseModel):
    """An exception; the traceback is for those who look after dead letters."""

    type: str
    message: str
    traceback: str = ""

    def __str__(self) -> str:
        """Tell it in one line."""
        return f"{self.type}: {self.message}" if self.message else self.type


def encode(document: dict[str, Any]) -> bytes:
    """Write a job or a result, whose exception becomes a `StoredError`."""
    return to_json(document, inf_nan_mode="null", fallback=_encode_exception)


def decode_job(data: bytes) -> dict[str, Any]:
    """Read a job; ARQ fails the job if this raises, as it does on what is no job."""
    return dict(StoredJob.model_validate_json(data))


def _encode_exception(value: object) -> dict[str, Any]:
    if isinstance(value, BaseException):
        trace = "".join(format_exception(value))
        return {"type": type(value).__name__, "message": str(value), "traceback": trace}
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
