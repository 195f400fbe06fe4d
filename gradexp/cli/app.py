"""The command line: `gradexp COMMAND ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradexp.cli.errors import reporting_errors

app = typer.Typer(
    name="gradexp",
    help="Find out by experiment what makes gradients vanish or explode, and what cures it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set a dotted key over the file's; repeatable."
    ),
]
OutDir = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where run directories go.")]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or mps.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin anew, whatever is there.")]


@app.callback(invoke_without_command=True)
def version(
    *,
    show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Find out by experiment what makes gradients vanish or explode, and what cures it."""
    if show:
        from gradexp import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
@reporting_errors
def run(
    config: ConfigPath,
    settings: Settings = None,
    out: OutDir = Path("runs"),
    device: Device = None,
    fresh: Fresh = False,
) -> None:
    """Train one net and record its gradients and units; an interrupted run goes on."""
    from gradexp.cli.running import run_config

    overrides = [*(settings or []), *([f"device={device}"] if device else [])]
    run_config(config, overrides, out, fresh=fresh)


@app.command()
@reporting_errors
def report(  # noqa: PLR0913, PLR0917  one parameter per option
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Runs, sweeps, or folders of them.")
    ],
    by: Annotated[
        str, typer.Option("--by", metavar="KEY,KEY", help="Group by these config keys.")
    ] = "",
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page.")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="DIR", help="Write PNG, SVG and PDF figures."),
    ] = None,
    format: Annotated[
        str, typer.Option("--format", help="table, csv, markdown, json or latex.")
    ] = "table",
    fail_on: Annotated[
        str,
        typer.Option(
            "--fail-on", metavar="VERDICT,...", help="Exit with 1 on one of these verdicts."
        ),
    ] = "",
    rules: Annotated[
        Path | None, typer.Option("--rules", metavar="FILE", help="Other limits for the verdicts.")
    ] = None,
) -> None:
    """Tables, verdicts, statistics over seeds, figures and one page, from run directories."""
    from rich.console import Console

    from gradexp.report import make_report

    outcome = make_report(
        paths,
        by=_words(by),
        html=html,
        figures=figures,
        format=format,
        fail_on=_words(fail_on),
        rules=rules,
    )
    if isinstance(outcome.output, str):
        typer.echo(outcome.output, nl=False)
    else:
        Console().print(outcome.output)
    for message in outcome.messages:
        typer.echo(message, err=True)
    raise typer.Exit(outcome.exit_code)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@app.command("list")
@reporting_errors
def list_parts(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="One kind, with options and sources.")
    ] = None,
) -> None:
    """What can be chosen: activations, inits, norms, models, data sets, ..."""
    from gradexp.cli.listing import listing

    _print(listing(kind))


@app.command()
@reporting_errors
def show(config: ConfigPath, settings: Settings = None) -> None:
    """The resolved config and the layers of its net, without training."""
    from gradexp.cli.showing import layer_table
    from gradexp.config import load_config, to_yaml

    resolved = load_config(config, settings or [])
    typer.echo(to_yaml(resolved))
    _print(layer_table(resolved))


@app.command()
@reporting_errors
def schema() -> None:
    """The JSON Schema of a config, for editors."""
    import json

    from gradexp.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _print(renderable: object) -> None:
    from rich.console import Console

    Console().print(renderable)
