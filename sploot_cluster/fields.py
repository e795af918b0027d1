"""Declarations of the fields of requests and events. A field's kind checks its value and describes it as JSON Schema.

A request is a class that inherits :class:`Checked`, is decorated with :func:`checked` and declares its fields with
:func:`given`. An instance has passed every check, whatever the source of its values, so no further checks are needed.
Callers that report several problems at once, such as the HTTP API, use :meth:`Checked.problems`.

This module imports only the standard library, because producers use it too.
"""

from __future__ import annotations

import dataclasses
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, Self, TypeVar, dataclass_transform

from sploot_cluster.errors import InvalidInput
from sploot_cluster.limits import MAX_INT64, MAX_TEXT
from sploot_cluster.printable import PRINTABLE_PATTERN, UNPRINTABLE

Item = TypeVar("Item", int, str)
Value = TypeVar("Value", covariant=True)
Class = TypeVar("Class")

_KEY: Final = "given"
_DIGITS: Final = re.compile(r"0|[1-9][0-9]{0,18}")


class Kind(Protocol[Value]):
    """A kind of field: the type and the range of its values."""

    def check(self, name: str, value: object) -> Value:
        """Return the value, converted to the type of this kind.

        Raises:
            InvalidInput: names the field, the problem and a hint.
        """
        ...

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        ...


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number. ``True`` is refused, although it is an ``int`` in Python. A numpy integer is accepted."""

    lowest: int
    highest: int = MAX_INT64

    def check(self, name: str, value: object) -> int:
        # type() first: it is ten times faster than isinstance with an abstract class, and it distinguishes bool from
        # int
        number = value if type(value) is int else self._converted(name, value)
        if not self.lowest <= number <= self.highest:
            raise InvalidInput(name, "is out of range", f"send {self.lowest} to {self.highest}")
        return number

    def _converted(self, name: str, value: object) -> int:
        hint = f"send {self.lowest} to {self.highest}"
        if isinstance(value, str):
            raise InvalidInput(name, f"{shown(value)} is not a whole number", f"{hint} in digits, such as 42")
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise InvalidInput(name, f"is {type_of(value)}, not a whole number", hint)
        return int(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.lowest, "maximum": self.highest}


# The kind of field for pet ids, cluster ids and revisions.
ID: Final = Whole(1)


@dataclass(frozen=True, slots=True)
class Text:
    """Text of printable characters. If ``is_trimmed``, it must not begin or end with a space."""

    shortest: int = 1
    longest: int = MAX_TEXT
    is_trimmed: bool = False

    def check(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            hint = f"send {self.shortest} to {self.longest} characters"
            raise InvalidInput(name, f"is {type_of(value)}, not text", hint)
        if not self.shortest <= len(value) <= self.longest:
            raise InvalidInput(name, f"has {len(value)} characters", f"send {self.shortest} to {self.longest}")
        # try ASCII first: most values are printable ASCII, which is ten times faster to check
        if not (value.isascii() and value.isprintable()) and (found := UNPRINTABLE.search(value)):
            raise InvalidInput(name, f"contains the unprintable character U+{ord(found[0]):04X}", "send printable text")
        if self.is_trimmed and value != value.strip():
            raise InvalidInput(name, "begins or ends with a space", "send it without")
        return value

    def schema(self) -> dict[str, Any]:
        lengths = {"minLength": self.shortest, "maxLength": self.longest}
        return {"type": "string", **lengths, "pattern": PRINTABLE_PATTERN}


@dataclass(frozen=True, slots=True)
class Matching:
    """Text with a fixed form, such as name@version.

    Attributes:
        form: the name of the form, for errors.
        hint: how to write text in this form.
    """

    pattern: re.Pattern[str]
    form: str
    hint: str
    longest: int = MAX_TEXT

    def check(self, name: str, value: object) -> str:
        if not isinstance(value, str) or not self.matches(value):
            raise InvalidInput(name, f"{shown(value)} is not {self.form}", self.hint)
        return value

    def matches(self, text: str) -> bool:
        return len(text) <= self.longest and self.pattern.fullmatch(text) is not None

    def schema(self) -> dict[str, Any]:
        # remove lookaheads, which validators based on RE2 refuse, although the schema then accepts slightly too much
        pattern = re.sub(r"\(\?!.*?\)", "", self.pattern.pattern)
        return {"type": "string", "maxLength": self.longest, "pattern": f"^({pattern})$"}


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a fixed set of strings."""

    texts: tuple[str, ...]

    def check(self, name: str, value: object) -> str:
        if not isinstance(value, str) or value not in self.texts:
            raise InvalidInput(name, f"{shown(value)} is unknown", f"send one of: {', '.join(self.texts)}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.texts)}


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def check(self, name: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise InvalidInput(name, f"is {type_of(value)}, not a boolean", "send true or false")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


FLAG: Final = Flag()


@dataclass(frozen=True, slots=True)
class ListOf(Generic[Item]):
    """A list of distinct entries. Duplicates are removed, and the order is kept.

    Attributes:
        longest: the maximum number of entries, including duplicates, so that a list that is too long is refused before
            its entries are checked.
    """

    of: Kind[Item]
    longest: int
    shortest: int = 1

    def check(self, name: str, value: object) -> tuple[Item, ...]:
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise InvalidInput(name, f"is {type_of(value)}, not a list", "send a list")
        entries = list(value)
        if len(entries) > self.longest:
            raise InvalidInput(name, f"has {len(entries)} entries", f"send at most {self.longest}")
        checked: dict[Item, None] = {}
        for at, entry in enumerate(entries):
            checked[self.of.check(f"{name}[{at}]", entry)] = None
        if len(checked) < self.shortest:
            problem = f"has too few different entries ({len(checked)})" if checked else "is empty"
            raise InvalidInput(name, problem, f"send at least {self.shortest}")
        return tuple(checked)

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": self.of.schema(), "minItems": self.shortest, "maxItems": self.longest}


@dataclass(frozen=True, slots=True)
class Field:
    """The declaration of a field without its name and default.

    Attributes:
        description: one line for the documents of the HTTP API and of the command line.
        example: a value for these documents.
    """

    kind: Kind[Any]
    description: str
    example: object


def given(kind: Kind[Any], description: str, example: object, **options: Any) -> Any:
    """Declare a dataclass field whose value callers pass in. A field with a default is optional and may be None.

    Args:
        options: further arguments of ``dataclasses.field``, such as ``default``.
    """
    return dataclasses.field(metadata={_KEY: Field(kind, description, example)}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(given,))
def checked(cls: type[Class]) -> type[Class]:
    """Make a subclass of :class:`Checked` a frozen dataclass with slots."""
    return dataclass(frozen=True, slots=True)(cls)


class _Declared:
    """The fields that a class declares, read once and cached."""

    def __init__(self, cls: type[Any]) -> None:
        declared = dataclasses.fields(cls)
        self.fields: Mapping[str, Field] = {f.name: f.metadata[_KEY] for f in declared if _KEY in f.metadata}
        self.required = tuple(f.name for f in declared if f.default is f.default_factory is dataclasses.MISSING)


_declared: Final[dict[type[Any], _Declared]] = {}


def _of(cls: type[Any]) -> _Declared:
    found = _declared.get(cls)
    if found is None:
        found = _declared[cls] = _Declared(cls)
    return found


def fields_of(cls: type[Any]) -> Mapping[str, Field]:
    """Return the fields that callers pass in, by name, in order of declaration."""
    return _of(cls).fields


def required_of(cls: type[Any]) -> Sequence[str]:
    """Return the names of the fields without a default."""
    return _of(cls).required


class Checked:
    """The base class of frozen dataclasses that check the values of their fields."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, field in fields_of(type(self)).items():
            value = getattr(self, name)
            if value is not None or name in required_of(type(self)):
                object.__setattr__(self, name, field.kind.check(name, value))
        self.check()

    def check(self) -> None:
        """Check the rules that concern several fields together. Each individual field is already valid.

        Raises:
            InvalidInput: names the field to change.
        """

    @classmethod
    def problems(cls, sent: Mapping[str, object], *, known: Mapping[str, Field]) -> Iterator[InvalidInput]:
        """Yield an error for each field of a request that is missing, unknown or invalid.

        Rules that concern several fields are checked when the request is created.

        Args:
            known: the fields of this class that the caller's interface accepts, which may be only some of them.
        """
        yield from (missing(name) for name in required_of(cls) if name in known and name not in sent)
        for name, value in sent.items():
            if name not in known:
                yield _unknown(name, known)
            elif value is not None or name in required_of(cls):
                try:
                    known[name].kind.check(name, value)
                except InvalidInput as refused:
                    yield refused

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Self:
        """Return the request from a message's keyword arguments.

        An unknown field is refused, because it may change what the request means.

        Raises:
            InvalidInput: names the first field that is missing, unknown or invalid.
        """
        for name in required_of(cls):
            if name not in kwargs:
                raise missing(name)
        for name in kwargs:
            if name not in fields_of(cls):
                raise _unknown(name, fields_of(cls))
        return cls(**kwargs)

    def to_kwargs(self) -> dict[str, Any]:
        """Return the request as keyword arguments with JSON values, from which ``from_kwargs`` restores it.

        Fields that are None are left out, so that a worker of an older release does not refuse a field unknown to it.
        """
        sent = {name: value for name in fields_of(type(self)) if (value := getattr(self, name)) is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in sent.items()}


def shown(value: object, *, quoted: bool = True) -> str:
    """Return a value as text for an error message: short, and on one line."""
    text = UNPRINTABLE.sub("?", str(value))
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return repr(text) if quoted else text


def number_of(value: object) -> object:
    """Return the number if the value is text of decimal digits without leading zeros, else the value unchanged.

    ``int()`` would also accept " 42", "4_2" and digits of other scripts.
    """
    return int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value


def type_of(value: object) -> str:
    """Return the name of a value's type for an error message."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "a whole number"
        case float():
            return "a fraction"
        case str():
            return "text"
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"a {type(value).__name__}"


def missing(name: str) -> InvalidInput:
    """Return the error for a required field that was not sent."""
    return InvalidInput(name, "is missing", "send it")


def _unknown(name: str, known: Iterable[str]) -> InvalidInput:
    from difflib import get_close_matches  # imported here, because it is rarely needed and takes milliseconds

    close = get_close_matches(name, known := list(known), n=1)
    hint = f"did you mean {close[0]}?" if close else f"send only: {', '.join(known)}"
    return InvalidInput(shown(name, quoted=False), "is not a field", hint)
