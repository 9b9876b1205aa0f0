"""Commands that change a result by hand: `cae edit RESULT …`, and `cae cut`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from cae.cli import terminal
from cae.cli.commands.report import redraw
from cae.cli.options import Images, Quiet, Redraw, ResultFolder, existing

if TYPE_CHECKING:
    from cae.api import Result

Cluster = Annotated[str, typer.Argument(help="A group's name or number.", metavar="GROUP")]
Clusters = Annotated[list[str], typer.Argument(help="Names or numbers of groups.", metavar="GROUP")]


class _ResultFirst(TyperGroup):
    """Says so where a command stands in the place of the result, which would be looked for by its name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] in self.commands and not Path(args[0]).is_dir():
            command = f"cae edit RESULT {shlex.join(args)}"
            raise typer.BadParameter(f"the folder of the result comes first: {command}", ctx)
        return super().parse_args(ctx, args)


edit_app = typer.Typer(
    cls=_ResultFirst,
    help="Rename, merge, split and pin groups, or move single pictures. Edits are kept beside the result, shown in "
    "exports and reports, and applied again after the next `cae cluster` into the same folder.",
    subcommand_metavar="[COMMAND] [ARGS]...",
)


@edit_app.callback(invoke_without_command=True)
def edit(
    context: typer.Context,
    # Looked for and opened by the command: its --help needs none.
    result: Annotated[Path, typer.Argument(help="A result of `cae cluster`.", metavar="RESULT")],
) -> None:
    """Without a command: show the groups as edited, and the edits."""
    context.obj = result
    if context.invoked_subcommand is None:
        existing(result)
        terminal.note_loading(quiet=False)
        from cae.results.saved import SavedResult

        terminal.print_edits(SavedResult.load(result))


@edit_app.command()
def rename(
    context: typer.Context,
    cluster: Cluster,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    report: Redraw = True,
) -> None:
    """Call a group something else."""
    _show(_open(context).rename(cluster, name), report)


@edit_app.command()
def merge(
    context: typer.Context,
    clusters: Clusters,
    name: Annotated[str | None, typer.Option(help="Of the merged group; by default the first one's.")] = None,
    report: Redraw = True,
) -> None:
    """Make several groups one."""
    _show(_open(context).merge(clusters, name), report)


@edit_app.command()
def split(
    context: typer.Context,
    cluster: Cluster,
    into: Annotated[int, typer.Option(min=2, help="Number of parts.")] = 2,
    report: Redraw = True,
) -> None:
    """Take a group apart by what its pictures look like."""
    _show(_open(context).split(cluster, into), report)


@edit_app.command()
def pin(context: typer.Context, clusters: Clusters, report: Redraw = True) -> None:
    """Keep the pictures and the name of groups, whatever the next fit finds."""
    _show(_open(context).pin(*clusters), report)


@edit_app.command()
def move(
    context: typer.Context,
    pictures: Annotated[
        list[str],
        typer.Argument(help="Paths of pictures, as the result has them or on disk.", metavar="PICTURE"),
    ],
    to: Annotated[str, typer.Option(help="Name or number of the group.")],
    report: Redraw = True,
) -> None:
    """Put single pictures into another group."""
    _show(_open(context).move(pictures, to), report)


@edit_app.command()
def undo(context: typer.Context, report: Redraw = True) -> None:
    """Take the last edit back."""
    result = _open(context).undo()
    terminal.out.print(f"taken back: {result.saved.history.undone[0]}", highlight=False, soft_wrap=True)
    redraw(result.folder, report=report)


@edit_app.command()
def redo(context: typer.Context, report: Redraw = True) -> None:
    """Make the edit again that was taken back last."""
    _show(_open(context).redo(), report)


def cut(
    result: ResultFolder,
    clusters: Annotated[int, typer.Option("--clusters", "-k", help="Number of groups.", metavar="N")],
    images: Images = None,
    report: Redraw = True,
    quiet: Quiet = False,
) -> None:
    """Show a result at another level of its tree of groups, coarser or finer, without a new fit; edits stay."""
    terminal.note_loading(quiet=quiet)
    from cae.api import Result

    saved = Result(result, images=images).cut(clusters).saved
    if quiet:
        terminal.print_unmatched_edits(saved)
    else:
        terminal.print_edits(saved)
    redraw(result, report=report, images=images, quiet=quiet)


def _open(context: typer.Context) -> Result:
    existing(context.obj)
    terminal.note_loading(quiet=False)
    from cae.api import Result

    return Result(context.obj)


def _show(result: Result, report: bool) -> None:
    """Show the groups as they are now."""
    terminal.print_edits(result.saved)
    redraw(result.folder, report=report)
