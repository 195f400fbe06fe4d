"""Names to factories that describe themselves.

A factory's keyword-only parameters are its YAML options, its docstring is its help. Everything
else (validation, JSON Schema, `gradexp list`, tests over all entries) follows from the entry.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

from annotated_types import Ge, Gt, Interval

from gradexp.errors import ConfigError, nearest

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
UnitInterval = Annotated[float, Interval(ge=0, le=1)]
Fraction = Annotated[float, Interval(ge=0, lt=1)]
Count = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """One option of a part: its name, its annotated type and its default."""

    name: str
    type: Any
    default: Any

    @property
    def has_default(self) -> bool:
        """Whether the option may be left out."""
        return self.default is not inspect.Parameter.empty


@dataclass(frozen=True)
class Entry(Generic[F]):
    """A named part: its factory, where it was published, and what else it is called."""

    kind: str
    name: str
    factory: F
    source: str
    aliases: tuple[str, ...]
    product: tuple[Any, ...] = ()

    def make(self, **options: Any) -> Any:
        """What the factory makes of these options.

        Raises:
            ConfigError: it made something that is none of its kind.
        """
        made = self.factory(**options)
        if self.product and not isinstance(made, self.product):
            allowed = " or ".join(one.__name__.replace("NoneType", "None") for one in self.product)
            raise ConfigError(
                f"{self.kind} '{self.name}': its factory must return {allowed}, "
                f"returned {type(made).__name__}"
            )
        return made

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """The keyword-only parameters of the factory, in order."""
        parameters = [
            parameter
            for parameter in inspect.signature(self.factory).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        # Only these are resolved: return types may name classes that are imported lazily.
        annotations = {parameter.name: parameter.annotation for parameter in parameters}
        hints = get_type_hints(
            SimpleNamespace(__annotations__=annotations),
            globalns=self.factory.__globals__,
            include_extras=True,
        )
        return tuple(
            Option(parameter.name, hints[parameter.name], parameter.default)
            for parameter in parameters
        )

    @cached_property
    def help(self) -> str:
        """The first paragraph of the factory's docstring, on one line."""
        return " ".join((inspect.getdoc(self.factory) or "").split("\n\n")[0].split())


class Registry(Generic[F]):
    """All parts of one kind, by name, in the order in which they were registered.

    `product` is what factories must make; nothing is asked of them where it is empty.
    """

    def __init__(self, kind: str, help: str, product: Any = ()) -> None:
        self.kind = kind
        self.help = help
        self.product = product if isinstance(product, tuple) else (product,)
        self._entries: dict[str, Entry[F]] = {}
        self._aliases: dict[str, str] = {}

    def register(
        self, name: str, *, source: str = "", aliases: tuple[str, ...] = ()
    ) -> Callable[[F], F]:
        """Make a factory available under a name; a second use of a name is refused."""

        def add(factory: F) -> F:
            for word in (name, *aliases):
                if word in self._entries or word in self._aliases:
                    raise ConfigError(f"{self.kind}: '{word}' is registered already")
            self._entries[name] = Entry(self.kind, name, factory, source, aliases, self.product)
            self._aliases.update(dict.fromkeys(aliases, name))
            return factory

        return add

    def canonical(self, name: str) -> str:
        """The registered name behind an alias; any other word as it is."""
        return self._aliases.get(name, name)

    def __getitem__(self, name: str) -> Entry[F]:
        try:
            return self._entries[self.canonical(name)]
        except KeyError:
            raise ConfigError(
                f"unknown {self.kind} '{name}'; allowed: {', '.join(self._entries)}."
                f"{nearest(name, [*self._entries, *self._aliases])}"
            ) from None

    def __iter__(self) -> Iterator[Entry[F]]:
        return iter(self._entries.values())

    def __contains__(self, name: str) -> bool:
        return self.canonical(name) in self._entries

    def names(self) -> list[str]:
        """All registered names, without aliases."""
        return list(self._entries)

    def remove(self, name: str) -> None:
        """Take an entry out again, with its aliases."""
        for alias in self._entries.pop(name).aliases:
            del self._aliases[alias]
