"""Every family, layer by layer, against tables written out by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import nn
from typer.testing import CliRunner

from gradexp.cli import app
from gradexp.config import to_yaml
from tests.nets import FAMILIES, config_of, maps_of, network_of, run_of

DIGITS = "data={dataset: digits}"  # images [1, 8, 8], ten classes


@dataclass(frozen=True)
class Net:
    """A net and its layers: name, kind, fan_in, fan_out, units, parameters; strides other than 1.

    `hidden` are activation and norm of every layer but the readout.
    """

    overrides: tuple[str, ...]
    hidden: tuple[str, str]
    layers: str
    strided: tuple[str, ...] = ()

    @property
    def rows(self) -> list[tuple[str, str, int, int, int, int]]:
        found = []
        for line in self.layers.strip().splitlines():
            name, kind, *numbers = line.split()
            fan_in, fan_out, units, parameters = map(int, numbers)
            found.append((name, kind, fan_in, fan_out, units, parameters))
        return found


NETS = {
    "mlp": Net(
        (DIGITS,),
        ("relu", "none"),
        """
        hidden.1  linear   64  128  128   8320
        hidden.2  linear  128  128  128  16512
        hidden.3  linear  128  128  128  16512
        hidden.4  linear  128  128  128  16512
        hidden.5  linear  128  128  128  16512
        readout   linear  128   10   10   1290
        """,
    ),
    # Batch norm takes the bias away and brings a scale and a shift; prelu a slope for each unit.
    "mlp, batch norm, prelu": Net(
        ("model={family: mlp, depth: 2, width: 7, norm: batch, activation: prelu}",),
        ("prelu", "batch"),
        """
        hidden.1  linear  72  7  7  525
        hidden.2  linear   7  7  7   70
        readout   linear   7  3  3   24
        """,
    ),
    "mlp of one layer": Net(
        ("model={family: mlp, depth: 1, width: 4, bias: false}",),
        ("relu", "none"),
        """
        hidden.1  linear  72  4  4  288
        readout   linear   4  3  3   12
        """,
    ),
    "cnn": Net(
        (DIGITS, "model.family=cnn"),
        ("relu", "none"),
        """
        stage1.conv1  conv       9   288   32     320
        stage1.conv2  conv     288   288   32    9248
        stage2.conv1  conv     288   576   64   18496
        stage2.conv2  conv     576   576   64   36928
        stage3.conv1  conv     576  1152  128   73856
        stage3.conv2  conv    1152  1152  128  147584
        readout       linear   128    10   10    1290
        """,
    ),
    # Five layers over two stages: the first has three of them.
    "cnn, layer norm": Net(
        ("model={family: cnn, depth: 5, width: 3, stages: 2, norm: layer, activation: tanh}",),
        ("tanh", "layer"),
        """
        stage1.conv1  conv    18  27  3   63
        stage1.conv2  conv    27  27  3   90
        stage1.conv3  conv    27  27  3   90
        stage2.conv1  conv    27  54  6  180
        stage2.conv2  conv    54  54  6  342
        readout       linear   6   3  3   21
        """,
    ),
    "mobilenet_v1": Net(
        (DIGITS, "model.family=mobilenet_v1"),
        ("relu", "none"),
        """
        stem              conv         9  288   32    320
        block1.depthwise  depthwise    9    9   32    320
        block1.pointwise  pointwise   32   64   64   2112
        block2.depthwise  depthwise    9    9   64    640
        block2.pointwise  pointwise   64   64   64   4160
        block3.depthwise  depthwise    9    9   64    640
        block3.pointwise  pointwise   64  128  128   8320
        block4.depthwise  depthwise    9    9  128   1280
        block4.pointwise  pointwise  128  128  128  16512
        block5.depthwise  depthwise    9    9  128   1280
        block5.pointwise  pointwise  128  256  256  33024
        block6.depthwise  depthwise    9    9  256   2560
        block6.pointwise  pointwise  256  256  256  65792
        readout           linear     256   10   10   2570
        """,
        ("block3.depthwise", "block5.depthwise"),
    ),
    "mobilenet_v1, batch norm": Net(
        ("model={family: mobilenet_v1, depth: 3, width: 2, stages: 2, norm: batch, bias: false}",),
        ("relu", "batch"),
        """
        stem              conv       18  18  2  40
        block1.depthwise  depthwise   9   9  2  22
        block1.pointwise  pointwise   2   4  4  16
        block2.depthwise  depthwise   9   9  4  44
        block2.pointwise  pointwise   4   4  4  24
        block3.depthwise  depthwise   9   9  4  44
        block3.pointwise  pointwise   4   8  8  48
        readout           linear      8   3  3  24
        """,
        ("block3.depthwise",),
    ),
}


def test_every_family_has_two_tables() -> None:
    for family in FAMILIES:
        assert len([name for name in NETS if name.split(",")[0] == family]) >= 2, family


@pytest.mark.parametrize("case", NETS)
def test_layers_of_a_run(tmp_path: Path, case: str) -> None:
    net = NETS[case]
    table = run_of(tmp_path, *net.overrides, "train.steps=0").read("layers")
    columns = ["layer", "kind", "fan_in", "fan_out", "units", "parameters"]
    assert list(table[columns].itertuples(index=False, name=None)) == net.rows
    assert table["layer_index"].tolist() == list(range(1, len(net.rows) + 1))
    *hidden, readout = table[["activation", "norm"]].itertuples(index=False, name=None)
    assert hidden == [net.hidden] * len(hidden)
    assert readout == ("none", "none")


@pytest.mark.parametrize("case", NETS)
def test_modules_of_a_net(case: str) -> None:
    """Shapes, groups, strides and padding of the maps themselves; all parameters are listed."""
    net = NETS[case]
    network = network_of(*net.overrides)
    for (name, kind, fan_in, _, units, _), module in zip(net.rows, maps_of(network), strict=True):
        side = {"conv": 3, "depthwise": 3, "pointwise": 1}.get(kind)
        assert module.weight.shape[0] == units
        assert module.weight[0].numel() == fan_in
        assert isinstance(module, nn.Linear if side is None else nn.Conv2d)
        if isinstance(module, nn.Conv2d):
            stride = 2 if name in net.strided else 1
            assert module.weight.shape[2:] == (side, side)
            assert module.stride == (stride, stride)
            assert module.groups == (units if kind == "depthwise" else 1)
    listed = sum(row[-1] for row in net.rows)
    assert sum(parameter.numel() for parameter in network.parameters()) == listed


@pytest.mark.parametrize("case", NETS)
def test_show_prints_the_table(tmp_path: Path, case: str) -> None:
    path = tmp_path / "net.yaml"
    path.write_text(to_yaml(config_of(*NETS[case].overrides)))
    shown = CliRunner().invoke(app, ["show", str(path)])
    assert shown.exit_code == 0
    lines = [line.replace(",", "").split() for line in shown.stdout.splitlines()]
    for index, row in enumerate(NETS[case].rows, start=1):
        parts = NETS[case].hidden if row[0] != "readout" else ("none", "none")
        assert [str(value) for value in (index, *row, *parts)] in lines
    assert [str(sum(row[-1] for row in NETS[case].rows)), "parameters"] in lines


# --- how depth is divided over stages --------------------------------------------------------


def layers_by_stage(*overrides: str) -> list[int]:
    """Layers of each stage of a cnn, by their number of units."""
    units = [len(one.weight) for one in maps_of(network_of(*overrides))][:-1]
    return [units.count(width) for width in sorted(set(units))]


@pytest.mark.parametrize(
    ("depth", "stages", "divided"),
    [
        (4, 1, [4]),
        (4, 2, [2, 2]),
        (5, 2, [3, 2]),
        (3, 3, [1, 1, 1]),
        (4, 3, [2, 1, 1]),
        (5, 3, [2, 2, 1]),
        (8, 3, [3, 3, 2]),
    ],
)
def test_early_stages_get_the_remainder(depth: int, stages: int, divided: list[int]) -> None:
    sizes = f"depth: {depth}, stages: {stages}, width: 2"
    assert layers_by_stage(f"model={{family: cnn, {sizes}}}") == divided
    names = [
        one.weight.shape[0]
        for one in maps_of(network_of(f"model={{family: mobilenet_v1, {sizes}}}"))
        if isinstance(one, nn.Conv2d) and one.weight.shape[2:] == (1, 1)
    ]
    assert [names.count(2 * 2 ** (stage + 1)) for stage in range(stages)] == divided
