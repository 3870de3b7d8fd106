"""Parameters of a request: JSON body and query as one (specification 1, D1).

The getters name the field and what is wrong with it. The first of several names is the canonical
one, the others are its aliases; a parameter that is null counts as missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retort.errors import InvalidRequest
from retort.wire.bodies import MAX_INTEGER, decode_object

_TRUE = frozenset({"true", "yes", "1", "y", "on"})
_FALSE = frozenset({"false", "no", "0", "n", "off"})
_DIGITS = 19  #: no number of 64 bits has more


class Params:
    """The parameters of one request, or of one object among them.

    Args:
        body: a decoded JSON object; wins over the query.
        query: values by key.
        where: prefix of the names in errors, e.g. ``"config."``.
    """

    __slots__ = ("_body", "_query", "_where")

    def __init__(
        self,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, list[str]] | None = None,
        where: str = "",
    ) -> None:
        self._body = body or {}
        self._query = query or {}
        self._where = where

    @classmethod
    def merge(
        cls, body: bytes | None = None, query: Mapping[str, list[str]] | None = None
    ) -> Params:
        """Take the JSON object in the body, whatever its content type, and the query.

        Raises:
            MalformedBody: there is a body, but no acceptable JSON object in it.
        """
        return cls(decode_object(body), query)

    def __repr__(self) -> str:
        return f"Params({sorted({*self._body, *self._query})})"

    def has(self, name: str) -> bool:
        """Tell whether the key is there at all, be it null."""
        return name in self._body or name in self._query

    def refuse(self, name: str, problem: str) -> InvalidRequest:
        """Make the error about one field."""
        return InvalidRequest.field(self._where + name, problem)

    def value(self, *names: str) -> Any:
        """Give the first value that is not null, undecoded; a repeated query key is a list."""
        for name in names:
            if (value := self._body.get(name)) is not None:
                return value
        for name in names:
            if values := self._query.get(name):
                return values[0] if len(values) == 1 else values
        return None

    def string(self, *names: str) -> str | None:
        """Read a string."""
        value = self.value(*names)
        if value is None or isinstance(value, str):
            return value
        raise self.refuse(names[0], "must be a string")

    def required(self, *names: str) -> str:
        """Read a string that must be there and not be empty."""
        value = self.string(*names)
        if not value:
            raise self.refuse(names[0], "is required")
        return value

    def boolean(self, *names: str, default: bool = False) -> bool:
        """Read true or false, in JSON or in the words of section 1, in any case."""
        value = self.value(*names)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower() if isinstance(value, str | int) else ""
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
        raise self.refuse(names[0], "must be a boolean")

    def integer(
        self, *names: str, default: int, minimum: int = 0, maximum: int = MAX_INTEGER
    ) -> int:
        """Read an integer, also from text; both bounds are allowed values."""
        number = self.optional_integer(*names, minimum=minimum, maximum=maximum)
        return default if number is None else number

    def optional_integer(
        self, *names: str, minimum: int = 0, maximum: int = MAX_INTEGER
    ) -> int | None:
        """Read an integer as `integer` does; None when it is missing."""
        value = self.value(*names)
        if value is None:
            return None
        number = _integer(value)
        if number is None:
            raise self.refuse(names[0], "must be an integer")
        if not minimum <= number <= maximum:
            raise self.refuse(names[0], f"must be from {minimum} to {maximum}")
        return number

    def string_list(self, *names: str) -> list[str] | None:
        """Read a list of strings; in a query it is a key given once or more (D1)."""
        for name in names:
            if (value := self._body.get(name)) is not None:
                if isinstance(value, list) and all(isinstance(item, str) for item in value):
                    return value
                raise self.refuse(names[0], "must be a list of strings")
        return next((self._query[name] for name in names if self._query.get(name)), None)

    def mapping(self, *names: str) -> dict[str, Any] | None:
        """Read an object; there is none in queries."""
        value = self.value(*names)
        if value is None or isinstance(value, dict):
            return value
        raise self.refuse(names[0], "must be an object")

    def string_map(self, *names: str) -> dict[str, str]:
        """Read an object of strings; without one it is empty."""
        value = self.mapping(*names) or {}
        if all(isinstance(item, str) for item in value.values()):
            return value
        raise self.refuse(names[0], "must be an object of strings")

    def inner(self, *names: str) -> Params:
        """Read an object as parameters of its own; without one it has none."""
        return Params(self.mapping(*names), where=f"{self._where}{names[0]}.")


def _integer(value: Any) -> int | None:
    """Accept 3, 3.0 and "3"; True is not a number here."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        digits = value.strip().removeprefix("-")
        is_number = digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS
        return int(value) if is_number else None
    return value if isinstance(value, int) else None
