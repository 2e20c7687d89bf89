"""One attempt at a job, as named steps: decode, call, encode, decide."""

import asyncio
import inspect
import logging
from collections import deque
from concurrent.futures import Executor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from enum import Enum
from traceback import TracebackException
from typing import Any

from pydantic_core import to_json

from . import tracing
from .arguments import check_json
from .errors import PUBLIC, InvalidResultError, JobTimeoutError, Retry
from .models import JobContext
from .task import Task

logger = logging.getLogger(__name__)
PATIENCE = 3  # seconds that a cancelled call gets to end; then it is left behind
LONGEST_DELAY = 315_360_000  # seconds, ten years
LONGEST_NAME = 200  # characters
LONGEST_MESSAGE = 2_000  # characters
LONGEST_TRACEBACK = 20_000  # characters

_left_behind: set[Any] = set()


@dataclass(frozen=True, slots=True)
class CurrentJob:
    """The job, the attempt at it, and its trace, that code runs for."""

    job_id: str
    task: str
    attempt: int
    trace_id: str | None = None


_current: ContextVar[CurrentJob | None] = ContextVar("current_job", default=None)


def current_job() -> CurrentJob | None:
    """Return the job that the calling code runs for, if it does: also in threads of tasks."""
    return _current.get()


class Interruption(Enum):
    """Why an attempt was cancelled."""

    ABORT = "aborted"
    LEASE_LOST = "lease lost"
    SHUTDOWN = "shutdown"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class Limits:
    """What an attempt may use, where its task does not say: seconds, attempts, and bytes."""

    timeout: float
    max_attempts: int
    max_result: int


@dataclass(frozen=True, slots=True)
class Success:
    """The attempt returned; `document` is its result as JSON."""

    document: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """The job failed permanently; `public` says whether its owner may read the message."""

    type: str
    message: str
    traceback: str = ""
    public: bool = False
    error: BaseException | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Again:
    """The job runs again, after a delay in seconds."""

    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The attempt was cancelled from outside."""

    cause: Interruption


Outcome = Success | Failure | Again | Interrupted
Returned = tuple[Any, BaseException | None]  # of a call: its result, or its exception


class Attempt:
    """One attempt at a job.

    Args:
        task: The task.
        context: The first argument of the task's function.
        limits: What counts where the task does not say.
        executor: Runs tasks that are not `async`.
        trace: Where its sender is in which trace, as `tracing.current_trace` says.
    """

    def __init__(
        self,
        task: Task[..., Any],
        context: JobContext[Any],
        limits: Limits,
        executor: Executor,
        trace: object = "",
    ) -> None:
        self._task = task
        self._context = context
        self._limits = limits
        self._executor = executor
        self._trace = trace
        self._cause: Interruption | None = None
        self._work: asyncio.Task[Returned] | None = None
        self._news: asyncio.Future[None] | None = None
        self._left = False

    def interrupt(self, cause: Interruption) -> None:
        """Cancel the attempt; its outcome will name the first cause."""
        ended = self._work is not None and self._work.done()
        if ended or (self._cause is not None and cause is not Interruption.TIMEOUT):
            return
        self._cause = self._cause or cause
        if self._work is not None:
            self._work.cancel()
            # A call whose lease is lost keeps its slot, or this worker could claim the job again.
            if cause is not Interruption.LEASE_LOST:
                asyncio.get_running_loop().call_later(PATIENCE, self._leave, self._work)

    async def run(self, positional: tuple[Any, ...], named: dict[str, Any]) -> Outcome:
        """Run the task's function once, and decide what becomes of the job.

        Args:
            positional: Arguments by position, as JSON values.
            named: Arguments by name, as JSON values.

        Returns:
            The outcome. Whatever the function raises is part of it.
        """
        if not tracing.is_on():
            return await self._run(positional, named)
        task, job = self._task, self._context
        with tracing.processing(task.name, task.queue, job.job_id, job.attempt, self._trace):
            return await self._run(positional, named, tracing.current_trace_id())

    async def _run(
        self, positional: tuple[Any, ...], named: dict[str, Any], trace_id: str | None = None
    ) -> Outcome:
        self.set_current(trace_id)  # it stays so, for what the caller logs of the outcome
        try:
            args, kwargs = self._task.arguments.decode(positional, named)
            result = await self._call(args, kwargs)
            return Success(self._encode(result))
        except BaseException as error:  # noqa: BLE001 - SystemExit and the like end only their job
            outcome = self.decide(error)
            if not isinstance(outcome, Failure):  # of which `log_failure` needs it
                error.__traceback__ = None  # it refers to this attempt, and this to the error
            return outcome

    def set_current(self, trace_id: str | None = None) -> None:
        """Make its job the one that `current_job` returns here."""
        context = self._context
        _current.set(CurrentJob(context.job_id, self._task.name, context.attempt, trace_id))

    async def _call(self, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Run the function in an asyncio task of its own, which cannot hold up this one."""
        loop = asyncio.get_running_loop()
        self._work = work = loop.create_task(self._settle(args, kwargs))
        work.add_done_callback(self._wake)
        if self._cause is not None:
            work.cancel()  # before it begins
        seconds = self._task.timeout or self._limits.timeout
        timer = loop.call_later(seconds, self.interrupt, Interruption.TIMEOUT)
        while not work.done() and not self._left:
            self._news = loop.create_future()
            try:
                await self._news
            except asyncio.CancelledError:
                self.interrupt(Interruption.ABORT)
        timer.cancel()
        ended = work.done() and not work.cancelled()
        result, error = work.result() if ended else (None, asyncio.CancelledError())
        if self._cause is Interruption.TIMEOUT:
            raise JobTimeoutError(f"it took longer than {seconds:g} s") from error
        if error is not None:
            raise error
        return result

    async def _settle(self, args: list[Any], kwargs: dict[str, Any]) -> Returned:
        try:
            if self._task.is_async:
                return await self._task.function(self._context, *args, **kwargs), None
            return await self._call_in_thread(args, kwargs), None
        except BaseException as error:  # noqa: BLE001 - SystemExit would end the event loop
            return None, error

    async def _call_in_thread(self, args: list[Any], kwargs: dict[str, Any]) -> Any:
        def settle() -> Returned:
            try:
                return self._task.function(self._context, *args, **kwargs), None
            except BaseException as error:  # noqa: BLE001 - a future cannot carry StopIteration
                return None, error

        thread = self._executor.submit(copy_context().run, settle)
        try:
            result, error = await asyncio.wrap_future(thread)
        finally:
            if not thread.done():
                _leave_behind(thread)
        if error is not None:
            raise error
        return await result if inspect.isawaitable(result) else result

    def _leave(self, work: "asyncio.Task[Returned]") -> None:
        if not work.done():
            job_id = self._context.job_id
            logger.error("job %s ignores its cancellation, and is left behind", job_id)
            _leave_behind(work)
            self._left = True
            self._wake(work)

    def _wake(self, _work: "asyncio.Task[Returned]") -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _encode(self, result: Any) -> bytes:
        try:
            document = to_json(result)
            check_json(document)
        except Exception as error:  # noqa: BLE001 - a result's own code may raise anything
            raise InvalidResultError(f"the result is not JSON: {_message(error)}") from None
        most = self._limits.max_result
        if len(document) > most:
            raise InvalidResultError(f"the result has {len(document)} bytes, {most} allowed")
        return document

    def decide(self, error: BaseException) -> Outcome:
        """Return what becomes of a job whose attempt ended with this exception."""
        if self._cause is not None and self._cause is not Interruption.TIMEOUT:
            return Interrupted(self._cause)
        number = self._context.attempt
        if isinstance(error, Retry):
            if number < max(self._task.retry.max_attempts, self._limits.max_attempts):
                delay = min(error.defer, LONGEST_DELAY) if error.defer > 0 else 0  # NaN is none
                return Again(delay, describe(error))
        elif self._task.retry.allows(error, number):
            tracing.note_error(_type(error))
            return Again(self._task.retry.delay(number), describe(error))
        tracing.note_error(_type(error))
        return failure(error)


