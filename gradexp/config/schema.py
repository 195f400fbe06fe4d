"""The schema of a run: which keys there are, their types, ranges and defaults."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal, Optional

from pydantic import Field, TypeAdapter, create_model, model_validator

from gradexp.config.parts import Choice, Part, Strict, as_value_error, choice
from gradexp.data import AUGMENTATIONS, DATASETS, Dataset
from gradexp.errors import ConfigError
from gradexp.nn import ACTIVATIONS, INITS, MODELS, NORMS, RESIDUALS, Blueprint, is_whole
from gradexp.optim import CLIPS, OPTIMIZERS, SCHEDULES
from gradexp.registry import Count, Entry, Fraction, NonNegative, NonNegativeInt, Registry

PARTS: dict[str, tuple[Registry[Any], str]] = {
    "activation": (ACTIVATIONS, "relu"),
    "init": (INITS, "kaiming_normal"),
    "norm": (NORMS, "none"),
    "residual": (RESIDUALS, "none"),
}
"""The parts of a net of ours, and what each is where nothing is chosen."""
REGISTRIES: dict[str, Registry[Any]] = {
    "activations": ACTIVATIONS,
    "augmentations": AUGMENTATIONS,
    "clips": CLIPS,
    "datasets": DATASETS,
    "inits": INITS,
    "models": MODELS,
    "norms": NORMS,
    "optimizers": OPTIMIZERS,
    "residuals": RESIDUALS,
    "schedules": SCHEDULES,
}
DEFAULT_EPOCHS = 3

Words = Annotated[tuple[str, ...], Field(strict=False)]


class DataConfig(Choice):
    """Which examples the run learns from; the data set's own options stand beside these."""

    dataset: str
    batch_size: Count = 128
    normalize: bool = True
    augment: Part
    train_examples: Count | None = None

    def make(self) -> Dataset:
        """The data set: its shape, and how it loads."""
        dataset: Dataset = super().make()
        return dataset


class ModelConfig(Choice):
    """The net; the family's own options (depth, width, ...) stand beside these.

    Parts are null only in a net that is built as a whole: they are then as that net has them.
    """

    family: str
    activation: Part | None
    init: Part | None
    norm: Part | None
    residual: Part | None
    dropout: Fraction = 0.0
    bias: bool = True

    @property
    def whole(self) -> bool:
        """Whether the family makes a module as a whole, of anybody's making."""
        return is_whole(self.make())

    @model_validator(mode="after")
    def _parts_are_chosen(self) -> ModelConfig:
        if self.whole:
            given = {
                "residual": self.residual is not None,
                "dropout": self.dropout > 0,
                "bias": not self.bias,
            }
            if problems := [f"{key} has no effect" for key, found in given.items() if found]:
                raise ValueError(f"{'; '.join(problems)} in a net that is built as a whole")
            return self
        # The one place where a config completes itself: which parts a net has hangs on its family.
        missing = [key for key in PARTS if getattr(self, key) is None]
        self.__dict__.update({key: _default_part(type(self), key) for key in missing})
        return self

    def blueprint(self, dataset: Dataset) -> Blueprint:
        """The layers of the net for that data set; not of one that is built as a whole.

        Raises:
            ConfigError: the family cannot be built for this shape, or a shortcut fits nowhere.
        """
        residual = self.residual.make() if self.residual else None
        span = residual.span if residual else 0
        blueprint: Blueprint = self.make()(dataset.shape, dataset.classes, span)
        if self.residual and span and not any(block.shortcut for block in blueprint.blocks):
            raise ConfigError(
                f"residual '{self.residual.name}' has no effect: no layers of this net keep the "
                "shape of their input; use more depth"
            )
        return blueprint


class TrainConfig(Strict):
    """How the net learns, and for how long."""

    epochs: Count | None = None
    steps: NonNegativeInt | None = None
    optimizer: Part
    schedule: Part
    clip: Part
    weight_decay: NonNegative = 0.0
    l1: NonNegative = 0.0

    @model_validator(mode="before")
    @classmethod
    def _one_duration(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = [key for key in ("epochs", "steps") if values.get(key) is not None]
        if len(given) > 1:
            raise ValueError("epochs and steps are both given; keep one of them")
        return values if given else {**values, "epochs": DEFAULT_EPOCHS}


class ProbeConfig(Strict):
    """When the net is looked at, and with how many examples."""

    every: Literal["auto", "epoch"] | Count = "auto"
    examples: Literal["all"] | Count = 1024
    gradients_every: Count = 1


class Config(Strict):
    """One run, resolved and complete."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)] = "run"
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    imports: Words = ()
    rules: str | None = None
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    probe: ProbeConfig = Field(default_factory=ProbeConfig)

    @model_validator(mode="after")
    def _choices_fit_together(self) -> Config:
        if not self.model.whole:
            as_value_error(lambda: self.model.blueprint(self.data.make()), "model: ")
        problems = [problem for test, problem in _conflicts(self) if test]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _conflicts(config: Config) -> list[tuple[bool, str]]:
    """Options that have no effect, or cannot work, beside one another."""
    model = config.model
    norm = model.norm.make() if model.norm else None
    across = norm is not None and norm.across_examples
    named = model.norm.name if model.norm else ""
    return [
        (
            not model.bias and getattr(model.init, "bias_std", 0.0) > 0,
            "model.init.bias_std has no effect with model.bias: false",
        ),
        (
            across and config.data.batch_size == 1,
            f"model.norm: {named} needs data.batch_size of at least 2",
        ),
        (
            across and config.data.train_examples == 1,
            f"model.norm: {named} needs data.train_examples of at least 2",
        ),
        (
            across and config.probe.examples == 1,
            f"model.norm: {named} needs probe.examples of at least 2",
        ),
    ]


def _part_field(key: str) -> tuple[Any, Any]:
    registry, default = PARTS[key]
    shown = Field(default=None, json_schema_extra={"default": default})
    return Optional[choice(registry, default)], shown  # noqa: UP045  of a type made at run time


@cache
def _default_part(model: type[ModelConfig], key: str) -> Part:
    _, default = PARTS[key]
    kind: Any = model.model_fields[key].annotation
    part: Part = TypeAdapter(kind).validate_python(default)
    return part


def config_type() -> type[Config]:
    """`Config` with the parts that are registered now."""
    return _config_type(tuple(tuple(registry) for registry in REGISTRIES.values()))


@cache
def _config_type(_registered: tuple[tuple[Entry[Any], ...], ...]) -> type[Config]:
    data_fields = {"augment": (choice(AUGMENTATIONS, "none"), "none")}
    data = choice(DATASETS, "digits", base=DataConfig, tag="dataset", fields=data_fields)
    model_fields = {key: _part_field(key) for key in PARTS}
    model = choice(MODELS, "mlp", base=ModelConfig, tag="family", fields=model_fields)
    train_fields: dict[str, Any] = {
        "optimizer": (choice(OPTIMIZERS, "sgd"), "sgd"),
        "schedule": (choice(SCHEDULES, "constant"), "constant"),
        "clip": (choice(CLIPS, "none"), "none"),
    }
    train: Any = create_model(
        "train", __base__=TrainConfig, __doc__=TrainConfig.__doc__, **train_fields
    )
    sections: dict[str, Any] = {
        "data": (data, Field(default_factory=dict)),
        "model": (model, Field(default_factory=dict)),
        "train": (train, Field(default_factory=dict)),
    }
    made: type[Config] = create_model("Config", __base__=Config, __doc__=Config.__doc__, **sections)
    return made
