"""The README tells the truth: its commands print what it shows, its lists are the program's."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import vl_convert
from torch import nn

from gradexp.analysis import load_rules
from gradexp.records import TABLES, RunDir
from tests.conftest import ROOT, Cli, real_data
from tests.terminals import Answer, Terminal, call

README = (ROOT / "README.md").read_text()
WIDTH = 80  # columns of the terminal that it shows

# The order counts: a report reads what a sweep left; so one process runs all of them.
pytestmark = pytest.mark.xdist_group("readme")


@dataclass(frozen=True)
class Example:
    """A command of the README and what stands below it."""

    command: str
    shown: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.command.split(" --")[0].replace("configs/", "")


def _examples() -> Iterator[Example]:
    for block in re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ gradexp ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.splitlines()
            yield Example(command, tuple(line for line in shown if line.strip()))


EXAMPLES = tuple(_examples())
SWEEP = "sweep configs/activation_depth.yaml"
SMALLER = "--grid model.activation=sigmoid,relu --grid model.depth=3,16"
CELLS_OF_IT = {(activation, depth) for activation in ("sigmoid", "relu") for depth in ("3", "16")}
MNIST = "--set train.steps=5 --set probe.examples=64"


# --- lines as people read them ---

NUMBER = re.compile(r"-?\d[\d,]*(\.\d+)?(e-?\d+)?")


def same(shown: str, printed: str) -> bool:
    """The same words at the same places, and numbers that differ as those of two machines do."""
    ours, theirs = (_words(line) for line in (shown, printed))
    return len(ours) == len(theirs) and all(map(_alike, ours, theirs))


def _words(line: str) -> list[str]:
    """Without the star of the best cell, which is best by a hair."""
    return [word for word in line.split() if word != "*"]


def _alike(ours: str, theirs: str) -> bool:
    if ours.startswith("±"):
        return theirs.startswith("±")
    both = [NUMBER.fullmatch(word.rstrip(".,%)")) for word in (ours, theirs)]
    if not all(both):
        return ours == theirs
    first, second = (float(found[0].replace(",", "")) for found in both if found)
    slack = 0.0 if "e" in ours + theirs or 0 < first < 0.1 else 0.05
    return abs(first - second) <= slack + 0.3 * abs(first)


def holds(shown: Sequence[str], printed: Sequence[str]) -> None:
    """Every line that is shown was printed, in order; `...` stands for any others."""
    rest = [line for line in printed if line.strip()]
    gap = False
    for line in shown:
        if line.strip() == "...":
            gap = True
            continue
        at = next((at for at, found in enumerate(rest) if same(line, found)), None)
        assert at is not None, f"not printed: {line!r}\nbut: {rest[:3]}"
        assert gap or at == 0, f"printed before {line!r}: {rest[:at]}"
        rest, gap = rest[at + 1 :], False
    assert gap or not rest, f"printed and not shown: {rest}"


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ("relu  3 healthy *", "relu 3   healthy", True),
        ("hidden.1 1.1e-6", "hidden.1 1.2e-6", True),
        ("hidden.1 1.1e-6", "hidden.1 1.1e-5", False),
        ("hidden.1 0.00277", "hidden.1 0.0121", False),
        ("97.6 ±0.1", "95.0 ±0.4", True),
        ("97.6 ±0.1", "9.0 ±0.1", False),
        ("0.00", "-0.02", True),
        ("vanishing !!", "healthy !!", False),
        ("1 2", "1 2 3", False),
        ("runs/a-1", "runs/a-2", False),
    ],
)
def test_lines_are_compared_as_they_are_read(ours: str, theirs: str, expected: bool) -> None:
    assert same(ours, theirs) == expected


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [
        (["a", "b"], ["a", "", "b"], True),
        (["a", "..."], ["a", "b", "c"], True),
        (["a", "...", "c"], ["a", "b", "c"], True),
        (["a", "c"], ["a", "b", "c"], False),
        (["a"], ["a", "b"], False),
        (["a", "b"], ["a"], False),
        (["...", "b", "a"], ["a", "b"], False),
    ],
)
def test_dots_stand_for_other_lines(shown: list[str], printed: list[str], expected: bool) -> None:
    if expected:
        holds(shown, printed)
    else:
        with pytest.raises(AssertionError):
            holds(shown, printed)


# --- the commands ---

Printed = tuple[Answer, list[str]]
Run = Callable[[str], Printed]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's reader stands: a folder with the configs."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@pytest.fixture(scope="module")
def answers() -> dict[str, Printed]:
    """What came of the commands so far: each is carried out once."""
    return {}


@pytest.fixture
def gradexp(
    folder: Path, answers: dict[str, Printed], monkeypatch: pytest.MonkeyPatch, forks: None
) -> Run:
    """A command and what stands on a terminal of 80 columns after it."""
    assert forks is None
    monkeypatch.chdir(folder)
    # Figures are checked and drawn in tests of their own; here that would take most of the time.
    monkeypatch.setattr("altair.utils.schemapi.DEBUG_MODE", False)
    drawn = {"vegalite_to_svg": "<svg/>", "javascript_bundle": ""}
    for name, result in {**drawn, "vegalite_to_png": b"drawn", "vegalite_to_pdf": b"drawn"}.items():
        monkeypatch.setattr(vl_convert, name, lambda *_, _result=result, **__: _result)

    def run(command: str) -> Printed:
        if command not in answers:
            terminal = Terminal([], WIDTH)
            answer = call(*shlex.split(command), width=WIDTH, stdout=terminal)
            assert "Traceback" not in answer.stderr
            answers[command] = answer, terminal.seen
        return answers[command]

    return run


@pytest.fixture
def swept(folder: Path, gradexp: Run) -> Path:
    """The README's sweep, with fewer of its cells."""
    answer, seen = gradexp(f"{SWEEP} {SMALLER}")
    assert answer.exit_code == 0, answer.stderr
    assert seen[-1] == "sweeps/activation-depth"
    return folder / seen[-1]


