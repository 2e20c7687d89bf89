"""Jobs and results as they are stored in Redis: JSON under ARQ's short names.

ARQ's default is pickle, with which whoever can write to Redis can run code here.
"""

from asyncio import CancelledError
from contextlib import suppress
from datetime import UTC, datetime
from traceback import format_exception
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json, to_json

from .models import Job, JobStatus

STORED_MS = 30 * 24 * 60 * 60 * 1000  # how long a job is stored after it was due
UNKNOWN_TASK = "?"  # in place of the task of a job that cannot be read
ABORTED = "CancelledError"  # the type of error under which ARQ stores an aborted job

Milliseconds = Annotated[int, Field(ge=0, le=253_402_300_799_999)]  # since 1970, until 9999


class ChainLink(BaseModel):
    """The place of a job in a chain: the index of its step, and the steps after it."""

    id: str
    index: int
    steps: list["StoredStep"]


class StoredStep(BaseModel):
    """A step of a chain that has not been enqueued yet."""

    job_id: str
    task: str
    queue: str
    arguments: dict[str, Any]
    result_argument: str | None


class StoredJob(BaseModel):
    """An enqueued job; times are in milliseconds since 1970."""

    f: str  # the task's name
    a: tuple[Any, ...] = ()  # arguments by position
    k: dict[str, Any]  # arguments by name
    t: int | None = None  # ARQ's first attempt
    et: Milliseconds  # when it was enqueued
    q: str | None = None  # its queue
    c: ChainLink | None = None
    tc: Any = ""  # where its sender is in which trace; if it is invalid, the job runs all the same


class StoredError(BaseModel):
    """An exception."""

    type: str
    message: str
    traceback: str = ""
    public: bool = False  # whether the job's owner may read it

    def __str__(self) -> str:
        """Return it in one line."""
        return f"{self.type}: {self.message}" if self.message else self.type


class JobFailedError(Exception):
    """Carries the error of a task through ARQ's own worker and client."""

    def __init__(self, error: StoredError) -> None:
        super().__init__(str(error))
        self.error = error


class StoredResult(StoredJob):
    """A finished job; `t` is its number of attempts."""

    s: bool  # whether it succeeded
    r: Any  # what the task returned, or a StoredError
    st: int  # when the last attempt began
    ft: int  # when it ended
    id: str | None = None  # its job, for ARQ's client

    def status(self) -> JobStatus:
        """Return the final status."""
        if self.s:
            return JobStatus.COMPLETE
        return JobStatus.ABORTED if self.error().type == ABORTED else JobStatus.FAILED

    def error(self) -> StoredError:
        """Return the error of a job that did not succeed."""
        return StoredError.model_validate(self.r)


class StoredBeginning(BaseModel):
    """What the beginning of a stored job or result holds of it; `error` where it is that short."""

    f: str | None = None
    t: int | None = None
    et: Milliseconds = 0
    st: int = 0
    ft: int = 0
    s: bool = True
    a: tuple[Any, ...] = ()
    k: dict[str, Any] = Field(default_factory=dict)
    r: Any = None

    @classmethod
    def read(cls, data: bytes) -> "StoredBeginning | None":
        """Return what it holds; None where it is not JSON of this form."""
        with suppress(ValueError):
            text = data.decode(errors="ignore")  # it may end within a character
            return cls.model_validate(from_json(text, allow_partial="trailing-strings"))
        return None

    def error(self) -> str | None:
        """Return the error of a job that did not succeed."""
        with suppress(ValidationError):
            return None if self.s else str(StoredError.model_validate(self.r))
        return None


def job_document(  # noqa: PLR0913 - the parts of a job
    task: str,
    arguments: bytes,
    enqueued_ms: int,
    queue: str,
    *,
    positional: bytes = b"[]",
    chain: bytes = b"null",
    trace: Any = "",
) -> bytes:
    """Write a job whose arguments are JSON already."""
    # What may be long comes last: lists read only the beginning. It is ARQ's that claim.lua relies
    # on to find the name quickly.
    return b'{"t":null,"f":%b,"et":%d,"q":%b,"a":%b,"k":%b,"c":%b%b}' % (
        to_json(task),
        enqueued_ms,
        to_json(queue),
        positional,
        arguments,
        chain,
        _trace_field(trace),
    )


def result_document(  # noqa: PLR0913 - the parts of a result
    job: StoredJob,
    *,
    job_id: str,
    succeeded: bool,
    result: bytes,
    attempts: int,
    started_ms: int,
    finished_ms: int,
) -> bytes:
    """Write a result that is JSON already."""
    chain = b',"c":%b' % to_json(job.c) if job.c else b""
    return (
        b'{"t":%d,"f":%b,"et":%d,"st":%d,"ft":%d,"s":%b,"q":%b,"id":%b,"a":%b,"k":%b,"r":%b%b%b}'
        % (
            attempts,
            to_json(job.f),
            job.et,
            started_ms,
            finished_ms,
            b"true" if succeeded else b"false",
            to_json(job.q),
            to_json(job_id),
            to_json(job.a),
            to_json(job.k),
            result,
            chain,
            _trace_field(job.tc),
        )
    )


def job_from_result(job_id: str, document: bytes) -> Job:
    """Return a finished job from its stored result."""
    job = Job(job_id=job_id, status=JobStatus.FAILED, error="its result cannot be read")
    with suppress(ValidationError):
        stored = StoredResult.model_validate_json(document)
        job.status = stored.status()
        if stored.s:
            job.result, job.error = stored.r, None
        else:
            error = stored.error()
            job.error, job.error_is_public = str(error), error.public or error.type == ABORTED
        job.function, job.attempts, job.enqueued_at = (
            stored.f,
            stored.t or 0,
            to_datetime(stored.et),
        )
        job.started_at, job.finished_at = to_datetime(stored.st), to_datetime(stored.ft)
    return job


def to_datetime(milliseconds: float) -> datetime | None:
    """Return a time in milliseconds since 1970 as a datetime; None for 0 and for nonsense."""
    with suppress(OverflowError, ValueError):
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
    return None


def read_number(data: bytes | None) -> int:
    """Return a number that is stored as text; 0 for nonsense."""
    return int(data[:15]) if data and data.isdigit() else 0


def serialize(document: dict[str, Any]) -> bytes:
    """Write a job or result of ARQ's own client and worker."""
    return to_json(document, inf_nan_mode="null", fallback=_error_document)


def deserialize(data: bytes) -> dict[str, Any]:
    """Read a job or result for ARQ's own client and worker, which raise what they find as error.

    Raises:
        ValidationError: It is neither.
    """
    try:
        result = StoredResult.model_validate_json(data)
    except ValidationError:
        return dict(StoredJob.model_validate_json(data))
    document = dict(result)
    if not result.s:
        aborted = result.status() is JobStatus.ABORTED
        document["r"] = CancelledError() if aborted else JobFailedError(result.error())
    return document


def _trace_field(trace: Any) -> bytes:
    return b',"tc":%b' % to_json(trace) if trace else b""


def _error_document(value: object) -> dict[str, Any]:
    if isinstance(value, JobFailedError):
        return value.error.model_dump()
    if isinstance(value, BaseException):
        trace = "".join(format_exception(value))
        return StoredError(
            type=type(value).__name__, message=str(value), traceback=trace
        ).model_dump()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
