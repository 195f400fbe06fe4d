"""The command line: `gradexp COMMAND ...`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

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
Rules = Annotated[
    Path | None,
    typer.Option("--rules", metavar="FILE", help="Limits for the verdicts, instead of the run's."),
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
def run(  # noqa: PLR0913, PLR0917  one parameter per option
    config: ConfigPath,
    settings: Settings = None,
    out: OutDir = Path("runs"),
    device: Device = None,
    rules: Rules = None,
    fresh: Fresh = False,
) -> None:
    """Train one net and record its gradients and units; an interrupted run goes on."""
    from gradexp.cli.running import run_config

    run_config(config, _overrides(settings, device, rules), out, fresh=fresh)


@app.command()
@reporting_errors
def sweep(  # noqa: PLR0913, PLR0917  one parameter per option
    config: ConfigPath,
    settings: Settings = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=V1,V2", help="Add or replace an axis; repeatable."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, metavar="N", help="Replicates of every cell.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, metavar="N", help="Processes; default: cores.")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="Processes here, or Ray tasks.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option("--address", help="An existing Ray cluster; default: start one.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The sweep directory; default: sweeps/NAME."),
    ] = None,
    device: Device = None,
    rules: Rules = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells and an estimate, run nothing.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run failed cells again.")
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Start no further cell after a failure.")
    ] = False,
) -> None:
    """Run a grid of configs; the same command again goes on where it stopped."""
    from gradexp.cli.sweeping import carry_out, print_plan
    from gradexp.sweeps import SweepOptions, plan_sweep

    plan = plan_sweep(config, _overrides(settings, device, rules), grid or [], seeds)
    directory = out or Path("sweeps") / plan.name
    if dry_run:
        print_plan(plan, directory, workers)
        return
    options = SweepOptions(
        engine=engine,
        workers=workers,
        address=address,
        retry_failed=retry_failed,
        fail_fast=fail_fast,
    )
    raise typer.Exit(carry_out(plan, directory, options))


@app.command()
@reporting_errors
def status(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A sweep or a run.")],
    watch: Annotated[bool, typer.Option("--watch", help="Follow a sweep until it ends.")] = False,
    rules: Rules = None,
) -> None:
    """What is planned, running, finished, diverged or failed, and why a cell failed."""
    from gradexp.cli.sweeping import show_status

    show_status(directory, rules, watch=watch)


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
    rules: Rules = None,
) -> None:
    """Tables, verdicts, statistics over seeds, figures and one page, from run directories."""
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
        _print(outcome.output)
    for message in outcome.messages:
        typer.echo(message, err=True)
    raise typer.Exit(outcome.exit_code)


def _overrides(settings: list[str] | None, device: str | None, rules: Path | None) -> list[str]:
    """The options that stand for keys of the config, after the settings that they overrule."""
    return [
        *(settings or []),
        *([f"device={device}"] if device else []),
        # The file of a config is looked for beside the config, that of an option here.
        *([f"rules={json.dumps(str(rules.resolve()))}"] if rules else []),
    ]


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
    from gradexp.sweeps.schema import schema_with_sweep

    typer.echo(json.dumps(schema_with_sweep(), indent=2))


def _print(renderable: object) -> None:
    from gradexp.cli.streams import results

    results().print(renderable)
