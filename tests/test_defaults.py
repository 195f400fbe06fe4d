"""What the program chooses when nobody says otherwise, and the ends of every range."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gradexp.analysis import load_rules
from gradexp.cli.listing import all_registries
from gradexp.config import Source, json_schema, load_config, resolve, settings
from gradexp.errors import ConfigError
from tests.defaults import FILE, PLACES, REWRITE, current, golden, registries

Tree = dict[str, Any]
SECTIONS = {"config": "", "data": "data.", "model": "model.", "train": "train.", "probe": "probe."}
# What must stand beside a value at the end of its range for the whole to make sense.
BESIDE: dict[str, Tree] = {
    "cnn.depth": {"stages": 1},
    "mobilenet_v1.depth": {"stages": 1},
    "sgd.nesterov": {"momentum": 0.5},
}


def test_defaults_and_limits_are_those_of_the_golden_file() -> None:
    before, now = FILE.read_text(), current()
    diff = difflib.unified_diff(
        before.splitlines(), now.splitlines(), FILE.name, "the program", lineterm=""
    )
    hint = f"\nA change that is meant: `{REWRITE}` writes {FILE.name} anew.\n"
    assert before == now, hint + "\n".join(diff)


def test_every_registry_is_listed_to_users_and_has_a_place_in_a_config() -> None:
    kinds = {registry.kind for registry in registries()}
    assert {registry.kind for registry in all_registries().values()} == kinds
    assert kinds == {*PLACES, "probe", "rule"}


def test_promised_defaults(tmp_path: Path) -> None:
    """Those that documents name: written by hand, whatever the golden file says."""
    (tmp_path / "empty.yaml").write_text("")
    assert settings(load_config(tmp_path / "empty.yaml")) == {
        "name": "run",
        "seed": 0,
        "device": "auto",
        "imports": [],
        "rules": None,
        "data": {
            "dataset": "digits",
            "batch_size": 128,
            "normalize": True,
            "augment": {"name": "none"},
            "train_examples": None,
        },
        "model": {
            "family": "mlp",
            "depth": 5,
            "width": 128,
            "activation": {"name": "relu"},
            "init": {"name": "kaiming_normal", "mode": "fan_in", "bias_std": 0.0},
            "norm": {"name": "none"},
            "residual": {"name": "none"},
            "dropout": 0.0,
            "bias": True,
        },
        "train": {
            "epochs": 3,
            "steps": None,
            "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.0, "nesterov": False},
            "schedule": {"name": "constant", "warmup_steps": 0},
            "clip": {"name": "none"},
            "weight_decay": 0.0,
            "l1": 0.0,
        },
        "probe": {"every": "auto", "examples": 1024, "gradients_every": 1},
    }


# --- the ends of every range, as the golden file has them ------------------------------------


def ends(schema: Tree) -> tuple[list[Any], list[Any]]:
    """Values just inside and just outside of what a type allows."""
    kinds = schema.get("anyOf", [schema])
    inside, outside = [], []
    for kind in kinds:
        within, beyond = _ends_of(kind)
        inside += within
        outside += beyond
    if not any(kind.get("type") == "null" for kind in kinds):
        outside.append(None)
    if not any(kind.get("type") == "boolean" for kind in kinds):
        outside.append(True)
    return inside, [value for value in outside if not any(value is one for one in inside)]


def _ends_of(kind: Tree) -> tuple[list[Any], list[Any]]:  # noqa: PLR0911  one a kind
    match kind:
        case {"enum": words}:
            return list(words), ["another word", 0]
        case {"const": word}:
            return [word], ["another word", 0]
        case {"type": "integer", "minimum": low}:
            return [low, low + 1], [low - 1, low + 0.5, str(low)]
        case {"type": "number"}:
            within, beyond = zip(*_bounds(kind), strict=True)
            return list(within), [*beyond, "0.5", math.nan, math.inf]
        case {"type": "boolean"}:
            return [True, False], ["yes", "no", 1, 0]
        case {"type": "null"}:
            return [None], []
        case {"type": "string"}:
            return [], [3]
        case {"type": "array", "items": {"type": "string"}}:
            return [[]], ["word", [3]]
        case {"type": "array", "items": inner}:
            within, beyond = _ends_of(inner)
            return [[], [one for one in within if one < 1]], [[one] for one in beyond]
    raise NotImplementedError(f"no values are known for {kind}")


def _bounds(kind: Tree) -> Iterator[tuple[float, float]]:
    """Pairs of a value just inside and one just outside of a limit."""
    for name, outward in (("minimum", -math.inf), ("maximum", math.inf)):
        if name in kind:
            yield kind[name], math.nextafter(kind[name], outward)
        exclusive = f"exclusiveM{name[1:]}"
        if exclusive in kind:
            yield math.nextafter(kind[exclusive], -outward), kind[exclusive]


def options() -> Iterator[tuple[str, str, Tree, Tree]]:
    """Of each option: what it is called, its key, its type, and the settings it stands among."""
    content = golden()
    for section, prefix in SECTIONS.items():
        for key, schema in content["keys"][section].items():
            if "type" in schema or "anyOf" in schema:
                yield f"{section}.{key}", f"{prefix}{key}", schema, {}
    for kind, (place, tag) in PLACES.items():
        for name, about in content["parts"][kind].items():
            for option, schema in about.items():
                if isinstance(schema, dict):
                    part = {tag: name, **BESIDE.get(f"{name}.{option}", {})}
                    yield f"{name}.{option}", f"{place}.{option}", schema, nested(place, part)


def nested(place: str, value: Any) -> Tree:
    *above, last = place.split(".")
    tree: Tree = {last: value}
    for key in reversed(above):
        tree = {key: tree}
    return tree


def placed(data: Tree, key: str, value: Any) -> Tree:
    head, _, rest = key.partition(".")
    return {**data, head: placed(data.get(head, {}), rest, value) if rest else value}


@cache
def validator() -> Any:
    return jsonschema.Draft202012Validator(json_schema())


def schema_accepts(data: Tree) -> bool:
    return bool(validator().is_valid(data))


@pytest.mark.parametrize(
    ("key", "schema", "among"), [pytest.param(*rest, id=name) for name, *rest in options()]
)
def test_a_range_ends_where_it_says(key: str, schema: Tree, among: Tree) -> None:
    inside, outside = ends(schema)
    for value in inside:
        data = placed(among, key, value)
        loaded: Any = settings(resolve(Source(data)))
        for part in key.split("."):
            loaded = loaded[part]
        expected = 3 if key == "train.epochs" and value is None else value
        assert loaded == expected
        assert schema_accepts(data), data
    for value in outside:
        data = placed(among, key, value)
        with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
            resolve(Source(data))
        if not {"nan", "inf"} & set(re.findall("[a-z]+", str(value))):  # JSON has none such
            assert not schema_accepts(data), data


def limits() -> Iterator[tuple[str, str, Tree]]:
    for rule, about in golden()["parts"]["rule"].items():
        for limit, schema in about.items():
            if isinstance(schema, dict):
                yield rule, limit, schema


@pytest.mark.parametrize(("rule", "limit", "schema"), list(limits()))
def test_a_limit_of_a_rule_ends_where_it_says(
    tmp_path: Path, rule: str, limit: str, schema: Tree
) -> None:
    file = tmp_path / "rules.yaml"
    inside, outside = ends(schema)
    numbers = [value for value in outside if type(value) in {int, float} and math.isfinite(value)]
    for value in inside:
        file.write_text(f"{rule}: {{{limit}: {_text(value)}}}\n")
        load_rules(file)
    assert numbers
    for value in numbers:
        file.write_text(f"{rule}: {{{limit}: {_text(value)}}}\n")
        with pytest.raises(ConfigError, match=f"{rule}.{limit}: "):
            load_rules(file)


def _text(value: float) -> str:
    """The number as old YAML reads it: an exponent needs a dot and a sign."""
    text = repr(value)
    return text if "e" not in text or "." in text else text.replace("e", ".0e")
