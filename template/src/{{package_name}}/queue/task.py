"""Task definitions: typed functions whose arguments travel as JSON."""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from .arguments import Arguments
from .cron import Cron
from .errors import InvalidArgumentError
from .retry import RetryPolicy

P = ParamSpec("P")
R = TypeVar("R")
UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
QUEUE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,49}")
DEFAULT_QUEUE = "default"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `count` starts in any `seconds`."""

    count: int
    seconds: int

    @classmethod
    def parse(cls, text: str) -> "RateLimit":
        """Parse a limit such as "10/minute".

        Raises:
            ValueError: It is not a positive number and a unit.
        """
        count, _, unit = text.partition("/")
        if not (count.isdecimal() and int(count) and unit in UNITS):
            known = ", ".join(UNITS)
            raise ValueError(f'rate_limit {text!r} must be like "10/minute"; units: {known}')
        return cls(int(count), UNITS[unit])


@dataclass(frozen=True, slots=True)
class Step(Generic[R]):
    """A task in a chain, with the arguments that it has already.

    Attributes:
        task: The task.
        arguments: Arguments by name, as JSON values.
        result_argument: The parameter that takes the result of the step before.
    """

    task: "Task[..., R]"
    arguments: dict[str, Any]
    result_argument: str | None


class Task(Generic[P, R]):
    """A function that a queue can run. Called directly, it runs here, without limits and retries.

    Raises:
        TypeError: The function's parameters cannot be sent, or an option has the wrong type.
        ValueError: An option is out of range.
    """

    def __init__(  # noqa: PLR0913 - one for each option
        self,
        function: Callable[..., Any],
        *,
        retries: int | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        rate_limit: str | None = None,
        unique: str | tuple[str, ...] = (),
        queue: str = DEFAULT_QUEUE,
        cron: str | None = None,
    ) -> None:
        self.name = function.__name__
        self.__doc__ = function.__doc__
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        self.arguments = Arguments(self.name, function)
        self.retry = self._retry_policy(retries, retry)
        self.timeout = timeout
        self.rate_limit = RateLimit.parse(rate_limit) if rate_limit is not None else None
        self.unique = (unique,) if isinstance(unique, str) else unique
        self.queue = queue
        self.cron = Cron(cron) if cron is not None else None
        if timeout is not None and not timeout > 0:
            raise ValueError(f"{self.name}: timeout must be positive, not {timeout}")
        if unknown := set(self.unique) - set(self.arguments.names):
            raise TypeError(f"{self.name}: unique names no parameter: {', '.join(unknown)}")
        if not QUEUE_NAME.fullmatch(queue):
            raise ValueError(f"{self.name}: queue {queue!r} must match {QUEUE_NAME.pattern}")
        if self.cron and self._required():
            raise TypeError(f"{self.name}: a task with cron must not require arguments")

    async def __call__(self, ctx: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now."""
        if self.is_async:
            result: R = await self.function(ctx, *args, **kwargs)
            return result
        return await asyncio.to_thread(self.function, ctx, *args, **kwargs)

    def s(self, /, *args: Any, **kwargs: Any) -> Step[R]:
        """Return a step of a chain; its first open parameter takes the result of the step before.

        Raises:
            InvalidArgumentError: An argument does not fit the task.
        """
        given = self.arguments.encode_partial(args, kwargs)
        parameters = self.arguments.signature.parameters
        open_ = [name for name in parameters if name not in given]
        required = [name for name in open_ if parameters[name].default is inspect.Parameter.empty]
        if len(required) > 1:
            raise InvalidArgumentError(f"{self.name}: {', '.join(required)} are missing in a step")
        return Step(self, given, next(iter(required or open_), None))

    def unique_key(self, /, *args: P.args, **kwargs: P.kwargs) -> str | None:
        """Return a text that equal jobs have in common; None if the task is not `unique`."""
        return self.arguments.canonical(self.unique, args, kwargs) if self.unique else None

    def _retry_policy(self, retries: int | None, retry: RetryPolicy | None) -> RetryPolicy:
        if retries is None:
            return retry or RetryPolicy()
        if retry is not None:
            raise TypeError(f"{self.name}: give either retries or retry")
        if retries < 0:
            raise ValueError(f"{self.name}: retries must not be negative, but is {retries}")
        return RetryPolicy(max_attempts=retries + 1)

    def _required(self) -> list[str]:
        parameters = self.arguments.signature.parameters.values()
        return [each.name for each in parameters if each.default is each.empty]


@overload
def task(function: Callable[Concatenate[Any, P], Awaitable[R]], /) -> Task[P, R]: ...
@overload
def task(function: Callable[Concatenate[Any, P], R], /) -> Task[P, R]: ...
@overload
def task(
    *,
    retries: int | None = ...,
    retry: RetryPolicy | None = ...,
    timeout: float | None = ...,
    rate_limit: str | None = ...,
    unique: str | tuple[str, ...] = ...,
    queue: str = ...,
    cron: str | None = ...,
) -> "_Decorator": ...
def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Define a task: a function of a context and of arguments with types.

    The function is `async def`, or `def`, which runs in a thread and cannot be aborted.

    Args:
        function: The function.
        **options: `retries`, the number of attempts after an exception, or `retry`, a whole
            `RetryPolicy`; `timeout`, seconds that an attempt may take, else `JOB_TIMEOUT`;
            `rate_limit`, how many jobs of this task may start, such as "10/minute"; `unique`, the
            parameters whose equality makes two jobs the same; `queue`, the queue that it waits in;
            `cron`, five fields that say when it runs by itself, such as "0 3 * * *".

    Raises:
        TypeError: The function's parameters cannot be sent, or an option has the wrong type.
        ValueError: An option is out of range.
    """
    if function is not None:
        return Task(function, **options)
    return lambda function: Task(function, **options)


class _Decorator:
    """What `task(...)` returns, as type checkers see it."""

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Task[P, R]: ...
    def __call__(self, function: Callable[..., Any], /) -> Any:
        """Define a task."""
        raise NotImplementedError
