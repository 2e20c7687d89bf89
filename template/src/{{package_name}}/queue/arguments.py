"""Arguments of a task: serialized to JSON when a job is enqueued, validated again when it runs."""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, time
from typing import Any, NotRequired, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python
from typing_extensions import TypedDict

from .errors import InvalidArgumentError

Json = dict[str, Any]


class Arguments:
    """The parameters of one task, without its context.

    Args:
        name: The task's name, for messages.
        function: The task's function. Its first parameter is the context.

    Raises:
        TypeError: A parameter is variadic or has no type.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        _, *parameters = inspect.signature(function).parameters.values()
        self.signature = inspect.Signature(parameters)
        hints = get_type_hints(function, include_extras=True)
        for each in parameters:
            if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) or each.name not in hints:
                raise TypeError(f"{name}: parameter {each} needs a name and a type")
        self.names = tuple(self.signature.parameters)
        fields = {each: NotRequired[hints[each]] for each in self.names}
        typed_dict: Any = TypedDict
        self._adapter: TypeAdapter[Json] = TypeAdapter(typed_dict(f"{name}_arguments", fields))

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        """Serialize the arguments of a call to a JSON object.

        Raises:
            InvalidArgumentError: An argument is missing, unknown, not of the type that the function
                declares, or would change on its way through JSON. The message names the argument,
                never its value.
        """
        return self._dump(self._bind(self.signature.bind, args, kwargs))

    def encode_partial(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Json:
        """Serialize those arguments that a step of a chain has already."""
        values = self._bind(self.signature.bind_partial, args, kwargs)
        self._dump(values)
        jsonable: Json = self._adapter.dump_python(
            values, mode="json", round_trip=True, by_alias=False
        )
        return jsonable

    def decode(self, positional: Iterable[Any], named: Json) -> Json:
        """Validate the arguments of a stored job, and return them by name.

        Raises:
            InvalidArgumentError: They do not fit the function.
        """
        bound = self._bind(self.signature.bind, tuple(positional), named)
        try:
            return self._adapter.validate_json(
                to_json(bound), strict=True, by_alias=False, by_name=True
            )
        except ValidationError as error:
            raise self._invalid(error) from None

    def canonical(
        self, names: Iterable[str], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> str:
        """Return a text that is equal for calls whose arguments of these names are equal.

        Defaults count as if they had been given; the order of sets and dictionaries does not count.
        """
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return json.dumps([_sorted(bound.arguments[name]) for name in names], sort_keys=True)

    def _bind(
        self,
        bind: Callable[..., inspect.BoundArguments],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Json:
        try:
            return bind(*args, **kwargs).arguments
        except TypeError as error:
            raise InvalidArgumentError(f"{self._name}: {error}") from None

    def _dump(self, values: Json) -> bytes:
        try:
            valid = self._adapter.validate_python(values, strict=True)
            document = self._adapter.dump_json(valid, round_trip=True, by_alias=False)
            arrived = self._adapter.validate_json(
                document, strict=True, by_alias=False, by_name=True
            )
        except ValidationError as error:
            raise self._invalid(error) from None
        except PydanticSerializationError as error:
            raise InvalidArgumentError(f"{self._name}: {error}") from None
        if valid != arrived:
            for name, value in valid.items():
                if _comparable(value) != _comparable(arrived[name]):
                    raise InvalidArgumentError(
                        f"{self._name}: argument {name!r} would change on its way through JSON"
                    )
        return document

    def _invalid(self, error: ValidationError) -> InvalidArgumentError:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = first["loc"][0] if first["loc"] else "?"
        return InvalidArgumentError(f"{self._name}: argument {str(name)!r}: {first['msg']}")


def _comparable(value: Any) -> Any:
    """Replace times by what JSON keeps of them: Python holds some of equal moments for unequal."""
    if isinstance(value, datetime) and value.tzinfo:
        return value.replace(tzinfo=None, fold=0), value.utcoffset()
    if isinstance(value, time) and value.tzinfo:
        return value.replace(tzinfo=None, fold=0), value.utcoffset()
    if isinstance(value, dict):
        return {key: _comparable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [_comparable(each) for each in value]
    return value


def _sorted(value: Any) -> Any:
    """Return a JSON value in which sets have an order."""
    if isinstance(value, set | frozenset):
        return sorted((_sorted(each) for each in value), key=json.dumps)
    if isinstance(value, dict):
        return {str(key): _sorted(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_sorted(each) for each in value]
    return to_jsonable_python(value)
