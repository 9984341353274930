"""The commands: they read arguments, call the package, and print; nothing is computed here."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from cbtlab import __version__
from cbtlab.console import (
    FOLDER,
    POLICIES,
    SIZE,
    UNUSABLE,
    answer,
    as_json,
    force,
    instant_ns,
    let_go,
    say,
    status,
    with_rules,
)
from cbtlab.errors import CbtlabError, InputError
from cbtlab.folders import require_regular
from cbtlab.rule_commands import dry_run, rules
from cbtlab.units import format_bytes, parse_time


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Analyse and prove block-level incremental backups.

    Exit status: 0 done and every check holds; 1 a check or verification found
    something; 2 the input or the call cannot be used.
    """


cli.add_command(dry_run)
cli.add_command(rules)


@cli.command()
@click.argument("case", type=FOLDER)
@click.option("--out", type=FOLDER, help="Folder for the results (default ./audit-NAME).")
@click.option("--policy", type=click.Choice(POLICIES), default="allocated", show_default=True)
@click.option(
    "--scrub",
    is_flag=True,
    help="Overwrite in the chain what no reading of its files returns: journal, slack, records.",
)
@force
@as_json
def audit(
    case: Path, out: Path | None, policy: str, scrub: bool, force: bool, as_json: bool
) -> None:
    """Audit CASE: replay, exclude, plan, write the chain, restore, run every check."""
    from cbtlab import audit as auditing
    from cbtlab import report
    from cbtlab.case import Case

    opened = Case.open(case)
    out = out or Path(f"audit-{opened.name}")
    result = auditing.run(opened, out, policy, force, scrub=scrub, report=report.write)
    answer(result.document(), as_json, lambda: f"{result.text()}\n{out}")
    status(result.holds)


@cli.group()
def case() -> None:
    """Make a case from recordings, show it, check its digests."""


@case.command("create")
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--volume-size", type=SIZE, required=True, help="Bytes of the volume.")
@click.option("--granularity", type=SIZE, required=True, help="A power of two, 512 to 1M.")
@force
@as_json
def case_create(
    folder: Path, volume_size: int, granularity: int, force: bool, as_json: bool
) -> None:
    """Make an empty case in DIR."""
    from cbtlab.case import Case

    made = Case.create(folder, volume_size, granularity, force=force)
    answer(made.document(), as_json, f"{folder}: a case of {made.blocks} blocks, empty")


@case.command("add")
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--snapshot", type=FOLDER, required=True, help="Image of S_k before the delete.")
@click.option("--mended", type=FOLDER, help="Image of S_k at rest, where it was mended first.")
@click.option("--stored", type=FOLDER, required=True, help="Image of S_k* after the delete.")
@click.option("--physical", type=FOLDER, help="Writes on the physical volume since the last.")
@click.option("--snapshot-writes", type=FOLDER, help="Writes on this snapshot.")
@click.option("--physical-bitmap", type=FOLDER, help="The tracker's bitmap of the volume.")
@click.option("--snapshot-bitmap", type=FOLDER, help="The tracker's bitmap of the snapshot.")
@with_rules
@click.option("--not-kept", is_flag=True, help="This backup was thrown away.")
@as_json
def case_add(
    folder: Path,
    snapshot: Path,
    mended: Path | None,
    stored: Path,
    physical: Path | None,
    snapshot_writes: Path | None,
    physical_bitmap: Path | None,
    snapshot_bitmap: Path | None,
    exclude: tuple[str, ...],
    exclude_from: Path | None,
    sets: tuple[str, ...],
    instant: str | None,
    not_kept: bool,
    as_json: bool,
) -> None:
    """Add the next backup to the case in DIR."""
    from cbtlab.case import Case
    from cbtlab.exclude import collect_rules

    opened = Case.open(folder)
    for path in (physical, snapshot_writes, physical_bitmap, snapshot_bitmap, exclude_from):
        if path is not None:
            require_regular(path)
    rules = collect_rules(exclude_from, exclude, sets)
    writes = {"physical": physical, "snapshot": snapshot_writes}
    bitmaps = {"physical": physical_bitmap, "snapshot": snapshot_bitmap}
    added = opened.add(
        snapshot=snapshot,
        mended=mended,
        stored=stored,
        writes={volume: path for volume, path in writes.items() if path},
        bitmaps={volume: path for volume, path in bitmaps.items() if path},
        patterns=list(rules.rules),
        sets=list(rules.sets),
        instant_ns=instant_ns(instant),
        kept=not not_kept,
    )
    answer(opened.document(), as_json, f"{folder}: backup {added.k} added")


