# SPDX-License-Identifier: Apache-2.0
"""`pycloud doctor`: what this machine can do, what it lacks, and the command that mends it."""

from collections import Counter
from dataclasses import asdict

import click
from rich.text import Text

from pycloud.cli.failures import ExitCode, Quiet, printable
from pycloud.cli.framework import Command, config_option
from pycloud.cli.output import Json, Printer
from pycloud.cli.session import Session
from pycloud.core.model.diagnosis import Finding, Verdict

_MARKS = {
    Verdict.OK: ("ok  ", "green"),
    Verdict.WARN: ("warn", "yellow"),
    Verdict.FAIL: ("FAIL", "bold red"),
}


@click.command(cls=Command)
@config_option()
@click.pass_obj
def doctor(session: Session) -> None:
    """Examine this machine; no server has to run. Exit code 1 if something fails."""
    # The adapters take a quarter of a second to load, which no other command should wait for.
    from pycloud import wiring  # noqa: PLC0415

    printer = session.printer
    found: list[Finding] = []
    with printer.waiting("examining this machine"):
        for finding in wiring.diagnose(session.settings):
            found.append(finding)
            if printer.is_for_people:
                _show(printer, finding)
    verdicts = Counter(finding.verdict for finding in found)
    if printer.is_for_people:
        printer.line("")
        printer.line(_summary(verdicts))
    else:
        printer.document(_document(found))
    if verdicts[Verdict.FAIL]:
        raise Quiet(ExitCode.FAILURE)


def _show(printer: Printer, finding: Finding) -> None:
    mark, style = _MARKS[finding.verdict]
    line = Text.assemble((mark, style), "  ", (f"{finding.name:<18}", "bold"), finding.detail)
    printer.console.print(Text(printable(line.plain), spans=line.spans), soft_wrap=True)
    if finding.fix:
        printer.console.print(
            Text(printable(f"      {'':<18}-> {finding.fix}"), style="cyan"), soft_wrap=True
        )


def _summary(verdicts: Counter[Verdict]) -> str:
    if verdicts[Verdict.FAIL]:
        return f"A cloudlet cannot work here yet: {verdicts[Verdict.FAIL]} of these failed."
    if verdicts[Verdict.WARN]:
        return f"A cloudlet works here; {verdicts[Verdict.WARN]} of these could be better."
    return "Everything is as it should be."


def _document(found: list[Finding]) -> Json:
    return {
        "healthy": all(finding.verdict is not Verdict.FAIL for finding in found),
        "findings": [{**asdict(finding), "verdict": str(finding.verdict)} for finding in found],
    }