def test_there_are_examples_of_every_kind() -> None:
    commands = [example.command.split()[0] for example in EXAMPLES]
    assert {*commands} == {"run", "sweep", "status", "report", "list"}
    assert sum(bool(example.shown) for example in EXAMPLES) >= 3


HERE = [example for example in EXAMPLES if example.command != "list"]


@pytest.mark.parametrize("example", HERE, ids=[example.name for example in HERE])
def test_a_command_prints_what_is_shown(
    example: Example, gradexp: Run, request: pytest.FixtureRequest
) -> None:
    command, shown = example.command, list(example.shown)
    if "mnist" in command:
        real_data()
        command = f"{command} {MNIST}"
    if command == SWEEP:
        command = f"{command} {SMALLER}"
    if "sweeps/" in command:
        request.getfixturevalue("swept")
        shown = [line for line in shown if _of_smaller(line)]
    answer, seen = gradexp(command)
    assert answer.exit_code == 0, answer.stderr
    assert seen
    if shown:
        holds(shown, seen)


def _of_smaller(line: str) -> bool:
    """Whether a line of the report is no cell, or one of those that are run here."""
    cell = tuple(line.split()[:2])
    return len(cell) < 2 or not cell[1].isdigit() or cell in CELLS_OF_IT


def test_the_cure_of_the_first_example_is_told_by_its_own_run(gradexp: Run) -> None:
    first, cured = (example.command for example in EXAMPLES[:2])
    assert cured.startswith(first + " --set ")
    for command in (first, cured):
        _, seen = gradexp(command)
        run = RunDir(Path(seen[-1]))
        norms = run.read("gradients").query("step == 0")["grad_norm"].to_numpy()
        assert (norms[-1] / norms[0] > 1e5) == (command == first)


def test_the_report_writes_its_page_and_pictures(swept: Path, gradexp: Run) -> None:
    command = next(example.command for example in EXAMPLES if example.command.startswith("report"))
    answer, _ = gradexp(command)
    words = shlex.split(command)
    page, figures = (Path(words[words.index(option) + 1]) for option in ("--html", "--figures"))
    assert page.read_text().lstrip().startswith("<!")
    assert {path.suffix for path in figures.rglob("*.*")} == {".png", ".svg", ".pdf"}
    assert swept.is_dir()
    assert "8 runs in 4 cells: 8 finished." in answer.stderr.splitlines()


