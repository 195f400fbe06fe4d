"""Every option of every part, and every other key of a config, changes what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gradexp.config import REGISTRIES
from gradexp.errors import ConfigError
from gradexp.records import TABLES
from tests.nets import config_of, run_of

PLACES = {  # where a config has the parts of a kind, and the key of their name
    "activations": ("model.activation", "name"),
    "augmentations": ("data.augment", "name"),
    "clips": ("train.clip", "name"),
    "datasets": ("data", "dataset"),
    "inits": ("model.init", "name"),
    "models": ("model", "family"),
    "norms": ("model.norm", "name"),
    "optimizers": ("train.optimizer", "name"),
    "residuals": ("model.residual", "name"),
    "schedules": ("train.schedule", "name"),
}
# By kind, part and option: a value, other than the default, that must make a difference.
OTHER: dict[str, dict[str, dict[str, Any]]] = {
    "activations": {
        "leaky_relu": {"negative_slope": 0.3},
        "prelu": {"initial_slope": 0.5},
        "elu": {"alpha": 0.5},
    },
    "augmentations": {"crop": {"pad": 1}, "crop_flip": {"pad": 1}},
    "clips": {"norm": {"max_norm": 0.01}, "value": {"max_value": 0.001}},
    "datasets": {
        "synthetic": {"classes": 4, "channels": 2, "size": 5, "examples": 30, "noise": 0.1}
    },
    "inits": {
        "normal": {"std": 0.3, "bias_std": 0.1},
        "uniform": {"limit": 0.3, "bias_std": 0.1},
        "xavier_normal": {"gain": 2.0, "bias_std": 0.1},
        "xavier_uniform": {"gain": 2.0, "bias_std": 0.1},
        "kaiming_normal": {"mode": "fan_out", "bias_std": 0.1},
        "kaiming_uniform": {"mode": "fan_out", "bias_std": 0.1},
        "lecun_normal": {"bias_std": 0.1},
        "lecun_uniform": {"bias_std": 0.1},
        "orthogonal": {"gain": 2.0, "bias_std": 0.1},
    },
    "models": {
        "mlp": {"depth": 2, "width": 6},
        "cnn": {"depth": 4, "width": 3, "stages": 2},
        "mobilenet_v1": {"depth": 4, "width": 3, "stages": 2},
        "torchvision": {"name": "mobilenet_v3_small"},
    },
    "norms": {"batch": {"eps": 0.1, "momentum": 0.5}, "layer": {"eps": 0.1}},
    "optimizers": {
        "sgd": {"lr": 0.01, "momentum": 0.5, "nesterov": "true"},
        "adam": {"lr": 0.01, "beta1": 0.5, "beta2": 0.5, "eps": 0.1},
        "adamw": {"lr": 0.01, "beta1": 0.5, "beta2": 0.5, "eps": 0.1},
        "rmsprop": {"lr": 0.01, "alpha": 0.5, "momentum": 0.5, "eps": 0.1},
    },
    "residuals": {"identity": {"span": 1, "scale": 0.5}},
    "schedules": {
        "constant": {"warmup_steps": 2},
        "cosine": {"final": 0.5, "warmup_steps": 2},
        "step": {"milestones": "[0.25]", "gamma": 0.5, "warmup_steps": 2},
    },
}
# Settings beside which an option acts, where it does not by itself.
CONTEXT: dict[tuple[str, str, str], tuple[str, ...]] = {
    ("optimizers", "sgd", "nesterov"): ("train.optimizer.momentum=0.9",),
}
# Where files lie and whether they are checked: tried with files, among the tests of data.
OF_FILES = {"root", "verify"}
# The keys that belong to no part, section by section.
KEYS: dict[str, dict[str, Any]] = {
    "": {"seed": 1},
    "data": {"batch_size": 5, "normalize": "false", "train_examples": 16},
    "model": {"dropout": 0.5, "bias": "false"},
    "train": {"epochs": 1, "steps": 2, "weight_decay": 0.1, "l1": 0.01},
    "probe": {"every": 1, "examples": 5, "gradients_every": 2},
}
# What else a part is called.
ALIASES = {
    "activations": {"linear": "identity", "swish": "silu"},
    "inits": {
        "default": "torch",
        "glorot_normal": "xavier_normal",
        "glorot_uniform": "xavier_uniform",
        "he_normal": "kaiming_normal",
        "he_uniform": "kaiming_uniform",
    },
}
# What these say is not in a table.
WITHOUT_OUTCOME = {"name", "device", "imports", "rules"}

SMALL = ("model={family: mlp, depth: 3, width: 5}", "train.steps=3")
SETTING = {  # in which the parts of a kind are compared
    "models": ("model={}", "train.steps=3"),  # nothing that takes the place of their defaults
    "datasets": (*SMALL, "data={batch_size: 8}"),
    "optimizers": (*SMALL, "train.weight_decay=0.1"),  # all that adam and adamw part by
}


def options() -> Iterator[tuple[str, str, str]]:
    for kind, registry in REGISTRIES.items():
        for entry in registry:
            for option in entry.options:
                if kind != "datasets" or option.name not in OF_FILES:
                    yield kind, entry.name, option.name


def keys() -> Iterator[tuple[str, str]]:
    """Sections and keys of a config that are neither parts nor their options."""
    config = config_of()
    yield from (("", key) for key in type(config).model_fields if key not in KEYS)
    parts = {place for place, _ in PLACES.values()}
    for section in [name for name in KEYS if name]:
        chosen = getattr(config, section)
        entry = getattr(type(chosen), "entry", None)
        own = {option.name for option in entry.options} if entry else set()
        for key in type(chosen).model_fields:
            tag = f"{section}.{key}" in {f"{place}.{tag}" for place, tag in PLACES.values()}
            if key not in own and not tag and f"{section}.{key}" not in parts:
                yield section, key


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All that a run's tables say, clocks apart; each run is made once."""
    folder = tmp_path_factory.mktemp("runs")
    return cache(lambda *overrides: tables(folder, *overrides))


