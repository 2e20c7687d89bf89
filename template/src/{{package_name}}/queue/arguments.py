"""Arguments of a task: serialized to JSON when a job is enqueued, validated again when it runs."""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NotRequired, get_type_hints

from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json, to_jsonable_python
from typing_extensions import TypedDict

from .errors import InvalidArgumentError

Json = dict[str, Any]
DEEPEST = 190  # levels of nesting; a stored job adds some, and Pydantic reads no more than 200
MASK = b'"**********"'  # what Pydantic writes in place of a secret
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FOR_CONTEXT = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Arguments:
    """The parameters of one task, without its context.

    Args:
        name: The task's name, for messages.
        function: The task's function. Its first parameter is the context.

    Raises:
        TypeError: The first parameter cannot take the context, or another is variadic, has no type,
            or has a type that cannot be validated.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        parameters = [*inspect.signature(function).parameters.values()]
        if not parameters or parameters[0].kind not in FOR_CONTEXT:
            raise TypeError(f"{name}: the first parameter must take the context")
        del parameters[0]
        try:
            hints = get_type_hints(function, include_extras=True)
            for each in parameters:
                if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) or each.name not in hints:
                    raise TypeError(f"parameter {each} needs a name and a type")  # noqa: TRY301
            types = {each.name: NotRequired[hints[each.name]] for each in parameters}
            typed_dict: Any = TypedDict
            self._adapter: TypeAdapter[Json] = TypeAdapter(typed_dict(name, types))
        except (NameError, TypeError, PydanticUserError) as error:
            raise TypeError(f"{name}: {str(error).splitlines()[0]}") from None
        self.names = types.keys()
        self.required = [each.name for each in parameters if each.default is each.empty]
        self._defaults = {e.name: e.default for e in parameters if e.default is not e.empty}
        self._positional = [e.name for e in parameters if e.kind is not e.KEYWORD_ONLY]
        self._positional_only = [e.name for e in parameters if e.kind is e.POSITIONAL_ONLY]

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        """Serialize the arguments of a call to a JSON object.

        Raises:
            InvalidArgumentError: An argument is missing, unknown, not of the type that the function
                declares, or would change on its way through JSON. The message names the argument,
                never its value.
        """
        return self._dump(self._bind(args, kwargs, self.required))

    def encode_partial(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Json:
        """Serialize those arguments that a step of a chain has already."""
        arguments: Json = from_json(self._dump(self._bind(args, kwargs)))
        return arguments

    def decode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], Json]:
        """Validate the arguments of a stored job, and return them by position and by name.

        Raises:
            InvalidArgumentError: They do not fit the function.
        """
        document = to_json(self._bind(args, kwargs, self.required))
        try:
            values = self._load(document)
        except ValidationError as error:
            raise self._invalid(error) from None
        if self._positional_only:
            values = self._defaults | values
        return [values.pop(name) for name in self._positional_only], values

    def canonical(
        self, names: Iterable[str], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> str:
        """Return a text that is equal for calls whose arguments of these names are equal.

        Defaults count as if they had been given; the order of sets and dictionaries does not count.
        """
        values = self._defaults | self._bind(args, kwargs)
        with suppress(InvalidArgumentError):  # a default need not be of its parameter's type
            values = self._validate(values)
        return _text([_canonical(values[name]) for name in names])

    def _bind(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], required: Iterable[str] = ()
    ) -> Json:
        values = {**dict(zip(self._positional, args, strict=False)), **kwargs}
        if not values.keys() <= self.names:
            unknown = [name for name in values if name not in self.names]
            raise self._error(unknown[0], "is unknown")
        for name in required:
            if name not in values:
                raise self._error(name, "is missing")
        if len(values) < len(args) + len(kwargs):
            raise InvalidArgumentError(f"{self._name}: too many arguments, or one is given twice")
        return values

    def _dump(self, values: Json) -> bytes:
        valid = self._validate(values)
        try:
            document = self._serialize(valid)
            if self._load(document) == valid:
                return document
        except (ValueError, RecursionError):
            pass  # which argument is it?
        for name, value in valid.items():
            self._check(name, value)
        return self._serialize(valid)

    def _check(self, name: str, value: Any) -> None:
        """Raise if an argument does not arrive as it is."""
        document = b""
        try:
            document = self._serialize({name: value})
            if _same({name: value}, self._load(document)):
                return
            problem = "would change on its way through JSON"
        except ValidationError as error:
            problem = f"would change on its way through JSON: {_first(error)}"
        except (ValueError, RecursionError) as error:
            problem = f"cannot be sent as JSON: {error}"
        if MASK in document:
            problem = "holds a secret, which Pydantic masks in JSON: send what it can be found by"
        raise self._error(name, problem) from None

    # A model is serialized and loaded by the names of its fields, whatever aliases it has.

    def _validate(self, values: Json) -> Json:
        validator = self._adapter.validator
        try:
            valid: Json = validator.validate_python(
                values, strict=True, by_alias=False, by_name=True
            )
        except ValidationError as error:
            raise self._invalid(error) from None
        return valid

    def _serialize(self, values: Json) -> bytes:
        document = self._adapter.serializer.to_json(
            values, round_trip=True, by_alias=False, warnings=False
        )
        if document.count(b"[") + document.count(b"{") > DEEPEST:
            check_json(document)
        return document

    def _load(self, document: bytes) -> Json:
        values: Json = self._adapter.validator.validate_json(
            document, strict=True, by_alias=False, by_name=True
        )
        return values

    def _invalid(self, error: ValidationError) -> InvalidArgumentError:
        name, *_ = *error.errors(include_input=False)[0]["loc"], "?"
        return self._error(str(name), f"is invalid: {_first(error)}")

    def _error(self, name: str, problem: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self._name}: argument {name!r} {problem}")


def check_json(document: bytes) -> None:
    """Check that a JSON document can be read again from within a stored job.

    Raises:
        ValueError: It holds NaN, infinity or too large a number, or is nested too deeply.
    """
    if len(document) <= DEEPEST and b"NaN" not in document and b"Infinity" not in document:
        return
    margin = 200 - DEEPEST
    try:
        from_json(b"[" * margin + document + b"]" * margin, allow_inf_nan=False)
    except ValueError:
        raise ValueError(
            f"it holds a number that is not finite or too large, or more than {DEEPEST} levels"
        ) from None


def _first(error: ValidationError) -> str:
    return error.errors(include_url=False, include_input=False, include_context=False)[0]["msg"]


def _same(sent: Any, arrived: Any) -> bool:
    """Compare arguments. Python holds equal moments for unequal where a clock is changed."""
    if _is_moment(sent) and _is_moment(arrived):
        return bool(sent - arrived == timedelta(0))
    if sent == arrived:
        return True
    parts, others = _parts(sent), _parts(arrived)
    if type(sent) is not type(arrived) or not parts or not others or len(parts) != len(others):
        return False
    if isinstance(sent, set | frozenset):
        return all(each in arrived or any(_same(each, other) for other in others) for each in parts)
    return all(map(_same, parts, others))


def _canonical(value: Any) -> Any:
    """Return a JSON value that is equal for equal values."""
    if _is_moment(value):
        return str(value - EPOCH)
    parts = _parts(value)
    if parts is None:
        return to_jsonable_python(value, fallback=str)
    if isinstance(value, list | tuple):
        return [_canonical(each) for each in parts]
    if isinstance(value, set | frozenset):
        return sorted((_canonical(each) for each in parts), key=_text)
    return {_text(_canonical(name)): _canonical(part) for name, part in parts}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _is_moment(value: Any) -> bool:
    return isinstance(value, datetime) and value.utcoffset() is not None


def _parts(value: Any) -> list[Any] | None:
    """Return the parts of a container, a model or a dataclass."""
    if isinstance(value, BaseModel):
        return [*value]
    if is_dataclass(value):
        return [(each.name, getattr(value, each.name)) for each in fields(value)]
    container: Any = value
    if isinstance(value, Mapping):
        return [*container.items()]
    return [*container] if isinstance(value, list | tuple | set | frozenset) else None