def test_the_exit_code_of_a_report_is_set_by_verdicts(swept: Path, gradexp: Run) -> None:
    (words,) = re.findall(r"`--fail-on ([\w,]+)`", README)
    assert gradexp(f"report {swept} --fail-on {words}")[0].exit_code == 1
    assert gradexp(f"report {swept} --fail-on diverged")[0].exit_code == 0


def test_finished_cells_are_not_run_twice(swept: Path, gradexp: Run) -> None:
    answer, _ = gradexp(f"{SWEEP} {SMALLER} --seeds 2")  # as many as it has
    assert swept.is_dir()
    assert (answer.exit_code, answer.stderr) == (0, "")


def test_the_sick_model_has_the_gradients_that_are_told(gradexp: Run) -> None:
    real_data()
    told = r"gradient norm is (\S+) where the\s+readout's is ([\d.]+\d)"
    ((first, last),) = re.findall(told, README)
    _, seen = gradexp(f"run configs/mnist_sigmoid30.yaml {MNIST}")
    gradients = RunDir(Path(seen[-1])).read("gradients")
    start = gradients.query("step == 0")["grad_norm"].to_numpy()
    assert start[[0, -1]] == pytest.approx([float(first), float(last)], rel=0.2)
    nearest = gradients.query("layer_index == 1")
    assert (nearest["update_norm"] == 0).all()  # not by a single bit
    assert nearest["weight_norm"].nunique() == 1


# --- the rest of it ---


def test_list_is_that_of_the_program(cli: Cli) -> None:
    """In a process of its own, where no test has registered parts; without a terminal unwrapped."""
    (shown,) = (example.shown for example in EXAMPLES if example.command == "list")
    answer = cli("list")
    assert " ".join(shown).split() == answer.stdout.split()
    assert len(answer.stdout.splitlines()) == 1 + sum(
        not line.startswith(" ") for line in shown[1:]
    )


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_a_model_of_your_own_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (block for block in blocks("python") if "gradexp.watch(" in block)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    batches = [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(3)]
    inputs, targets = batches[0]
    exec(  # noqa: S102  the README's own code
        code,
        {
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
            "inputs": inputs,
            "targets": targets,
            "loss_function": nn.CrossEntropyLoss(),
            "loader": batches,
        },
    )
    assert RunDir(Path("runs/mine")).read("steps")["step"].tolist() == [0, 1, 2]
    for command in ("report", "status"):
        assert call(command, "runs/mine").exit_code == 0


TINY = """
name: NAME
data: {dataset: digits, batch_size: 32, train_examples: 64}
model: {family: mlp, depth: 3, width: 4}
train: {steps: 2}
probe: {examples: 32}
"""


@pytest.mark.usefixtures("forks")
def test_runs_and_sweeps_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (block for block in blocks("python") if "gradexp.sweep(" in block)
    monkeypatch.chdir(tmp_path)
    for name in ("config", "grid"):
        Path(f"{name}.yaml").write_text(TINY.replace("NAME", name))
    seen: dict[str, object] = {}
    exec(f"import gradexp\n{code}", seen)  # noqa: S102  the README's own code
    assert len(seen["run"].layers) == 31  # type: ignore[attr-defined]
    assert len(seen["swept"].table) == 9  # type: ignore[attr-defined]


def test_a_part_of_your_own_imports_what_there_is() -> None:
    (code,) = (block for block in blocks("python") if ".register(" in block)
    imports = [node for node in ast.parse(code).body if isinstance(node, ast.ImportFrom)]
    assert imports
    exec(compile(ast.Module(imports, []), "README.md", "exec"), {})  # noqa: S102


def test_limits_of_your_own_are_taken(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "limits.yaml").write_text(text)
    load_rules(tmp_path / "limits.yaml")


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^    make (\w+)", README, re.MULTILINE)) <= targets


@pytest.mark.parametrize("table", TABLES)
def test_every_table_is_described(table: str) -> None:
    assert f"`{table}.csv`" in README


def test_named_files_exist() -> None:
    for name in re.findall(r"(?:configs|scripts|gradexp)/\w+\.\w+", README):
        assert (ROOT / name).is_file(), name
