"""A least-recently-used cache with a bound on memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar


class Sized(Protocol):
    """Any object that knows its memory."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""


T = TypeVar("T", bound=Sized)


class Cache:
    """Values by key. The least recently used are dropped when all together exceed `limit` bytes.

    The newest value always stays, however large.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._values: OrderedDict[Hashable, Sized] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return sum(value.nbytes for value in self._values.values())

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key, made now if it is missing. A failing `make` leaves no trace."""
        if key not in self._values:
            self._values[key] = make()
            while self.nbytes > self.limit and len(self._values) > 1:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]  # type: ignore[return-value]

    def clear(self) -> None:
        """Forget all values."""
        self._values.clear()
