"""One attempt at a job, as named steps: decode, call, encode, decide."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import dataclass
from enum import Enum
from functools import partial
from traceback import format_exception
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from .errors import InvalidResultError, JobTimeoutError, Retry
from .models import JobContext
from .task import Task

logger = logging.getLogger(__name__)
LONGEST_MESSAGE = 2_000  # characters
LONGEST_TRACEBACK = 20_000  # characters


class Interruption(Enum):
    """Why an attempt was cancelled from outside."""

    ABORT = "aborted"
    LEASE_LOST = "lease lost"
    SHUTDOWN = "shutdown"


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
    """The job failed for good."""

    type: str
    message: str
    traceback: str = ""


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


class Attempt:
    """One attempt at a job.

    Args:
        task: The task.
        context: The first argument of the task's function.
        limits: What counts where the task does not say.
        executor: Runs tasks that are not `async`.
    """

    __slots__ = ("_cause", "_context", "_executor", "_handle", "_limits", "_task")

    def __init__(
        self, task: Task[..., Any], context: JobContext[Any], limits: Limits, executor: Executor
    ) -> None:
        self._task = task
        self._context = context
        self._limits = limits
        self._executor = executor
        self._cause: Interruption | None = None
        self._handle: asyncio.Task[Any] | None = None

    def interrupt(self, cause: Interruption) -> None:
        """Cancel the attempt; its outcome will name the cause."""
        if self._cause is None:
            self._cause = cause
            if self._handle is not None:
                self._handle.cancel()

    async def run(self, positional: tuple[Any, ...], named: dict[str, Any]) -> Outcome:
        """Run the task's function once, and decide what becomes of the job.

        Args:
            positional: Arguments by position, as JSON values.
            named: Arguments by name, as JSON values.

        Returns:
            The outcome. Whatever the function raises is part of it.
        """
        self._handle = asyncio.current_task()
        try:
            if self._cause is not None:
                raise asyncio.CancelledError  # noqa: TRY301 - interrupted before it began
            arguments = self._task.arguments.decode(positional, named)
            result = await self._call(arguments)
            return Success(self._encode(result))
        except BaseException as error:  # noqa: BLE001 - SystemExit and the like end only their job
            return self.decide(error)

    async def _call(self, arguments: dict[str, Any]) -> Any:
        seconds = self._task.timeout or self._limits.timeout
        timer = asyncio.timeout(seconds)
        try:
            async with timer:
                result = await self._call_function(arguments)
        except BaseException as error:
            if timer.expired():
                raise JobTimeoutError(f"it took longer than {seconds:g} s") from error
            raise
        if timer.expired():
            raise JobTimeoutError(f"it took longer than {seconds:g} s, and ignored that")
        return result

    async def _call_function(self, arguments: dict[str, Any]) -> Any:
        if self._task.is_async:
            return await self._task.function(self._context, **arguments)
        call = partial(_call_in_thread, self._task.function, self._context, **arguments)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, copy_context().run, call)

    def _encode(self, result: Any) -> bytes:
        try:
            document = to_json(result, inf_nan_mode="null")
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            raise InvalidResultError(f"the result is not JSON: {_message(error)}") from None
        if len(document) > self._limits.max_result:
            raise InvalidResultError(
                f"the result has {len(document)} bytes, {self._limits.max_result} allowed"
            )
        return document

    def decide(self, error: BaseException) -> Outcome:
        """Return what becomes of a job whose attempt ended with this exception."""
        if isinstance(error, asyncio.CancelledError):
            if self._cause is not None:
                return Interrupted(self._cause)
            if self._handle is not None and not self._handle.cancelling():
                error = RuntimeError("the task awaited something that was cancelled")
        number = self._context.attempt
        if isinstance(error, Retry):
            if number < max(self._task.retry.max_attempts, self._limits.max_attempts):
                return Again(error.defer, describe(error))
        elif self._task.retry.allows(error, number):
            return Again(self._task.retry.delay(number), describe(error))
        return failure(error)


def _call_in_thread(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except (StopIteration, GeneratorExit) as error:  # a future cannot carry them to the attempt
        raise RuntimeError(f"the task raised {type(error).__name__}") from error


def failure(error: BaseException) -> Failure:
    """Describe an exception for storage, cut to a bounded size."""
    try:
        trace = "".join(format_exception(error))
    except Exception:  # noqa: BLE001 - an exception's __str__ may raise
        trace = ""
    return Failure(
        type(error).__name__, _message(error), _cut(trace, LONGEST_TRACEBACK, keep_end=True)
    )


def describe(error: BaseException) -> str:
    """Return an exception in one line, for the log."""
    return f"{type(error).__name__}: {_message(error)}".removesuffix(": ")


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception's __str__ may raise
        text = "(its message cannot be read)"
    return _cut(text, LONGEST_MESSAGE)


def _cut(text: str, longest: int, *, keep_end: bool = False) -> str:
    text = text.encode("utf-8", "replace").decode()  # JSON holds no lone surrogate
    if len(text) <= longest:
        return text
    kept = text[-longest:] if keep_end else text[:longest]
    note = f"... ({len(text) - longest} characters cut)"
    return f"{note}\n{kept}" if keep_end else f"{kept}{note}"
