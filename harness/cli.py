"""The command `harness`. Heavy things are imported by the commands that need them."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import __version__
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.session import Changes, Session

BOARD = click.argument("board", required=False)
DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="HARNESS_DATA",
    help="Folder of the data sets  [env: HARNESS_DATA]",
)
OUT = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for records and tables  [default: the board's own]",
)
DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:i"
)
JSON = click.option("--json", "as_json", is_flag=True, help="Records on stdout, one a line.")


def changes(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that change a board, handed to the command as one `Changes`."""

    @click.option("--model", "models", multiple=True, help="Model, e.g. standard:arch=lenet5")
    @click.option(
        "--attack", "attacks", multiple=True, help="Attack, e.g. pgd:steps=100,restarts=10"
    )
    @click.option("--dataset", help="Data set, e.g. mnist:classes=0-1")
    @click.option("--norm", "norms", multiple=True, help="Linf, L2, L1, L0 or corruption")
    @click.option("--eps", "eps", multiple=True, help="Budget of the grid, e.g. 0.3 or 8/255")
    @click.option("--seed", "seeds", type=int, multiple=True, help="Seed of the board")
    @click.option("--limit", type=int, help="Evaluated test images")
    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> Any:
        from harness.session import Changes

        names = ("models", "attacks", "dataset", "norms", "eps", "seeds", "limit")
        return command(*args, changed=Changes(**{n: options.pop(n) for n in names}), **options)

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="harness")
def cli() -> None:
    """Benchmark of adversarial robustness: defenses x attacks, re-verified.

    `harness run` alone runs the built-in quick board and prints its leaderboard.
    """


@cli.command()
@BOARD
@changes
@DATA_DIR
@OUT
@JSON
@DEVICE
@click.option("--jobs", type=click.IntRange(1), help="Cells at a time  [default: the cores]")
@click.option("--executor", type=click.Choice(["inline", "process"]), help="Where cells run")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Seconds a cell may take")
@click.option(
    "--keep-examples", is_flag=True, help="Store adversarial images, for `verify` and `agreement`"
)
@click.option("--retry", is_flag=True, help="Run again what failed before")
@click.option("--force", is_flag=True, help="Run everything again")
def run(
    board: str | None,
    changed: Changes,
    data_dir: Path | None,
    out: Path | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Run a board: what is missing of it, then print its leaderboard.

    BOARD is a board.toml, a folder with one, or a name below leaderboards/; without it, the
    built-in quick board on scikit-learn's digits. What is stored is not run again.
    """
    from harness import commands

    how_ = commands.How(**how)  # before anything is read or written
    session = _session(board, changed, data_dir, out)
    sys.exit(commands.run(session, as_json=as_json, how=how_))


@cli.command()
@BOARD
@changes
@DATA_DIR
@OUT
@JSON
def plan(
    board: str | None, changed: Changes, data_dir: Path | None, out: Path | None, as_json: bool
) -> None:
    """Show every cell with its state: cached, new, stale, failed before, incompatible (and why)."""
    from harness import commands

    commands.plan(_session(board, changed, data_dir, out), as_json=as_json)


@cli.command()
@BOARD
@DATA_DIR
@OUT
@click.option(
    "--format",
    "form",
    type=click.Choice(["terminal", "markdown", "csv"]),
    default="terminal",
    show_default=True,
    help="How to print it",
)
@click.option("--cost", is_flag=True, help="Times and queries instead of accuracies")
@click.option("--matrix", is_flag=True, help="From model to model, of a board with a [matrix]")
@click.option("--eps", help="Another ε of the grid than the reference, for --matrix")
def report(board: str | None, data_dir: Path | None, out: Path | None, **shown: Any) -> None:
    """Print a board's leaderboard from its records alone; nothing is run."""
    from harness import commands
    from harness.session import locate

    shown_ = commands.Shown(**shown)
    sys.exit(commands.report(locate(board, out), data_dir, shown_))


@cli.command()
@BOARD
@DATA_DIR
@OUT
@DEVICE
def verify(board: str | None, data_dir: Path | None, out: Path | None, device: str) -> None:
    """Check records, and the adversarial images they kept (--keep-examples), by their models."""
    from harness import commands
    from harness.session import Changes

    sys.exit(commands.verify(_session(board, Changes(), data_dir, out), device))


@cli.command()
@BOARD
@DATA_DIR
@OUT
@JSON
@click.option("--judge", required=True, help="The model that is asked, by its label on the board")
@DEVICE
def agreement(
    board: str | None,
    data_dir: Path | None,
    out: Path | None,
    as_json: bool,
    judge: str,
    device: str,
) -> None:
    """A stand-in for people: does one model see a change in adversarial images of the others?

    Of the images that changed a model's correct label, kept by `harness run --keep-examples`, it
    prints the share that the judge gives the same adversarial label (it sees the change), the share
    that it gives the true one (no change), and the rest. No people are asked.
    """
    from harness import commands
    from harness.session import Changes

    session = _session(board, Changes(), data_dir, out)
    commands.agreement(session, judge, device, as_json=as_json)


@cli.command("list")
@click.argument("kind", type=click.Choice(["models", "attacks", "datasets", "plugins"]))
@JSON
def list_(kind: str, as_json: bool) -> None:
    """List what the installed plugins bring."""
    from harness import listing

    listing.list_kind(kind, _catalogue(), as_json=as_json)


@cli.command()
@click.argument("name")
@JSON
def show(name: str, as_json: bool) -> None:
    """Show a model, attack or data set: options with types and defaults, paper, access."""
    from harness import listing

    listing.show(name, _catalogue(), as_json=as_json)


@cli.command()
@JSON
def plugins(as_json: bool) -> None:
    """Every installed plugin with its status, and the reason where it did not load."""
    from harness import listing

    listing.list_kind("plugins", _catalogue(quiet=True), as_json=as_json)


@cli.command()
@click.argument("name")
@DATA_DIR
def fetch(name: str, data_dir: Path | None) -> None:
    """Download a data set's official files into --data-dir."""
    from harness import commands

    commands.fetch(name, _catalogue(), data_dir)


def _catalogue(*, quiet: bool = False) -> Any:
    from harness.registry import discover

    catalogue = discover()
    if not quiet:
        for plugin in catalogue.plugins:
            if plugin.status != "ok":
                click.echo(f"harness: plugin {plugin.id} left out: {plugin.reason}", err=True)
    return catalogue


def _session(
    board: str | None, changed: Changes, data_dir: Path | None, out: Path | None
) -> Session:
    from harness.session import locate, open_session

    session = open_session(locate(board, out), changed, _catalogue(), data_dir)
    for note in session.notes:
        click.echo(f"harness: {note}", err=True)
    return session


def main() -> None:
    """The entry point: every error the harness raises on purpose is one line and an exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("harness: interrupted; what was done is stored, run again to go on", err=True)
        sys.exit(130)
    except HarnessError as error:
        click.echo(f"harness: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("HARNESS_DEBUG"):
            raise
        click.echo(
            f"harness: internal error: {type(error).__name__}: {error} "
            "(HARNESS_DEBUG=1 shows where)",
            err=True,
        )
        sys.exit(3)