@case.command("show")
@click.argument("path", type=FOLDER, metavar="CASE")
@as_json
def case_show(path: Path, as_json: bool) -> None:
    """Show what is in CASE."""
    from cbtlab.case import Case

    opened = Case.open(path)
    answer(opened.document(), as_json, opened.text)


@case.command("verify")
@click.argument("path", type=FOLDER, metavar="CASE")
@as_json
def case_verify(path: Path, as_json: bool) -> None:
    """Check every digest of CASE."""
    from cbtlab.case import verify

    _verdict(verify(path), path, as_json)


def _verdict(faults: list[Any], path: Path, as_json: bool) -> None:
    document = {"holds": not faults, "faults": [fault.document() for fault in faults]}
    lines = [f"{path}: {fault.piece}: {fault.fault}" for fault in faults]
    answer(document, as_json, "\n".join(lines) or f"{path}: every piece is whole")
    status(not faults)


@cli.command()
@click.argument("source", type=FOLDER)
@click.option("--to", type=FOLDER, metavar="FILE", help="Save as .parquet or .csv.")
@click.option("--tracker", type=click.IntRange(1), metavar="ID", help="Of a stream: only this.")
@click.option("--salvage", is_flag=True, help="Read what is left of a stream that was cut.")
@force
@as_json
def writes(
    source: Path, to: Path | None, tracker: int | None, salvage: bool, force: bool, as_json: bool
) -> None:
    """Read a write sequence: a native stream, Parquet, CSV, or all of a case."""
    from cbtlab.case import MANIFEST, Case
    from cbtlab.writes import read_writes, save_writes
    from cbtlab.writes.by_tracker import is_stream, read_by_tracker

    if (source / MANIFEST).is_file():
        frame = Case.open(source).writes
        summary = frame.writes.summary()
    else:
        require_regular(source)
        if tracker is not None or is_stream(source):
            frame, summary = read_by_tracker(source, tracker=tracker, salvage=salvage)
        else:
            frame = read_writes(source, salvage=salvage)
            summary = frame.writes.summary()
    for note in frame.attrs.get("notes") or ():
        say(f"{source}: {note}")
    if to:
        save_writes(frame, to, force=force)
        say(f"{to}: {len(frame)} rows")
    answer(
        summary, as_json, lambda: f"{frame}\n" + "\n".join(f"{k}: {v}" for k, v in summary.items())
    )


@cli.command()
@click.argument("case", type=FOLDER)
@click.option("--interval", type=click.IntRange(0), required=True, metavar="K")
@click.option("--until", metavar="TIME", help="Replay up to this instant, inclusive.")
@click.option("--to", type=FOLDER, metavar="DIR", help="Save the four bitmaps here.")
@force
@as_json
def replay(
    case: Path, interval: int, until: str | None, to: Path | None, force: bool, as_json: bool
) -> None:
    """Show the bitmaps of interval K at an instant, and their merge."""
    from cbtlab.case import Case
    from cbtlab.replay import Replay, save

    opened = Case.open(case)
    opened.interval(interval)
    instant = None if until is None else parse_time(until, "--until")
    merged = Replay(opened).merged(interval, until=instant)
    document = merged.document(interval, until)
    if to:
        save(merged, document, to, force=force)
        say(f"{to}: four bitmaps")
    answer(document, as_json, lambda: "\n".join(f"{key}: {v}" for key, v in document.items()))


@cli.command()
@click.argument("image", type=FOLDER)
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("--offset", type=SIZE, help="Where the file system begins in the image.")
@as_json
def files(image: Path, patterns: tuple[str, ...], offset: int | None, as_json: bool) -> None:
    """List the files of a file system in IMAGE, with their extents.

    A folder in its place is a mounted snapshot, which the kernel is asked about.
    """
    from cbtlab.files.fiemap import mounted_listing
    from cbtlab.files.listing import listing, listing_text
    from cbtlab.images import open_image

    if image.is_dir():
        if offset is not None:
            raise InputError("--offset", "is of an image, and this is a folder", "leave it out")
        document = mounted_listing(image, patterns)
    else:
        with open_image(image) as opened:
            document = listing(opened, offset or 0, patterns)
    for note in document["notes"]:
        say(f"{image}: {note}")
    answer(document, as_json, lambda: listing_text(document))


