"""A changed plan over live state: what differs, what can be carried over, what is refused. Pure.

State belongs to an operator by its name and its identity, what the operator computes. A plan goes
on with state that fits both. State under another name, or with results of other names, means the
same and can be carried over; whatever else has changed, the state means something else and can only
be dropped. migrate.py does it.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

from millstream import UsageError

from .checkpoint import Checkpoint
from .plan import Plan

Action: TypeAlias = Literal["keep", "carry", "begin", "drop", "refuse"]
"""What becomes of state: it stays, it goes on under another name or identity, it begins empty, it
is let go; or nobody has said what shall become of it."""

_TARGET: Final = "MODULE:PIPELINE"


class MigrationStep(NamedTuple):
    """What becomes of the state of one operator."""

    operator: str
    """Its name in the plan; of state that is dropped or refused the name it had."""
    action: Action
    former: str | None
    """The name the state had; None where it begins."""
    live_count: int
    """About how many state records that concerns."""
    reason: str
    """Why, in words."""


class ChangedPlanError(UsageError):
    """A pipeline has live state of another plan. Nothing was changed.

    Attributes:
        rename: What `Pipeline.migrate` takes as `rename` to carry over what it can.
        drop: What it takes as `drop` to let go of the rest.
    """

    def __init__(
        self,
        changes: str,
        rename: Mapping[str, str],
        drop: Collection[str],
        target: str = _TARGET,
    ) -> None:
        self.rename = dict(rename)
        self.drop = list(drop)
        self._changes = changes
        command = " ".join(
            ["millstream state migrate", shlex.quote(target)]
            + [f"--rename {old}={new}" for old, new in rename.items()]
            + [f"--drop {name}" for name in drop]
        )
        arguments = ["store"]
        arguments += [f"rename={self.rename}"] * bool(rename) + [f"drop={self.drop}"] * bool(drop)
        super().__init__(
            f"{changes}\nRun it with the former code, or give the new one another name to start"
            " from the beginning, or migrate the state. This shows what would be carried over and"
            f" what would be lost, and does it with --yes:\n  {command}\nor in Python:"
            f" pipeline.migrate({', '.join(arguments)})"
        )

    def told_for(self, target: str) -> ChangedPlanError:
        """The same, with the command for a pipeline that is called so on the command line."""
        return ChangedPlanError(self._changes, self.rename, self.drop, target)


def plan_changes(plan: Plan, checkpoint: Checkpoint) -> str:
    """What has become of live state, line by line; empty if the plan can go on with all of it."""
    identities = plan.identities()
    lines = []
    for operator, state in checkpoint.operators.items():
        now = identities.get(operator)
        if state.live_count and now != state.identity:
            lines.append(f"  {operator}: {state.live_count} open keys")
            lines.append(f"    - {state.identity}")
            lines.append(f"    + {now or '(no such operator)'}")
    return "\n".join(lines)


def refuse_changed_plan(plan: Plan, checkpoint: Checkpoint) -> None:
    """Refuse to go on with state that was made by other operators.

    Operators without live state may change freely: nothing is lost.

    Raises:
        ChangedPlanError: The message shows what was, what is, and how to migrate.
    """
    changes = plan_changes(plan, checkpoint)
    if changes:
        rename, drop = _remedy(plan, checkpoint)
        raise ChangedPlanError(
            f"pipeline {plan.name!r} has state of another plan:\n{changes}", rename, drop
        )


def _remedy(plan: Plan, checkpoint: Checkpoint) -> tuple[dict[str, str], list[str]]:
    """What to rename and what to drop, so that as much as possible is carried over."""
    patterns = plan.same_state()
    free = [name for name in patterns if not _fits(plan, checkpoint, name)]
    rename: dict[str, str] = {}
    drop: list[str] = []
    for operator, state in checkpoint.operators.items():
        if not state.live_count or _fits(plan, checkpoint, operator):
            continue
        means = [name for name in free if patterns[name].fullmatch(state.identity)]
        if operator in means:
            free.remove(operator)
        elif means:
            rename[operator] = means[0]
            free.remove(means[0])
        else:
            drop.append(operator)
    return rename, drop


def _fits(plan: Plan, checkpoint: Checkpoint, operator: str) -> bool:
    """Whether the plan goes on with what an operator has, as it is."""
    state = checkpoint.operators.get(operator)
    return state is not None and plan.identities().get(operator) == state.identity


def migration_steps(
    plan: Plan, checkpoint: Checkpoint, rename: Mapping[str, str], drop: Collection[str]
) -> list[MigrationStep]:
    """What becomes of all state, old and new; see `Pipeline.migrate`.

    What has been done already is not done again: state that the plan goes on with is neither
    renamed over nor dropped.

    Raises:
        UsageError: A new name that the plan does not have, or that is given twice.
    """
    patterns, identities = plan.same_state(), plan.identities()
    _check_names(plan, rename)
    steps: list[MigrationStep] = []
    taken = set[str]()
    for operator, state in checkpoint.operators.items():
        name = operator
        if operator in rename and not _is_done(plan, checkpoint, operator, rename[operator]):
            name = rename[operator]
        pattern = patterns.get(name)
        fits = name == operator and identities.get(name) == state.identity
        step = MigrationStep(name, "keep", operator, state.live_count, "the plan goes on with it")
        if fits:
            steps.append(step)
        elif not state.live_count:
            continue  # nothing is lost
        elif operator in drop:
            steps.append(step._replace(operator=operator, action="drop", reason="as you say"))
            continue
        elif pattern is not None and pattern.fullmatch(state.identity):
            renamed = "another name" if name != operator else "results of other names"
            steps.append(step._replace(action="carry", reason=renamed))
        else:
            reason = _why_not(plan, checkpoint, operator, name)
            steps.append(step._replace(operator=operator, action="refuse", reason=reason))
        taken.add(name)
    steps += [
        MigrationStep(name, "begin", None, 0, "begins empty")
        for name in identities
        if name not in taken
    ]
    return steps


def _is_done(plan: Plan, checkpoint: Checkpoint, old: str, new: str) -> bool:
    """Whether state has been renamed before; a second time would take what is the new one's."""
    if not _fits(plan, checkpoint, new):
        return False
    return _fits(plan, checkpoint, old) or checkpoint.operators[new].live_count > 0


def _check_names(plan: Plan, rename: Mapping[str, str]) -> None:
    names = list(plan.identities())
    for old, new in rename.items():
        if new not in names:
            raise UsageError(
                f"pipeline {plan.name!r} has no operator {new!r} to carry {old!r} over to; with"
                f" state it has {', '.join(names) or 'none'}"
            )
    if len(set(rename.values())) < len(rename):
        raise UsageError("two operators cannot be renamed to one: their state would be mixed")


def _why_not(plan: Plan, checkpoint: Checkpoint, operator: str, name: str) -> str:
    identities = plan.identities()
    better, _ = _remedy(plan, checkpoint)
    if operator in better and better[operator] != name:
        return f"{better[operator]!r} means the same: rename it, or drop it"
    if name not in identities:
        return f"the plan has no operator {name!r}: rename it, or drop it"
    was = checkpoint.operators[operator].identity
    return f"what it keeps means something else to {name!r} (was: {was}; is: {identities[name]})"
