"""The command line: parse, call, exit. Only typer and the standard library are imported here.

Each verb's body is a function in `dsv3.commands` that returns the exit code; it is imported when
the verb is called, so that `dsv3 --help` costs no more than typer.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(
    name="dsv3",
    help="Declarative ablation experiments on DeepSeek-V3's pre-training ideas.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(
    help="Look at configurations: show, ls, diff, lint, schedule.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
data_app = typer.Typer(
    help="The text a run trains on: prepare, inspect.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Options and values, e.g. model=moe_nano balance=none schedule.lr=1e-3.",
        show_default=False,
    ),
]
Multirun = Annotated[
    bool,
    typer.Option(
        "--multirun", "-m", help="An arm for each value of a,b, range(), choice(), glob()."
    ),
]
ConfigDir = Annotated[
    Path | None,
    typer.Option(
        "--config-dir", metavar="DIR", help="Your own options; they shadow built-in ones."
    ),
]
Cfg = Annotated[
    str | None,
    typer.Option("--cfg", "-c", metavar="job", help="Print the composed configuration and exit."),
]
Package = Annotated[
    str | None, typer.Option("--package", "-p", metavar="KEY", help="Print this section only.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse what is only warned about.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; works behind every verb.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    del debug, version  # `run` takes both out of the arguments before typer sees them


@app.command()
def train(  # noqa: PLR0913, PLR0917 - what can be typed
    overrides: Overrides = None,
    multirun: Multirun = False,
    cfg: Cfg = None,
    config_dir: ConfigDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would start, and start nothing.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="On a cluster: follow the runs to their end.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try a run again that ended in a failure.")
    ] = False,
    strict: Strict = False,
    as_json: Json = False,
) -> int:
    """Train a run, go on with it, or print its result if it is done."""
    if cfg is not None:
        return _show(overrides, cfg, multirun=multirun, config_dir=config_dir, as_json=as_json)
    return _call(
        "train",
        "train",
        overrides or [],
        multirun=multirun,
        config_dir=config_dir,
        dry_run=dry_run,
        watch=watch,
        retry=retry,
        strict=strict,
        as_json=as_json,
    )


@app.command()
def plan(  # noqa: PLR0913, PLR0917 - typer makes an option of each
    overrides: Overrides = None,
    multirun: Multirun = False,
    cfg: Cfg = None,
    config_dir: ConfigDir = None,
    hardware: Annotated[
        str,
        typer.Option(metavar="NAME", help="GPUs: h800, h100, h200, b200, gb200, or a file."),
    ] = "h800",
    gpus: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="GPUs of the cluster; for one run without a layout: list the layouts that fit.",
            show_default=False,
        ),
    ] = None,
    imbalance: Annotated[
        float,
        typer.Option(metavar="MAXVIO", help="Largest expert load / mean load - 1, for memory."),
    ] = 1.0,
    usd_per_gpu_hour: Annotated[
        float | None,
        typer.Option(metavar="USD", help="Price; by default the profile's.", show_default=False),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Also draw the timeline.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write all of it as a page.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Run each stage's program without data: its bytes.")
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Compare the plan with published runs instead.")
    ] = False,
    strict: Strict = False,
    as_json: Json = False,
) -> int:
    """Compute what a run or a sweep needs and costs, before anything starts."""
    if cfg is not None:
        return _show(overrides, cfg, multirun=multirun, config_dir=config_dir, as_json=as_json)
    return _call(
        "plan",
        "plan",
        overrides or [],
        multirun=multirun,
        config_dir=config_dir,
        strict=strict,
        as_json=as_json,
        hardware=hardware,
        gpus=gpus,
        imbalance=imbalance,
        usd_per_gpu_hour=usd_per_gpu_hour,
        svg=svg,
        html=html,
        trace=trace,
        published=published,
    )


@app.command("eval")
def evaluate(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run directory, or the id of a run below run_root."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Of evaluation and launcher only, e.g. evaluation.sequences=256; and run_root, "
            "where to look for an id.",
            show_default=False,
        ),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option("--step", min=0, help="The checkpoint of this step, not the newest."),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="The average of the parameters, of a run with ema=on.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Evaluate a run: loss, bits per byte, load of the experts."""
    return _call("evaluate", "evaluate", run, overrides or [], step=step, ema=ema, as_json=as_json)


def _add_verbs_of_sweeps() -> None:
    from dsv3.cli_sweeps import add_to

    add_to(app)


_add_verbs_of_sweeps()


