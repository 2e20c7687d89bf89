"""What a task is: an async function whose arguments can be sent as JSON."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from .resources import Context

P = ParamSpec("P")
R = TypeVar("R")


def task(function: Callable[Concatenate[Context, P], Awaitable[R]]) -> "Task[P, R]":
    """Make a task of an async function whose first argument is the context.

    Raises:
        TypeError: Its signature has what cannot be sent: `*args`, `**kwargs`, or an argument
            without a type.
    """
    return Task(function)


class Task(Generic[P, R]):
    """A function that a queue can run; called directly, it runs at once."""

    def __init__(self, function: Callable[Concatenate[Context, P], Awaitable[R]]) -> None:
        self.name = function.__name__
        self.__doc__ = function.__doc__
        self._function = function
        _, *parameters = inspect.signature(function).parameters.values()
        self._signature = inspect.Signature(parameters)
        hints = get_type_hints(function, include_extras=True)
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                message = f"{self.name}: {parameter} cannot be sent; name each argument"
                raise TypeError(message)
            if parameter.name not in hints:
                message = f"{self.name}: argument {parameter.name!r} needs a type"
                raise TypeError(message)
        self._adapters = {name: TypeAdapter(hints[name]) for name in self._signature.parameters}

    async def __call__(self, ctx: Context, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now."""
        return await self._function(ctx, *args, **kwargs)

    def encode(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        """Turn arguments into what JSON can carry.

        Returns:
            The arguments by name.

        Raises:
            TypeError: An argument is missing, unknown, of another type than the function says,
                or would not arrive as it was sent. The message names it, and never its value.
        """
        bound = self._signature.bind(*args, **kwargs)
        return {name: self._encode(name, value) for name, value in bound.arguments.items()}

    async def run(self, ctx: dict[str, Any], *args: Any, **kwargs: Any) -> R:
        """Run the function with arguments that came as JSON, as a worker does.

        Raises:
            TypeError: They do not fit the function. It is not called then.
        """
        bound = self._signature.bind(*args, **kwargs)
        arguments = {name: self._decode(name, value) for name, value in bound.arguments.items()}
        return await cast("Callable[..., Awaitable[R]]", self._function)(ctx, **arguments)

    def _encode(self, name: str, value: object) -> Any:
        adapter = self._adapters[name]
        try:
            valid = adapter.validate_python(value, strict=True)
            document = adapter.dump_json(valid)
            arrives = adapter.validate_json(document, strict=True)
        except (ValidationError, PydanticSerializationError) as error:
            raise self._refusal(name, error) from None
        if arrives != valid:
            message = f"{self.name}: argument {name!r} would not arrive as it was sent"
            raise TypeError(message)
        return from_json(document)

    def _decode(self, name: str, value: object) -> Any:
        try:
            return self._adapters[name].validate_json(to_json(value), strict=True)
        except ValidationError as error:
            raise self._refusal(name, error) from None

    def _refusal(self, name: str, error: Exception) -> TypeError:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_input=False)[0]
            reason = ".".join(map(str, (*first["loc"], ""))) + " " + first["msg"]
        return TypeError(f"{self.name}: argument {name!r}: {reason.strip()}")