def tables(folder: Path, *overrides: str) -> str:
    run = run_of(folder, *overrides)
    frames = (
        run.read(name).drop(columns=[one.name for one in table.columns if one.timing])
        for name, table in TABLES.items()
    )
    return "\n".join(frame.to_csv(index=False) for frame in frames)


def chosen(kind: str, part: str) -> tuple[str, ...]:
    place, tag = PLACES[kind]
    return (*SETTING.get(kind, SMALL), f"{place}.{tag}={part}")


@pytest.mark.parametrize(("kind", "part", "option"), list(options()))
def test_an_option_has_an_effect(outcome: Any, kind: str, part: str, option: str) -> None:
    others = OTHER.get(kind, {}).get(part, {})
    assert option in others, (
        f"option '{option}' of '{part}' is not tried: add a value other than its default to "
        f"OTHER['{kind}']['{part}']['{option}'], and to CONTEXT what it needs beside it"
    )
    settings = (*chosen(kind, part), *CONTEXT.get((kind, part, option), ()))
    changed = f"{PLACES[kind][0]}.{option}={others[option]}"
    assert outcome(*settings, changed) != outcome(*settings)


@pytest.mark.parametrize(("section", "key"), list(keys()))
def test_a_key_has_an_effect(outcome: Any, section: str, key: str) -> None:
    if key in WITHOUT_OUTCOME:
        return
    assert key in KEYS[section], (
        f"'{key}' is not tried: add a value other than its default to KEYS['{section}'], or its "
        "name to WITHOUT_OUTCOME"
    )
    changed = f"{section}.{key}={KEYS[section][key]}".removeprefix(".")
    assert outcome(*SMALL, changed) != outcome(*SMALL)


@pytest.mark.parametrize("kind", [kind for kind in PLACES if kind not in {"datasets", "clips"}])
def test_parts_differ_from_one_another(outcome: Any, kind: str) -> None:
    """Data sets need files; a clip by default may have nothing to clip."""
    outcomes = {part: outcome(*chosen(kind, part)) for part in REGISTRIES[kind].names()}
    assert len(set(outcomes.values())) == len(outcomes)


@pytest.mark.parametrize("kind", PLACES)
def test_an_unknown_part_is_refused_by_what_it_would_be(kind: str) -> None:
    registry = REGISTRIES[kind]
    assert registry.kind == kind.removesuffix("s")
    with pytest.raises(ConfigError, match=f"unknown {registry.kind} 'unheard'; allowed: "):
        registry["unheard"]


@pytest.mark.parametrize("kind", PLACES)
def test_what_else_a_part_is_called(kind: str) -> None:
    """A config holds the part's own name, whichever was written."""
    registry, (place, _) = REGISTRIES[kind], PLACES[kind]
    known = ALIASES.get(kind, {})
    assert {alias: entry.name for entry in registry for alias in entry.aliases} == known
    section, _, key = place.partition(".")
    for alias, name in known.items():
        assert getattr(getattr(config_of(f"{place}={alias}"), section), key).name == name


def test_every_kind_of_part_has_its_place() -> None:
    assert set(PLACES) == set(REGISTRIES), "add to PLACES where a config has parts of that kind"


def test_nothing_is_tried_that_is_not_there() -> None:
    tried = {
        (kind, part, option)
        for kind, parts in OTHER.items()
        for part, values in parts.items()
        for option in values
    }
    assert tried == set(options())
    assert set(CONTEXT) <= tried
    assert {(section, key) for section, some in KEYS.items() for key in some} | {
        ("", key) for key in WITHOUT_OUTCOME
    } == set(keys())
