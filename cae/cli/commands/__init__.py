"""The command line: one thin function for each command, in modules by what the commands do."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cae.cli import terminal
from cae.cli.commands import cluster, edit, evaluate, export, look, report, texts
from cae.cli.commands.open import open_result
from cae.cli.options import GIVEN_VECTORS
from cae.utils.termination import Terminated, terminating_as_ctrl_c

# Whatever needs torch is imported inside the commands: `cae --help` answers at once.

COMMANDS: dict[str, list[Callable[..., None]]] = {
    "Make a result": [cluster.cluster, cluster.demo, cluster.update, cluster.predict],
    "Look at it": [open_result, report.report, look.search, look.duplicates, look.compare],
    "Change it": [edit.cut],
    "Take it away": [export.export],
    "Measure": [evaluate.evaluate],
}
"""By what they are for, as `cae --help` lists them; each is called after its function, `open` after `open_result`."""

GROUPS = {"edit": ("Change it", edit.edit_app), "texts": ("Measure", texts.texts_app)}
"""Commands that have commands of their own, and where `cae --help` lists them."""

_WHOLE = "no file is left half-written: run the command again"
_EMBEDDED = "what is embedded so far is kept: run the command again to go on"
_EDITED = "the result is as it was, or changed as asked: `cae edit RESULT` shows it"
INTERRUPTED = {
    **dict.fromkeys(("cluster", "demo", "predict", "update", "evaluate", "texts"), _EMBEDDED),
    **dict.fromkeys(("edit", "cut"), _EDITED),
    "export": "what is exported so far is whole and stays: run the command again to go on",
    "open": "every edit is kept: run the command again to go on",
}
"""What an interruption leaves of each command; the others write whole files or none."""

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


class _Commands(TyperGroup):
    """Errors that a user can fix become one line and a non-zero exit."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except typer.BadParameter as error:
            # The prefix is pydantic's, by which newer versions of typer read options.
            error.message = error.message.removeprefix("Value error, ")
            raise
        except KeyboardInterrupt as error:
            left = _WHOLE if ctx.meta.get(GIVEN_VECTORS) else INTERRUPTED.get(ctx.invoked_subcommand, _WHOLE)
            terminated = isinstance(error, Terminated)
            terminal.warn(f"{'terminated' if terminated else 'interrupted'}; {left}")
            raise typer.Exit(EXIT_TERMINATED if terminated else EXIT_INTERRUPTED) from error
        except (ValueError, OSError, RuntimeError) as error:
            terminal.print_error(error)
            raise typer.Exit(EXIT_FAILURE) from error


app = typer.Typer(
    name="cae",
    cls=_Commands,
    help="Sort a pile of unlabelled pictures into named groups, without training anything.",
    epilog="Begin with `cae cluster FOLDER` and `cae open cae-result`, or, without pictures of your own, `cae demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for purpose, commands in COMMANDS.items():
    for command in commands:
        app.command(command.__name__.removesuffix("_result"), rich_help_panel=purpose)(command)
for name, (purpose, group) in GROUPS.items():
    app.add_typer(group, name=name, rich_help_panel=purpose)


_warning_lines = terminal.WarningLines(logging.WARNING)


def main() -> None:
    """Run the command line."""
    quiet_libraries()
    logging.getLogger("cae").addHandler(_warning_lines)
    with terminating_as_ctrl_c():
        app(prog_name="cae")


def quiet_libraries() -> None:
    """Leave out warnings that a user can do nothing about."""
    # Deprecations between libraries are their developers' business.
    warnings.filterwarnings("ignore", category=FutureWarning)
    # A damaged picture can bring a hundred; if it cannot be read, it is named in one line.
    warnings.filterwarnings("ignore", module="PIL")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Common options."""
    if version:
        from importlib.metadata import version as installed

        terminal.out.print(installed("cae-clustering"), highlight=False)
        raise typer.Exit
