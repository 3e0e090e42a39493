"""The verbs for sweeps and runs that are on disk; imports as `cli`, which adds them to itself."""

from pathlib import Path
from typing import Annotated, Any

import typer

Targets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SWEEP|RUN",
        help="A sweep: its id, the beginning of it, the name of a recipe (the newest sweep of it)"
        " or the path of its record. A run: its id, the beginning of it, or its directory."
        " sweep_root=DIR and run_root=DIR look elsewhere.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (status, logs, resume, cancel, report):
        app.command()(verb)


def status(
    targets: Targets = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Again and again, while anything is trained.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Show how far the runs of a sweep are; of the newest sweeps if none is named."""
    return _call("status", "status", targets or [], watch=watch, as_json=as_json)


def logs(
    targets: Targets = None,
    rank: Annotated[int, typer.Option("--rank", min=0, help="The log of this rank.")] = 0,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on while anything is trained.")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines of each log.")] = 20,
    as_json: Json = False,
) -> int:
    """Print the end of the ranks' logs."""
    options = {"rank": rank, "follow": follow, "lines": lines, "as_json": as_json}
    return _call("logs", "logs", targets or [], **options)


def resume(
    targets: Targets = None,
    config_dir: Annotated[
        Path | None,
        typer.Option(
            "--config-dir",
            metavar="DIR",
            help="Your own options, for runs whose directory is gone, and profiles of clusters.",
        ),
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try runs again that ended in a failure.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Go on with what is not done of a sweep or run, as it was asked for."""
    options = {"config_dir": config_dir, "retry": retry, "as_json": as_json}
    return _call("resume", "resume", targets or [], **options)


def cancel(targets: Targets = None, as_json: Json = False) -> int:
    """Ask who trains a sweep or run to save and stop, on this host or a cluster."""
    return _call("cancel", "cancel", targets or [], as_json=as_json)


def report(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="SWEEP",
            help="Its id, the beginning of it, the name of a recipe (the newest sweep of it) or the"
            " path of its record. sweep_root=DIR looks elsewhere.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Write it there, not beside the record."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Judge a sweep and write its report: HTML, Markdown, SVG, CSV and JSON."""
    return _call("report", "report", targets, output=output, as_json=as_json)


def _call(module: str, verb: str, *arguments: Any, **options: Any) -> int:
    from dsv3.commands.calling import call

    return call(module, verb, *arguments, **options)
