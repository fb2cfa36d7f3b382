"""A name-to-object table that answers an unknown name with the known ones."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Generic, TypeVar, cast

from rhovae.files import shown

T = TypeVar("T")
Entry = TypeVar("Entry")


class Registry(Generic[T]):
    """Objects of one kind by name.

    >>> SHAPES: Registry[type] = Registry("shape")
    >>> @SHAPES.register("circle")
    ... class Circle: ...
    >>> SHAPES["circle"] is Circle
    True
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._unlisted: set[str] = set()

    def register(self, name: str, *, listed: bool = True) -> Callable[[Entry], Entry]:
        """Decorator that files an object under ``name``; raises ``ValueError`` if the name is taken.

        What is not ``listed`` has to be asked for by name: no list of all has it.
        """

        def add(entry: Entry) -> Entry:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is already registered; choose another name")
            # the decorated object keeps its own type, which is narrower than T
            self._entries[name] = cast(T, entry)
            if not listed:
                self._unlisted.add(name)
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise ValueError(unknown_name(self.kind, name, self.names())) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """The listed names, in order of registration."""
        return [name for name in self._entries if name not in self._unlisted]


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """The message for a name that is not in ``known``, with the nearest one suggested."""
    near = get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {kind} {shown(name)}{hint}; known: {', '.join(known)}"