def left_behind() -> int:
    """Return how many calls go on although their attempts have ended, in threads or in the loop."""
    return len(_left_behind)


def failure(error: BaseException) -> Failure:
    """Describe an exception for storage, cut to a bounded size."""
    public = isinstance(error, PUBLIC)
    return Failure(_type(error), _message(error), _traceback(error), public, error)


def log_failure(job_id: str, task: str, attempt: int, failure: Failure) -> None:
    """Log the permanent failure of a job, with its exception, which collectors such as Sentry read."""
    error = failure.error
    if error is None or not logger.isEnabledFor(logging.ERROR):
        return
    job = current_job()
    if job is None or job.job_id != job_id:  # it failed before its attempt began
        _current.set(CurrentJob(job_id, task, attempt))
    text, args = "job %s (%s) failed: %s", (job_id, task, describe(error))
    info = (type(error), error, error.__traceback__)
    extra = {"job_id": job_id, "task": task, "attempt": attempt}
    record = logger.makeRecord(__name__, logging.ERROR, __file__, 0, text, args, info, extra=extra)
    record.exc_text = failure.traceback  # of bounded size, where a formatter would write it whole
    logger.handle(record)
    error.__traceback__ = None  # it refers to the attempt


def describe(error: BaseException) -> str:
    """Return an exception in one line, for the log."""
    return f"{_type(error)}: {_message(error)}".removesuffix(": ")


def _leave_behind(call: Any) -> None:
    _left_behind.add(call)
    call.add_done_callback(_left_behind.discard)


def _type(error: BaseException) -> str:
    name = type(error).__name__
    if name == "CancelledError":  # alone, it is ARQ's mark of an aborted job
        name = f"{name} ({type(error).__module__})"
    return _cut(name, LONGEST_NAME)


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - __str__ may raise anything
        text = "(its message cannot be read)"
    return _cut(text, LONGEST_MESSAGE)


def _traceback(error: BaseException) -> str:
    """Format the end of a traceback, piece by piece: each may be as large as a message."""
    pieces: deque[str] = deque()
    total = kept = 0
    try:
        for piece in TracebackException.from_exception(error, compact=True).format():
            pieces.append(_cut(piece, LONGEST_MESSAGE).rstrip("\n") + "\n")
            total += len(pieces[-1])
            kept += len(pieces[-1])
            while kept > LONGEST_TRACEBACK:
                kept -= len(pieces.popleft())
    except BaseException as problem:  # noqa: BLE001 - it runs code of the exception
        pieces.append(f"(the traceback cannot be formatted: {_type(problem)})\n")
    note = f"... ({total - kept} characters cut)\n" if total > kept else ""
    return note + "".join(pieces)


def _cut(text: str, longest: int) -> str:
    """Cut a text, and make it one that UTF-8 can hold."""
    cut = f"... ({len(text) - longest} characters cut)" if len(text) > longest else ""
    return text[:longest].encode("utf-8", "backslashreplace").decode() + cut
