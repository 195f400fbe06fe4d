"""The data dictionary: every table of a run directory, every column, its unit and meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from gradexp.errors import RunError

Dtype = Literal["int", "float", "text"]
Value: TypeAlias = int | float | str | None


@dataclass(frozen=True)
class Column:
    """One column: what it holds, in which unit, and where the definition comes from.

    An `int` column that may be empty reads back as pandas' nullable `Int64`.
    """

    name: str
    dtype: Dtype
    meaning: str
    unit: str = ""
    source: str = ""
    optional: bool = False
    timing: bool = False


@dataclass(frozen=True)
class Table:
    """One CSV file of a run directory."""

    name: str
    meaning: str
    columns: tuple[Column, ...]

    @property
    def file_name(self) -> str:
        """The name of the file inside the run directory."""
        return f"{self.name}.csv"

    @property
    def column_names(self) -> list[str]:
        """The header, in order."""
        return [column.name for column in self.columns]

    def with_columns(self, added: Sequence[Column]) -> Table:
        """This table with more columns at its end.

        Raises:
            RunError: one has the name of a column that is there already.
        """
        for column in added:
            if column.name in self.column_names:
                raise RunError(f"{self.name}: a column '{column.name}' is there already")
        return replace(self, columns=(*self.columns, *added))

    def cells(self, row: Mapping[str, Value]) -> list[Value]:
        """A row in the order of the columns; what it lacks is empty.

        Raises:
            RunError: it has something that the dictionary does not, or lacks what it must have.
        """
        names = self.column_names
        if unknown := [name for name in row if name not in names]:
            raise RunError(f"{self.file_name}: no column '{unknown[0]}'; there are {names}")
        cells = [row.get(name) for name in names]
        for column, cell in zip(self.columns, cells, strict=True):
            if cell is None and not column.optional:
                raise RunError(f"{self.file_name}: a row without '{column.name}'")
        return cells

    def column(self, name: str) -> Column:
        """The column of that name."""
        return next(column for column in self.columns if column.name == name)


STEP = Column(
    "step", "int", "optimizer updates done before this observation; 0 = at initialization", "steps"
)
LAYER_INDEX = Column("layer_index", "int", "position in the net; 1 = nearest the input")
LAYER = Column("layer", "text", "readable name of the weight-bearing map")

LAYERS = Table(
    "layers",
    "one row per layer: a weight-bearing map with its norm and activation",
    (
        LAYER_INDEX,
        LAYER,
        Column("kind", "text", "linear, conv, depthwise or pointwise"),
        Column("fan_in", "int", "inputs that feed one output, groups counted", "weights"),
        Column("fan_out", "int", "outputs that one input feeds, groups counted", "weights"),
        Column("units", "int", "features of a linear layer, channels of a convolution", "units"),
        Column("parameters", "int", "trainable numbers of map, norm and activation", "numbers"),
        Column("activation", "text", "name of the activation; none where there is none"),
        Column("norm", "text", "name of the normalization; none where there is none"),
        Column(
            "flat",
            "text",
            "closed intervals of pre on which the activation's derivative is exactly 0, as "
            "`low..high`, spaces between; empty where there is none",
            "pre",
        ),
        Column(
            "bounded",
            "int",
            "1 where the activation stays within limits on both sides, else 0; empty without one",
            optional=True,
        ),
        Column(
            "slope",
            "float",
            "derivative of a rectifier far left of 0; empty without activation",
            "post / pre",
            "He et al. 2015: the gain of kaiming inits",
            optional=True,
        ),
        Column(
            "init_std",
            "float",
            "standard deviation of the weights when observation began",
            "weight",
        ),
    ),
)

GRADIENTS = Table(
    "gradients",
    "one row per layer and observed training step",
    (
        STEP,
        LAYER_INDEX,
        LAYER,
        Column(
            "grad_norm",
            "float",
            "L2 norm of dLoss/dWeight before clipping, loss = mean over the batch; empty where the "
            "weights are frozen",
            "loss / weight",
            optional=True,
        ),
        Column(
            "clipped_grad_norm",
            "float",
            "L2 norm of the weight gradient that the optimizer got: with L1 added and clipped",
            "loss / weight",
            optional=True,
        ),
        Column(
            "bias_grad_norm",
            "float",
            "L2 norm of dLoss/dBias before clipping; empty for a layer without bias",
            "loss / bias",
            optional=True,
        ),
        Column("weight_norm", "float", "L2 norm of the weights before the update", "weight"),
        Column(
            "update_norm",
            "float",
            "L2 norm of the true change of the weights in this step; empty when none was made",
            "weight",
            optional=True,
        ),
    ),
)

SIGNAL = Table(
    "signal",
    "one row per layer and probe: what the layer passes on, over the probe examples",
    (
        STEP,
        LAYER_INDEX,
        LAYER,
        Column(
            "pre_mean",
            "float",
            "mean of the activation's input over examples and units",
            optional=True,
        ),
        Column(
            "pre_std",
            "float",
            "standard deviation of the activation's input, same reduction",
            optional=True,
        ),
        Column(
            "post_mean",
            "float",
            "mean of the activation's output over examples and units",
            optional=True,
        ),
        Column("post_std", "float", "standard deviation of the activation's output", optional=True),
        Column(
            "pre_grad_norm",
            "float",
            "root mean square over probe examples of the L2 norm of dLoss_i/dpre_i, per-example "
            "losses; under batch norm the gradient of the summed loss of the probe batch",
            "loss / pre",
            "Schoenholz et al. 2017: changes by sqrt(chi_1) per layer",
            optional=True,
        ),
        Column(
            "saturated_fraction",
            "float",
            "share of pre values where the activation's derivative is below 0.02 in magnitude; "
            "empty for a layer without activation",
            "fraction",
            optional=True,
        ),
    ),
)

UNITS = Table(
    "units",
    "one row per layer and probe: the ledger of dead units and of parameters that stopped. "
    "Counts of dead units are empty for activations without an exactly flat region",
    (
        STEP,
        LAYER_INDEX,
        LAYER,
        Column("units", "int", "units of the layer", "units"),
        Column(
            "dead",
            "int",
            "units inactive on every probe example and position",
            "units",
            optional=True,
        ),
        Column("born_dead", "int", "units that were dead at step 0", "units", optional=True),
        Column(
            "died", "int", "units that became dead since the last probe", "units", optional=True
        ),
        Column(
            "revived",
            "int",
            "units dead at the last probe that are not now",
            "units",
            optional=True,
        ),
        Column(
            "certified_dead",
            "int",
            "units proved inactive for every valid input, by interval propagation",
            "units",
            optional=True,
        ),
        Column(
            "inactive_fraction",
            "float",
            "share of pre values where the activation's derivative is exactly 0",
            "fraction",
            optional=True,
        ),
        Column(
            "no_grad_units",
            "int",
            "units whose dLoss/dpre is exactly 0 on every probe example and position, whatever "
            "the activation",
            "units",
            optional=True,
        ),
        Column(
            "zero_grad_fraction",
            "float",
            "share of the layer's weights whose gradient is exactly 0 in every probe batch; empty "
            "where they are frozen or computed from other parameters",
            "fraction",
            optional=True,
        ),
        Column(
            "empty_kernels",
            "int",
            "depthwise kernels with an L2 norm below 1e-3 of the layer's median; empty elsewhere",
            "kernels",
            optional=True,
        ),
    ),
)

UNIT_EVENTS = Table(
    "unit_events",
    "one row per event in the life of a unit",
    (
        STEP,
        LAYER_INDEX,
        LAYER,
        Column("unit", "int", "index of the unit in its layer, from 0"),
        Column("event", "text", "born_dead, died, revived or certified"),
    ),
)

STEPS = Table(
    "steps",
    "one row per training step",
    (
        STEP,
        Column("epoch", "int", "epoch of this step, from 1", "epochs"),
        Column(
            "loss", "float", "mean cross-entropy over the training batch", "nats", optional=True
        ),
        Column(
            "accuracy",
            "float",
            "share of the training batch classified right; empty where it was not told",
            "fraction",
            optional=True,
        ),
        Column(
            "lr",
            "float",
            "learning rate of this step; empty where no optimizer is known",
            optional=True,
        ),
        Column(
            "grad_norm",
            "float",
            "L2 norm of the gradient of all parameters before clipping",
            "loss / parameter",
        ),
        Column(
            "clip_coefficient",
            "float",
            "norm of the gradient (L1 added) after clipping over the norm before; nan where it is "
            "not finite",
            "ratio",
        ),
        Column(
            "step_seconds",
            "float",
            "wall-clock time per step, averaged over the steps written together",
            "s",
            timing=True,
        ),
    ),
)

EPOCHS = Table(
    "epochs",
    "one row per epoch, the last one possibly cut short",
    (
        Column("epoch", "int", "epochs done, from 1", "epochs"),
        STEP,
        Column("train_loss", "float", "mean of the training batches' losses", "nats"),
        Column("train_accuracy", "float", "mean of the training batches' accuracies", "fraction"),
        Column("test_loss", "float", "mean cross-entropy over the test set", "nats", optional=True),
        Column(
            "test_accuracy",
            "float",
            "share of the test set classified right",
            "fraction",
            optional=True,
        ),
        Column(
            "seconds", "float", "wall-clock time of the epoch, probes included", "s", timing=True
        ),
    ),
)

TABLES: dict[str, Table] = {
    table.name: table for table in (LAYERS, GRADIENTS, SIGNAL, UNITS, UNIT_EVENTS, STEPS, EPOCHS)
}
