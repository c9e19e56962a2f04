"""``python -m studies.reader_study``: a blinded reader study in the browser."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medqdm.cli.options import LARGEST_SEED
from medqdm.cli.terminal import console, end_cleanly_on_sigterm, say
from studies.command import app_of, run

_TABLE_WIDTH = 140  # figures that are cut short are worse than lines that wrap


def study(  # noqa: PLR0913, PLR0917  (each is an option)
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="OUT...",
            help="Folders that medqdm enhance wrote, or one study to go on with.",
        ),
    ],
    readers: Annotated[int, typer.Option(min=1, help="How many; each gets a link.")] = 2,
    source: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            metavar="SERIES",
            help="Where the series lie that they were made from; repeatable, in any order.",
        ),
    ] = None,
    reference: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(metavar="SERIES", help="The truth on the output's grid; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new study.")] = Path(
        "study"
    ),
    cases: Annotated[int, typer.Option(min=1, help="Stacks of slices, of all OUT together.")] = 24,
    stack: Annotated[int, typer.Option(min=1, help="Neighbouring slices of a case.")] = 5,
    repeat: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of pairs that each reader sees twice.")
    ] = 0.2,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=0, max=LARGEST_SEED, help="Of all that is drawn by lot; default: a new one."
        ),
    ] = None,
    slice_axis: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, max=2, help="NIfTI, NRRD, MHA: array axis across slices."),
    ] = None,
    analyse: Annotated[
        bool, typer.Option("--analyse", help="Unblind a study and say what came out.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the links, open nothing.")
    ] = False,
) -> None:
    """Compare enhanced, bicubic and reference slices blinded, reader by reader, in the browser."""
    import secrets

    from medqdm.errors import MedQDMError
    from studies.reader_study import is_study, make_study

    end_cleanly_on_sigterm()
    begins = not (len(folders) == 1 and is_study(folders[0]))
    if not begins and (source or reference or seed is not None):
        raise MedQDMError(
            f"{folders[0]}: a study must go on as it was made, got --source, "
            "--reference or --seed; leave them out, or make another study"
        )
    if analyse:
        _analyse_study(folders)
        return
    if begins:
        say("drawing cases and writing their images")
        made = make_study(
            folders,
            out,
            sources=source or (),
            references=reference or (),
            readers=readers,
            cases=cases,
            stack=stack,
            repeat=repeat,
            seed=secrets.randbelow(2**31) if seed is None else seed,
            slice_axis=slice_axis,
        )
        _show(f"{out}: {len(made.cases)} cases, seed {made.seed}; key.json tells the arms")
    _serve_study(out if begins else folders[0], port=port, opens=not no_browser)


def _analyse_study(folders: list[Path]) -> None:
    from studies.reader_study import analyse_study, tables_of, write_results

    for folder in folders:
        results = analyse_study(folder)
        for table in tables_of(results):
            _show_table(table)
        _show(f"written to {write_results(results, folder).name} and .json in {folder}")


def _show_table(found: Any) -> None:
    table = Table(*found.columns, title=found.title, title_justify="left", box=None)
    for row in found.rows:
        table.add_row(*map(escape, row))
    wide = Console(width=max(console.width, _TABLE_WIDTH), quiet=console.quiet)
    wide.print(table)
    for note in found.notes:
        _show(f"  {note}")
    _show("")


def _serve_study(folder: Path, *, port: int, opens: bool) -> None:
    """Print a link for each reader and serve until Ctrl+C."""
    import webbrowser

    from studies.reader_study import StudyServer

    with StudyServer(folder, port=port) as server:
        for reader, (done, total) in server.progress().items():
            print(f"{reader}  {server.links[reader]}  {done} of {total} pairs", flush=True)  # noqa: T201
        say("a link for each reader; Ctrl+C ends, 'python -m studies.reader_study FOLDER' goes on")
        if opens and len(server.links) == 1:
            webbrowser.open(next(iter(server.links.values())))
        try:
            server.wait()
        except KeyboardInterrupt:
            say("ended")


def _show(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


app = app_of(study)

if __name__ == "__main__":
    run(app)