@cli.command()
@click.argument("case", type=FOLDER)
@click.option("--interval", type=click.IntRange(0), required=True, metavar="K")
@click.option("--block", type=click.IntRange(0), required=True, metavar="N")
@click.option("--policy", type=click.Choice(POLICIES), default="allocated", show_default=True)
@as_json
def explain(case: Path, interval: int, block: int, policy: str, as_json: bool) -> None:
    """Tell the story of block N in backup K: its writes, its owner, and what became of it."""
    from cbtlab import explain as explaining
    from cbtlab.case import Case

    document = explaining.explain(Case.open(case), interval, block, policy)
    answer(document, as_json, lambda: explaining.text(document))


@cli.group()
def chain() -> None:
    """Show, verify and restore a chain of backups, by itself."""


@chain.command("show")
@click.argument("folder", type=FOLDER, metavar="DIR")
@as_json
def chain_show(folder: Path, as_json: bool) -> None:
    """Show the links of the chain in DIR."""
    from cbtlab.chain import chain_document, chain_text, open_chain

    document = chain_document(open_chain(folder))
    answer(document, as_json, lambda: chain_text(document))


@chain.command("verify")
@click.argument("folder", type=FOLDER, metavar="DIR")
@as_json
def chain_verify(folder: Path, as_json: bool) -> None:
    """Check every link of the chain in DIR against its digests and its base."""
    from cbtlab.chain import verify

    _verdict(verify(folder), folder, as_json)


@chain.command("restore")
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--at", type=click.IntRange(0), required=True, metavar="K")
@click.option("--to", type=FOLDER, required=True, metavar="FILE", help="The raw image to write.")
@force
@as_json
def chain_restore(folder: Path, at: int, to: Path, force: bool, as_json: bool) -> None:
    """Restore backup K of the chain in DIR to a raw image."""
    from cbtlab.chain import open_chain, restore

    document = restore(open_chain(folder), at, to, force=force)
    answer(document, as_json, f"{to}: backup {at}, {format_bytes(document['size'])}")


@cli.group()
def lab() -> None:
    """Record cases in a throw-away virtual machine, by the real kernel module."""


@lab.command("list")
@as_json
def lab_list(as_json: bool) -> None:
    """List the scenarios."""
    from cbtlab.lab import scenarios

    document = {"scenarios": scenarios()}
    lines = [f"{item['name']:16} {item['summary']}" for item in document["scenarios"]]
    answer(document, as_json, "\n".join(lines))


@lab.command("run")
@click.argument("name")
@click.option("--kernel", type=click.Choice(["6.1", "6.12"]), default="6.1", show_default=True)
@click.option("--to", type=FOLDER, required=True, metavar="CASE", help="The case to make.")
@force
@as_json
def lab_run(name: str, kernel: str, to: Path, force: bool, as_json: bool) -> None:
    """Run scenario NAME and pack what was recorded into a case."""
    from cbtlab.lab import run

    made = run(name, kernel, to, force=force)
    answer(made.document(), as_json, f"{to}: {len(made.intervals)} backups recorded")


class Terminated(BaseException):
    """SIGTERM: everything is cleaned up as after Ctrl-C."""


def main() -> None:
    """Run the command line; every failure is one line and exit status 2."""
    _open_standard_streams()
    try:
        with _terminable():
            cli.main(prog_name="cbtlab", standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted", 130)
    except Terminated:
        fail("terminated", 143)
    except click.exceptions.NoArgsIsHelpError as error:
        assert error.ctx is not None
        click.echo(error.ctx.get_help())
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "cbtlab"
        fail(f"{' '.join(error.format_message().split()).rstrip('.')}; see '{path} --help'")
    except CbtlabError as error:
        fail(str(error))
    except BrokenPipeError:
        let_go(sys.stdout)
        sys.exit(141)
    except OSError as error:
        fail(str(InputError(error.filename or "the system", error.strerror or str(error))))
    except MemoryError:
        fail("the memory does not suffice; the input is too large for this machine")
    except Exception as error:  # no traceback for a person who cannot mend it
        told = " ".join(str(error).split())[:500]
        fail(f"an unexpected fault: {type(error).__name__}: {told}; please report it")


def fail(line: str, code: int = UNUSABLE) -> NoReturn:
    """Print one line on stderr and leave."""
    say(f"cbtlab: {line}")
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        let_go(sys.stdout)
    sys.exit(code)


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn the first SIGTERM into an exception; a second one does not disturb the cleaning up."""

    def end(number: int, frame: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread: the program that called decides
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _open_standard_streams() -> None:
    """Open what of the standard streams is closed, or a file of ours would take its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