@config_app.command("show")
def config_show(
    overrides: Overrides = None,
    multirun: Multirun = False,
    package: Package = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> int:
    """Print the composed configuration."""
    return _show(
        overrides,
        "job",
        package=package,
        multirun=multirun,
        config_dir=config_dir,
        as_json=as_json,
    )


@config_app.command("ls")
def config_ls(
    group: Annotated[str | None, typer.Argument(help="Only this group.")] = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> int:
    """List the groups and their options."""
    return _call("config", "ls", group, config_dir=config_dir, as_json=as_json)


@config_app.command("diff")
def config_diff(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE",
            help="Arms to compare: sweep lists, as in balance=none,aux_free, or sets with `vs` "
            "between them, as in seed=2 vs model=moe_nano. A single configuration is compared "
            "with the default one.",
        ),
    ],
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> int:
    """Show where configurations differ."""
    return _call("config", "diff", words, config_dir=config_dir, as_json=as_json)


@config_app.command("lint")
def config_lint(
    overrides: Overrides = None,
    multirun: Multirun = False,
    config_dir: ConfigDir = None,
    strict: Strict = False,
    as_json: Json = False,
) -> int:
    """Name the known traps a configuration is in."""
    options = {"multirun": multirun, "config_dir": config_dir, "strict": strict}
    return _call("config", "lint", overrides or [], **options, as_json=as_json)


@config_app.command("schedule")
def config_schedule(
    overrides: Overrides = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Also draw the curves in a file.")
    ] = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> int:
    """Print and plot every curve: learning rate, batch size, bias speed, MTP weight."""
    return _call(
        "schedule", "schedule", overrides or [], svg=svg, config_dir=config_dir, as_json=as_json
    )


@data_app.command("prepare")
def data_prepare(
    overrides: Overrides = None, config_dir: ConfigDir = None, as_json: Json = False
) -> int:
    """Read, tokenise and shard the text of a configuration, once."""
    return _call("data", "prepare", overrides or [], config_dir=config_dir, as_json=as_json)


@data_app.command("inspect")
def data_inspect(
    overrides: Overrides = None, config_dir: ConfigDir = None, as_json: Json = False
) -> int:
    """Say what the prepared text of each domain is, with samples."""
    return _call("data", "inspect", overrides or [], config_dir=config_dir, as_json=as_json)


@app.command()
def doctor(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="launcher=slurm launcher.profile=NAME looks at nodes of that cluster, too.",
            show_default=False,
        ),
    ] = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> int:
    """Look at this machine: what is installed, what it can run."""
    return _call("doctor", "doctor", overrides or [], config_dir=config_dir, as_json=as_json)


@app.command()
def completion(
    shell: Annotated[
        str,
        typer.Argument(metavar="bash|zsh|fish", help='The shell: eval "$(dsv3 completion bash)".'),
    ],
) -> int:
    """Print a script that completes words in a shell."""
    return _call("completion", "completion", shell)


@app.command("complete", hidden=True, context_settings={"ignore_unknown_options": True})
def complete(words: Annotated[list[str] | None, typer.Argument()] = None) -> int:
    """Print what may follow; called by the completion scripts."""
    return _call("completion", "complete", words or [], typer.main.get_command(app))


def main() -> NoReturn:
    """Entry point of the `dsv3` command."""
    from dsv3.commands import signals, streams

    streams.open_all()
    signals.raise_when_stopped()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing is raised."""
    words = list(arguments)
    if "--debug" in words:
        words.remove("--debug")
        os.environ["DSV3_DEBUG"] = "1"
    if words[:1] == ["--version"]:
        from dsv3 import __version__

        typer.echo(f"dsv3 {__version__}")
        return 0
    try:
        code = typer.main.get_command(app)(words, prog_name="dsv3", standalone_mode=False)
    except typer.exceptions.TyperException as error:
        return _usage(error, as_json="--json" in words)
    return int(code or 0)


def _show(overrides: list[str] | None, what: str, **options: Any) -> int:
    return _call("config", "show", overrides or [], what=what, **options)


def _call(module: str, verb: str, *arguments: Any, **options: Any) -> int:
    """Run the body of a verb; every exception becomes a message and an exit code."""
    from dsv3.commands.calling import call

    return call(module, verb, *arguments, **options)


def _usage(error: typer.exceptions.TyperException, *, as_json: bool) -> int:
    """A command line typer cannot parse."""
    from dsv3.redaction import RedactingStream

    show = getattr(error, "show", None)
    if show is not None:
        show(file=RedactingStream(sys.stderr))
    if as_json:
        from dsv3.commands import console
        from dsv3.errors import ConfigError

        console.write_json(console.as_data(ConfigError(error.format_message())))
    return error.exit_code


if __name__ == "__main__":
    main()
