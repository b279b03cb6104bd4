"""How a plan of repair is printed, by `millstream repair` and `millstream verify --explain`."""

from __future__ import annotations

from typing import Final

import click

from millstream import RepairPlan

from .output import Cell, Mode, print_rows

_ACTION_COLUMNS: Final = ("topic", "partition", "path", "action", "reason")
_LOST_COLUMNS: Final = ("topic", "partition", "start", "end", "reason", "path", "position")


def plan_document(plan: RepairPlan) -> dict[str, object]:
    """A plan as JSON."""
    return {
        "done": plan.done,
        "actions": [each._asdict() for each in plan.actions],
        "lost": [each._asdict() for each in plan.lost],
        "refused": [each._asdict() for each in plan.refused],
        "undecided_transactions": plan.undecided,
        "report_path": plan.report_path,
    }


def explain_plan(plan: RepairPlan, mode: Mode) -> None:
    """Print a plan: actions and lost ranges to stdout, the sum of it to stderr."""
    if plan.empty:
        click.echo("nothing to repair", err=True)
        return
    actions: list[dict[str, Cell]] = [each._asdict() for each in (*plan.actions, *plan.refused)]
    print_rows("actions", actions, _ACTION_COLUMNS, mode)
    lost: list[dict[str, Cell]] = [each._asdict() for each in plan.lost]
    if lost:
        print_rows("lost", lost, _LOST_COLUMNS, mode)
    offsets = sum(each.end - each.start for each in plan.lost)
    done, are = ("done", "are") if plan.done else ("to do", "would be")
    click.echo(
        f"steps {done}: {len(plan.actions)}; offsets that {are} lost: {offsets},"
        f" in ranges: {len(lost)}",
        err=True,
    )
    if plan.refused:
        click.echo(f"cannot be repaired: {len(plan.refused)}", err=True)
