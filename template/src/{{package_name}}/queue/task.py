"""Task definitions: typed functions whose arguments travel as JSON."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    overload,
)

from pydantic import (
    AfterValidator,
    ConfigDict,
    InstanceOf,
    NonNegativeInt,
    PositiveFloat,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    with_config,
)
from typing_extensions import TypedDict

from .arguments import Arguments
from .cron import Cron
from .errors import InvalidArgumentError
from .retry import RetryPolicy

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
A_contra = TypeVar("A_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
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
            raise ValueError(f'{text!r} must be like "10/minute"; units: {", ".join(UNITS)}')
        return cls(int(count), UNITS[unit])


@with_config(ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class Options(TypedDict, total=False):
    """What a task may ask for; `task` describes it."""

    retries: NonNegativeInt
    retry: InstanceOf[RetryPolicy]
    timeout: PositiveFloat
    rate_limit: Annotated[str, AfterValidator(RateLimit.parse)]
    unique: str | tuple[str, ...]
    queue: Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9_-]{0,49}$")]
    cron: Annotated[str, AfterValidator(Cron)]


_OPTIONS: TypeAdapter[Any] = TypeAdapter(Options)


@dataclass(frozen=True, slots=True)
class Step(Generic[A_contra, R_co]):
    """A task in a workflow, with the arguments that it has already.

    Its type says what its open parameter takes, if that is the first one, and what it returns.

    Attributes:
        task: The task.
        arguments: Arguments by name, as JSON values.
        result_argument: The parameter that takes the result of the step before.
    """

    task: "Task[..., R_co]"
    arguments: dict[str, Any]
    result_argument: str | None


class Task(Generic[P, R]):
    """A function that a queue can run. Called directly, it runs here, without limits and retries.

    Raises:
        TypeError: The function's parameters cannot be sent, or an option has the wrong type.
        ValueError: An option is out of range.
    """

    def __init__(self, function: Callable[..., Any], **options: Unpack[Options]) -> None:
        self.name = function.__name__
        self.__doc__ = function.__doc__
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        self.arguments = Arguments(self.name, function)
        valid = self._validate(options)
        self.retry = valid.get("retry") or RetryPolicy(max_attempts=valid.get("retries", 0) + 1)
        self.timeout: float | None = valid.get("timeout")
        self.rate_limit: RateLimit | None = valid.get("rate_limit")
        unique: str | tuple[str, ...] = valid.get("unique", ())
        self.unique = (unique,) if isinstance(unique, str) else unique
        self.queue: str = valid.get("queue", DEFAULT_QUEUE)
        self.cron: Cron | None = valid.get("cron")
        if "retries" in valid and "retry" in valid:
            raise TypeError(f"{self.name}: give either retries or retry")
        if unknown := set(self.unique) - self.arguments.names:
            raise TypeError(f"{self.name}: unique names no parameter: {', '.join(unknown)}")
        if self.cron and self.arguments.required:
            required = ", ".join(self.arguments.required)
            raise TypeError(f"{self.name}: a task with cron must have a default for {required}")

    async def __call__(self, ctx: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now."""
        if self.is_async:
            result: R = await self.function(ctx, *args, **kwargs)
            return result
        return await asyncio.to_thread(self.function, ctx, *args, **kwargs)

    @overload
    def s(self: Callable[Concatenate[Any, A, ...], Awaitable[R]], /) -> Step[A, R]: ...
    @overload
    def s(self, /, *args: Any, **kwargs: Any) -> Step[Any, R]: ...
    def s(self: Any, /, *args: Any, **kwargs: Any) -> Step[Any, Any]:
        """Return a step of a workflow; its first open parameter takes the result of the one before.

        Raises:
            InvalidArgumentError: An argument does not fit the task.
        """
        given = self.arguments.encode_partial(args, kwargs)
        open_ = [name for name in self.arguments.names if name not in given]
        required = [name for name in open_ if name in self.arguments.required]
        if len(required) > 1:
            raise InvalidArgumentError(f"{self.name}: {', '.join(required)} are missing in a step")
        return Step(self, given, next(iter(required or open_), None))

    def unique_key(self, /, *args: P.args, **kwargs: P.kwargs) -> str | None:
        """Return a text that equal jobs have in common; None if the task is not `unique`."""
        return self.arguments.canonical(self.unique, args, kwargs) if self.unique else None

    def _validate(self, options: Options) -> dict[str, Any]:
        try:
            valid: dict[str, Any] = _OPTIONS.validate_python(options)
        except ValidationError as error:
            first = error.errors()[0]
            wrong_type = first["type"].endswith(("_type", "_of", "_forbidden"))
            problem = f"{self.name}: option {first['loc'][0]}: {first['msg']}"
            raise (TypeError if wrong_type else ValueError)(problem) from None
        return valid


class _Decorator(Protocol):
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Task[P, R]: ...


@overload
def task(function: Callable[Concatenate[Any, P], Awaitable[R]], /) -> Task[P, R]: ...
@overload
def task(function: Callable[Concatenate[Any, P], R], /) -> Task[P, R]: ...
@overload
def task(**options: Unpack[Options]) -> _Decorator: ...
def task(function: Callable[..., Any] | None = None, /, **options: Unpack[Options]) -> Any:
    """Define a task: a function of a context and of arguments with types.

    The function is `async def`, or `def`: its thread goes on when its job is aborted or times out.

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

    def define(function: Callable[..., Any]) -> Task[..., Any]:
        return Task(function, **options)

    return define if function is None else define(function)
