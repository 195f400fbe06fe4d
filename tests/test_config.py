"""A config is strict, its errors say where and what, and its id is stable."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gradexp.config import json_schema, load_config, parse_yaml, run_id, settings, to_yaml
from gradexp.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def findings(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), overrides)
    return str(caught.value).splitlines()


def test_all_errors_at_once_with_line_and_nearest_match(tmp_path: Path) -> None:
    lines = findings(
        tmp_path,
        """
data: {dataset: digits, batch_size: "8"}
model:
  activation: {name: relu, negative_slope: 0.2}
  init: kaimng_normal
  norm: no
train: {epochs: -1, schedul: cosine}
bogus: 3
""",
    )
    text = "\n".join(lines)
    assert len(lines) == 7
    for expected in (
        "config.yaml:2  data.batch_size: ",
        "config.yaml:4  model.activation.negative_slope: is an option of leaky_relu, not of relu",
        "config.yaml:5  model.init: got 'kaimng_normal'; allowed: torch,",
        "Did you mean 'kaiming_normal'?",
        "config.yaml:6  model.norm: got 'no'; allowed: none, batch, layer",
        "config.yaml:7  train.epochs: ",
        "config.yaml:7  train.schedul: unknown key",
        "Did you mean 'schedule'?",
        "config.yaml:8  bogus: unknown key",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.residual=identity", "model.depth=1"], "has no effect"),
        (["model.family=cnn", "model.depth=2"], "less than the 3 stages"),
        (["model.family=cnn", "model.stages=5", "model.depth=9"], "below one pixel"),
        (["train.optimizer.nesterov=true"], "no effect without momentum"),
        (["data.augment.pad=3"], "is an option of crop, crop_flip, not of none"),
        (["model.bias=false", "model.init.bias_std=1.0"], "no effect with model.bias: false"),
        (["model.norm=batch", "data.batch_size=1"], "data.batch_size of at least 2"),
        (["model.norm=batch", "data.train_examples=1"], "data.train_examples of at least 2"),
        (["model.norm=batch", "probe.examples=1"], "probe.examples of at least 2"),
        (["data.root=/x"], "is an option of mnist"),
        (["model.stages=3"], "is an option of cnn"),
        (["depth"], "expected KEY=VALUE"),
        (["model=3"], "model"),
        (["train.schedule={name: step, milestones: [0.5, 0.2]}"], "must rise"),
    ],
)
def test_options_without_effect_are_errors(
    tmp_path: Path, overrides: list[str], expected: str
) -> None:
    assert expected in "\n".join(findings(tmp_path, "name: x\n", *overrides))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: [unclosed\n", "config.yaml:2  is not valid YAML"),
        ("seed: 1\nseed: 2\n", "config.yaml:2  seed: stands twice"),
        ("- 1\n", "expected keys and values"),
        ("train: {epochs: 1, steps: 2}\n", "both given"),
        ("sweep: {seeds: 2}\n", "gradexp sweep"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in findings(tmp_path, text)[0]


def test_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "nothing.yaml")


def test_yaml_traps() -> None:
    data = parse_yaml("a: 1e-3\nb: no\nc: off\nd: 010\ne: 1:30\nf: true\ng: ~\n", "f").data
    assert data == {"a": 1e-3, "b": "no", "c": "off", "d": 10, "e": "1:30", "f": True, "g": None}


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans())
def test_numbers_survive_yaml(value: float) -> None:
    assert parse_yaml(yaml.safe_dump({"a": value}), "f").data == {"a": value}


def test_overrides_win_and_say_so(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {epochs: 4}\nmodel: {activation: leaky_relu}\n")
    config = load_config(path, ["train.steps=7", "model.activation.negative_slope=0.3"])
    plain = settings(config)
    assert (plain["train"]["epochs"], plain["train"]["steps"]) == (None, 7)
    assert plain["model"]["activation"] == {"name": "leaky_relu", "negative_slope": 0.3}
    with pytest.raises(ConfigError, match=r"--set model.depth=ten  model.depth: "):
        load_config(path, ["model.depth=ten"])


def test_resolved_config_repeats_the_run(tmp_path: Path) -> None:
    first = load_config(write(tmp_path, "name: a\nmodel: {init: he_normal, norm: batch}\n"))
    again = load_config(write(tmp_path, to_yaml(first)))
    assert settings(again) == settings(first)
    assert run_id(again) == run_id(first)


def test_id_depends_on_every_setting_but_the_name(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\n")
    ids = {
        run_id(load_config(path, overrides))
        for overrides in ([], ["seed=1"], ["model.depth=6"], ["train.optimizer.lr=0.01"])
    }
    assert len(ids) == 4
    assert run_id(load_config(path, ["name=b"])) == run_id(load_config(path))


def test_json_schema_accepts_what_loads_and_refuses_what_does_not(tmp_path: Path) -> None:
    schema = json_schema()
    config = load_config(write(tmp_path, "model: {family: cnn}\n"))
    jsonschema.validate(settings(config), schema)
    jsonschema.validate({"model": {"family": "mlp", "activation": "relu"}}, schema)
    for wrong in ({"modle": {}}, {"model": {"family": "mlp", "activation": "reluu"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


PARTS = '''
from gradexp.nn.activations import ACTIVATIONS, Activation

@ACTIVATIONS.register("{name}")
def doubled(*, factor: float = 2.0) -> Activation:
    """x, times a factor."""
    from torch import nn
    return Activation(lambda _units: nn.Identity())
'''


def test_imports_bring_parts_of_the_users_own(tmp_path: Path) -> None:
    from gradexp.nn import ACTIVATIONS

    (tmp_path / "my_parts.py").write_text(PARTS.format(name="doubled_for_test"))
    text = "imports: [my_parts.py]\nmodel: {activation: {name: doubled_for_test, factor: 3.0}}\n"
    try:
        config = load_config(write(tmp_path, text))
        assert settings(config)["imports"] == ["my_parts.py"]
        assert config.model.activation.name == "doubled_for_test"
        before = run_id(config)
        (tmp_path / "my_parts.py").write_text(PARTS.format(name="doubled_for_test") + "\n# new\n")
        assert run_id(config) != before
    finally:
        ACTIVATIONS.remove("doubled_for_test")


def test_an_option_without_a_default_must_be_given(tmp_path: Path) -> None:
    parts = PARTS.format(name="needy").replace("factor: float = 2.0", "factor: float")
    (tmp_path / "my_parts.py").write_text(parts)
    config = load_config(
        write(tmp_path, "imports: [my_parts.py]\n"), ["model.activation={name: needy, factor: 3}"]
    )
    assert settings(config)["model"]["activation"] == {"name": "needy", "factor": 3.0}
    for said, told in (("needy", ": factor is missing"), ("{name: needy}", ".factor: is missing")):
        text = f"imports: [my_parts.py]\nmodel: {{activation: {said}}}\n"
        assert findings(tmp_path, text) == [f"{tmp_path}/config.yaml:2  model.activation{told}"]
    schema = json_schema()
    jsonschema.validate(settings(config), schema)
    for incomplete in ({"name": "needy"}, "needy"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"model": {"family": "mlp", "activation": incomplete}}, schema)


def test_a_broken_import_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    assert "ZeroDivisionError" in findings(tmp_path, "imports: [broken.py]\n")[0]
    assert "is not a file" in findings(tmp_path, "imports: [nothing.py]\n")[0]
