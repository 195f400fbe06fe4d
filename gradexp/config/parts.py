"""From registry entries to pydantic types: the signature of a factory is the schema of its part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema

from gradexp.errors import ConfigError
from gradexp.registry import Entry, Registry


class Strict(BaseModel):
    """Settings that refuse unknown keys, wrong types and infinite numbers, and never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False
    )


class Choice(Strict):
    """Settings that belong to one registry entry."""

    entry: ClassVar[Entry[Any]]

    def make(self) -> Any:
        """What the registered factory makes of these options."""
        options = {option.name: getattr(self, option.name) for option in self.entry.options}
        return self.entry.make(**options)

    @model_validator(mode="after")
    def _options_fit_together(self) -> Choice:
        as_value_error(self.make)
        return self


class Part(Choice):
    """One part by name, its options beside the name."""

    name: str


Base = TypeVar("Base", bound=Choice)


def as_value_error(call: Callable[[], object], key: str = "") -> None:
    """Turn the program's own error into one that pydantic collects; `key` says what it is about."""
    try:
        call()
    except ConfigError as error:
        raise ValueError(f"{key}{error}") from error


def choice(
    registry: Registry[Any],
    default: str,
    *,
    base: type[Choice] = Part,
    tag: str = "name",
    fields: dict[str, Any] | None = None,
) -> Any:
    """A field type: a mapping whose `tag` names an entry of the registry, its options beside it.

    A part may also be given as its bare name. Without a tag, the default entry is meant.
    """
    types = [
        _entry_type(entry, base, {tag: _tag(entry, default), **(fields or {})})
        for entry in registry
    ]
    union = Annotated[reduce(or_, types), Field(discriminator=tag)] if types[1:] else types[0]
    short = base is Part

    def normal_form(value: Any) -> Any:
        if short and isinstance(value, str):
            return {tag: registry.canonical(value)}
        if isinstance(value, dict):
            name = value.get(tag, default)
            return {**value, tag: registry.canonical(name) if isinstance(name, str) else name}
        return value

    form = BeforeValidator(normal_form)
    complete = [entry for entry in registry if all(each.has_default for each in entry.options)]
    names = tuple(word for entry in complete for word in _words(entry))
    return Annotated[union, form, _BareName(names)] if short else Annotated[union, form]


def _words(entry: Entry[Any]) -> list[str]:
    """All words that mean an entry."""
    return [entry.name, *entry.aliases]


def _tag(entry: Entry[Any], default: str) -> tuple[Any, Any]:
    """The field that names an entry; in the JSON Schema only the default one may go unnamed."""
    schema = WithJsonSchema({"enum": _words(entry), "type": "string"})
    return Annotated[Literal[entry.name], schema], default if entry.name == default else ...


def _entry_type(entry: Entry[Any], base: type[Base], fields: dict[str, Any]) -> type[Base]:
    options: dict[str, Any] = {
        option.name: (option.type, option.default if option.has_default else ...)
        for option in entry.options
    }
    made: type[Base] = create_model(
        entry.name, __base__=base, __doc__=entry.help, **fields, **options
    )
    made.entry = entry
    return made


@dataclass(frozen=True)
class _BareName:
    """In the JSON Schema, a part may also be its bare name."""

    names: tuple[str, ...]

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"enum": list(self.names), "type": "string"}, handler(schema)]}
