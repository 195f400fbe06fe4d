"""Verdicts, tables, pictures and the page, from run directories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from gradexp.errors import ConfigError, nearest
from gradexp.report.formats import FORMATS
from gradexp.report.overview import Overview, overview
from gradexp.report.terminal import overview_table, run_diagnosis

__all__ = ["TABLE", "Outcome", "make_report"]

TABLE = "table"


@dataclass(frozen=True)
class Outcome:
    """What `gradexp report` ends with.

    Attributes:
        output: for stdout: text in the format asked for, or a rich renderable for `table`.
        messages: for stderr, one line each: what was read, is missing and was written.
        exit_code: 0, or 1 when a run has a verdict named by `fail_on`.
    """

    output: RenderableType
    messages: list[str]
    exit_code: int


def make_report(  # noqa: PLR0913  one keyword for every option of the command
    paths: Sequence[Path],
    *,
    by: Sequence[str] = (),
    html: Path | None = None,
    figures: Path | None = None,
    format: str = TABLE,
    fail_on: Sequence[str] = (),
    rules: Path | None = None,
) -> Outcome:
    """Report runs: tables, and on demand figures and the page.

    Args:
        paths: run directories, sweep directories, or folders of them, in any mixture.
        by: config keys to group by, whole or by their last words; the keys that differ when empty.
        html: where to write the self-contained page.
        figures: the folder in which to write every figure as PNG, SVG and PDF.
        format: table, csv, markdown, json or latex.
        fail_on: verdicts that make the exit code 1 when a run has one as warning or critical.
        rules: a YAML file with limits for the rules.

    Raises:
        ConfigError: a path, key, format, verdict or rules file is wrong.
        RunError: there is no run below the paths, or a file cannot be written.
    """
    _check("--format", [format], [TABLE, *FORMATS])
    seen = overview(paths, by, rules)
    _check("--fail-on", fail_on, seen.verdict_names)
    messages = seen.status_lines()
    if figures:
        from gradexp.report.figures import write_figures

        messages += write_figures(seen, figures)
    if html:
        from gradexp.report.page import write_page

        messages += write_page(seen, html)
    failed = seen.with_verdict(fail_on)
    messages += [f"--fail-on: {run}" for run in failed]
    output = FORMATS[format](seen) if format != TABLE else _table(seen)
    return Outcome(output, messages, 1 if failed else 0)


def _table(seen: Overview) -> RenderableType:
    """Every cell; of a single run all that is to be said of it."""
    runs = seen.collection.runs
    if len(runs) != 1:
        return overview_table(seen)
    return Group(run_diagnosis(runs[0]), Text(), overview_table(seen))


def _check(option: str, words: Sequence[str], allowed: Sequence[str]) -> None:
    for word in words:
        if word not in allowed:
            raise ConfigError(
                f"{option}: '{word}' is not allowed; allowed: {', '.join(allowed)}."
                f"{nearest(word, allowed)}"
            )
