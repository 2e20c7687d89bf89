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
    """Make a task of an async function: first the context, then arguments with types."""
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
        for each in parameters:
            if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) or each.name not in hints:
                raise TypeError(f"{self.name}: {each} cannot be sent; it needs a name and a type")
        self._adapters = {each.name: TypeAdapter(hints[each.name]) for each in parameters}

    async def __call__(self, ctx: Context, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now."""
        return await self._function(ctx, *args, **kwargs)

    def encode(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        """Turn arguments into what JSON can carry, by name.

        Raises:
            TypeError: An argument is missing, unknown, of another type than the function says,
                or would not arrive as it was sent. The message names it, and never its value.
        """
        bound = self._signature.bind(*args, **kwargs)
        return {name: self._encode(name, value) for name, value in bound.arguments.items()}

    async def run(self, ctx: dict[str, Any], *args: Any, **kwargs: Any) -> R:
        """Run the function with arguments that came as JSON; a TypeError if they do not fit."""
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
            raise TypeError(f"{self.name}: argument {name!r} would not arrive as it was sent")
        return from_json(document)

    def _decode(self, name: str, value: object) -> Any:
        try:
            return self._adapters[name].validate_json(to_json(value), strict=True)
        except ValidationError as error:
            raise self._refusal(name, error) from None

    def _refusal(self, name: str, error: Exception) -> TypeError:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        return TypeError(f"{self.name}: argument {name!r}: {reason}")
