"""Commands about versions and the gate itself: compare, push, export, gate replay and gate power."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nightgate.cli.options import OutputFormat, PipelineName, VersionName, name_of, nothing_yet, say, show
from nightgate.cli.tables_as_text import Format
from nightgate.errors import ConfigurationError
from nightgate.frames.dates import date_of
from nightgate.plain_text import as_json

if TYPE_CHECKING:
    from nightgate.analysis.comparison import Comparison
    from nightgate.home import Home
    from nightgate.reports.pictures import Picture

gate_app = typer.Typer(help="Other policies on past nights; what the test rows can detect.", no_args_is_help=True)


class ExportFormat(StrEnum):
    onnx = "onnx"


def compare(
    pipeline: PipelineName,
    first: Annotated[str, typer.Argument(metavar="A", help="A version: a number, `champion` or `previous`.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Score both now on the newest test rows, without storing it.")
    ] = False,
    output: OutputFormat = Format.table,
) -> None:
    """Compare two versions on the same test rows.

    By class and slice, and in data, configuration, code and environment.
    """
    from nightgate.analysis import comparison
    from nightgate.database.transactions import Database
    from nightgate.home import existing_home
    from nightgate.registry import champions as registry

    home, name = existing_home(), name_of(pipeline)
    with Database.open(home) as db:
        a, b = (registry.resolve_version(db, name, text) for text in (first, second))
        if a.version == b.version:
            raise ConfigurationError(
                f"{first} and {second} are the same version, {a.version}",
                next_step=f"name two of `nightgate versions {name}`",
            )
        found = comparison.compare(db, a, b, comparison.scored_now(db, home, a, b) if rescore else None)
    if output is Format.json:
        typer.echo(as_json(found.record()), color=True)
    else:
        _show_comparison(found, output)


def push(
    pipeline: PipelineName,
    version: VersionName,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub; created if missing.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all and list the files, upload nothing.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    branch: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Branch to upload to; created if missing.")
    ] = None,
) -> None:
    """Upload a version to the Hugging Face Hub.

    Model, card and lineage. The token comes from HF_TOKEN or a login.
    """
    import tempfile

    from humanize import naturalsize

    from nightgate.database.transactions import Database
    from nightgate.home import existing_home
    from nightgate.registry import champions as registry
    from nightgate.registry import hub_push

    home, name = existing_home(), name_of(pipeline)
    hub_push.check_name(repo)
    with Database.open(home) as db:
        row = registry.resolve_version(db, name, version)
        revision, verdict = hub_push.recorded_facts(db, row)
    with tempfile.TemporaryDirectory(prefix="nightgate-push-") as folder:
        target = Path(folder)
        files = hub_push.lay_out(row.folder(home), target, repo, home=home.root, revision=revision, verdict=verdict)
        for file in files:
            say(f"{file.relative_to(target)}  {naturalsize(file.stat().st_size)}")
        if dry_run:
            hub_push.check(repo, private=private)
            say(f"dry run: version {row.version} was not uploaded to {repo}", err=True)
            return
        url = hub_push.push(target, repo, message=f"{name} version {row.version}", private=private, branch=branch)
    say(f"version {row.version} of {name} is at {url}")


def export(
    pipeline: PipelineName,
    version: VersionName,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that does not exist yet.")],
    kind: Annotated[ExportFormat, typer.Option("--format", help="Format to write.")] = ExportFormat.onnx,
) -> None:
    """Write a version as ONNX, checked against the original.

    On its own test rows.
    """
    del kind  # ONNX is the only one.
    from nightgate.database.transactions import Database
    from nightgate.home import existing_home
    from nightgate.registry import champions as registry
    from nightgate.registry import onnx_export

    home, name = existing_home(), name_of(pipeline)
    with Database.open(home) as db:
        row = registry.resolve_version(db, name, version)
    parity = onnx_export.export_onnx(row.folder(home), folder, onnx_export.texts_for(home, row))
    say(f"version {row.version} of {name} is at {folder}: {parity}")


Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="gate.x=value", help="Another policy: any field of [gate].")
]
REPLAY_COLUMNS = (
    *("night", "verdict", "replayed", "flips", "chain_verdict", "run_id", "status", "candidate_f1", "champion_f1"),
    *("reason", "champion_version", "chain_version", "chain_f1"),
)
"""By importance: a table shows those that fit."""


@gate_app.command("power")
def power(pipeline: PipelineName, settings: Settings = None, output: OutputFormat = Format.table) -> None:
    """Show which gain is detectable with how many test rows.

    From the newest night that was compared with a champion.
    """
    import pandas as pd

    from nightgate.analysis.power import newest_power
    from nightgate.database.transactions import Database
    from nightgate.home import existing_home
    from nightgate.pipeline_files import parse_settings
    from nightgate.reports.gate_charts import power_curve

    home, name = existing_home(), name_of(pipeline)
    with Database.open(home, any_home=True) as db:
        found = newest_power(db, name, parse_settings(settings or ()))
    sizes = found.sizes()
    rows = {
        "test_rows": sizes,
        "std_error": [found.error_with(size) for size in sizes],
        "detectable_gain": [found.detectable_with(size) for size in sizes],
        "night": [found.night if size == found.rows else None for size in sizes],
    }
    show(pd.DataFrame(rows), output)
    say(found.describe(), err=True)
    _save(home, name, power_curve(found))


@gate_app.command("replay")
def replay(
    pipeline: PipelineName,
    settings: Settings = None,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Score versions on nights that lack their scores, without storing it.")
    ] = False,
    since: Annotated[str | None, typer.Option(metavar="DATE", help="Nights from this date on.")] = None,
    output: OutputFormat = Format.table,
) -> None:
    """Decide past nights again under another policy.

    From their stored evidence; and follow the champions that it would promote.
    """
    from nightgate.analysis import rescoring
    from nightgate.analysis.replay import as_frame, summary
    from nightgate.analysis.replay import replay as replayed
    from nightgate.database.transactions import Database
    from nightgate.home import existing_home
    from nightgate.pipeline_files import parse_settings
    from nightgate.reports.gate_charts import ChampionAt, champions

    home, name = existing_home(), name_of(pipeline)
    overrides = parse_settings(settings or ())
    with Database.open(home, any_home=not rescore) as db:
        rescorer = rescoring.rescorer(db, home) if rescore else None
        first = date_of(since) if since else None
        nights = list(replayed(db, name, overrides, since=first, rescorer=rescorer))
    frame = as_frame(nights)
    show(
        frame,
        output,
        nothing_yet(f"no night of {name} reached the gate{f' since {since}' if since else ''}", name),
        columns=REPLAY_COLUMNS,
        before="break_before",
    )
    if nights:
        say(summary(nights, rescored=rescore), err=True)
        policy = ", ".join(settings or ()) or "the same policy"
        points = [
            ChampionAt(
                night=one.night,
                f1=one.champion_f1,
                promoted=one.status == "promoted",
                chain_f1=one.chain.champion_f1,
                chain_promoted=one.chain.verdict == "promote",
                after_break=breaks,
            )
            for one, breaks in zip(nights, frame["break_before"].notna(), strict=True)
        ]
        _save(home, name, champions(points, policy))


def _save(home: Home, pipeline: str, picture: Picture) -> None:
    """Write a picture to `reports/<pipeline>/<name>.svg` in the home, if this user may."""
    from nightgate.durable_files import write_whole
    from nightgate.errors import StorageError

    path = home.root / "reports" / pipeline / f"{picture.name}.svg"
    try:
        write_whole(path, picture.svg.encode())
    except StorageError as error:
        say(f"no picture: {error.reason}", err=True)
    else:
        say(f"picture: {path}", err=True)


def _show_comparison(found: Comparison, output: Format) -> None:
    import pandas as pd

    if output is Format.csv:
        rows = [
            {
                "section": section.name,
                "name": pair.name,
                "a": pair.first,
                "b": pair.second,
                "difference": pair.difference,
            }
            for section in found.sections
            for pair in section.pairs
        ]
        show(pd.DataFrame(rows), output)
        return
    for section in found.sections:
        say(f"\n{section.title}" + (f": {section.note}" if section.note else ""))
        if section.pairs:
            columns = ("", f"version {found.first}", f"version {found.second}", "difference")
            cells = [(pair.name, pair.first, pair.second, pair.difference) for pair in section.pairs]
            frame = pd.DataFrame(cells, columns=list(columns), dtype=object)
            show(frame if frame["difference"].notna().any() else frame.drop(columns="difference"), output)
