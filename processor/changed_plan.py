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

from .added_columns import added_columns
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
        same: What it takes as `same`, if these mean what they meant.
        drop: What it takes as `drop` to let go of the rest.
    """

    def __init__(
        self,
        changes: str,
        rename: Mapping[str, str],
        drop: Collection[str],
        target: str = _TARGET,
        same: Collection[str] = (),
    ) -> None:
        self.rename = dict(rename)
        self.same = list(same)
        self.drop = list(drop)
        self._changes = changes
        command = " ".join(
            ["millstream state migrate", shlex.quote(target)]
            + [f"--rename {old}={new}" for old, new in rename.items()]
            + [f"--same {name}" for name in same]
            + [f"--drop {name}" for name in drop]
        )
        arguments = ["store"]
        arguments += [f"rename={self.rename}"] * bool(rename) + [f"same={self.same}"] * bool(same)
        arguments += [f"drop={self.drop}"] * bool(drop)
        if same:
            changes += (
                f"\nIn {', '.join(same)} only sources, functions or fields read differently."
                " Whether they mean what they meant you alone can know: if not, drop the state"
                " instead."
            )
        super().__init__(
            f"{changes}\nRun it with the former code, or give the new one another name to start"
            " from the beginning, or migrate the state. This shows what would be carried over and"
            f" what would be lost, and does it with --yes:\n  {command}\nor in Python:"
            f" pipeline.migrate({', '.join(arguments)})"
        )

    def told_for(self, target: str) -> ChangedPlanError:
        """The same, with the command for a pipeline that is called so on the command line."""
        return ChangedPlanError(self._changes, self.rename, self.drop, target, self.same)


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
            lines += [f"    in {each}" for each in _differing(state.identity, now or "")]
    return "\n".join(lines)


def _differing(was: str, now: str) -> list[str]:
    """The clauses that differ, where the texts have the same ones."""
    old, new = was.split("; "), now.split("; ")
    if len(old) != len(new):
        return []
    return [
        f"{left.partition(' ')[0]}: {left.partition(' ')[2]} -> {right.partition(' ')[2]}"
        for left, right in zip(old, new, strict=True)
        if left != right and left.partition(" ")[0] == right.partition(" ")[0]
    ]


def refuse_changed_plan(plan: Plan, checkpoint: Checkpoint) -> None:
    """Refuse to go on with state that was made by other operators.

    Operators without live state may change freely: nothing is lost.

    Raises:
        ChangedPlanError: The message shows what was, what is, and how to migrate.
    """
    changes = plan_changes(plan, checkpoint)
    if changes:
        rename, same, drop = _remedy(plan, checkpoint)
        raise ChangedPlanError(
            f"pipeline {plan.name!r} has state of another plan:\n{changes}", rename, drop, same=same
        )


def _remedy(plan: Plan, checkpoint: Checkpoint) -> tuple[dict[str, str], list[str], list[str]]:
    """What to rename, what to call the same and what to drop, so that most is carried over."""
    free = [name for name in plan.identities() if not _fits(plan, checkpoint, name)]
    left = {
        operator: state.identity
        for operator, state in checkpoint.operators.items()
        if state.live_count and not _fits(plan, checkpoint, operator)
    }
    rename: dict[str, str] = {}
    same: list[str] = []
    for operator, identity in list(left.items()):
        if operator in free and added_columns(plan, operator, identity):
            free.remove(operator)
            del left[operator]
    for patterns, sure in ((plan.same_state(), True), (plan.alike_state(), False)):
        for operator, identity in list(left.items()):
            means = [name for name in free if patterns[name].fullmatch(identity)]
            if not means:
                continue
            name = operator if operator in means else means[0]
            free.remove(name)
            del left[operator]
            if name != operator:
                rename[operator] = name
            if not sure:
                same.append(name)
    return rename, same, list(left)


def _fits(plan: Plan, checkpoint: Checkpoint, operator: str) -> bool:
    """Whether the plan goes on with what an operator has, as it is."""
    state = checkpoint.operators.get(operator)
    return state is not None and plan.identities().get(operator) == state.identity


def migration_steps(
    plan: Plan,
    checkpoint: Checkpoint,
    rename: Mapping[str, str],
    drop: Collection[str],
    same: Collection[str] = (),
) -> list[MigrationStep]:
    """What becomes of all state, old and new; see `Pipeline.migrate`.

    What has been done already is not done again: state that the plan goes on with is neither
    renamed over nor dropped.

    Raises:
        UsageError: A new name that the plan does not have, or that is given twice.
    """
    patterns, identities = plan.same_state(), plan.identities()
    alike = plan.alike_state()
    _check_names(plan, rename, same)
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
        elif added := added_columns(plan, name, state.identity):
            steps.append(step._replace(action="carry", reason=added.reason))
        elif pattern is not None and pattern.fullmatch(state.identity):
            renamed = "another name" if name != operator else "results of other names"
            steps.append(step._replace(action="carry", reason=renamed))
        elif name in same and alike[name].fullmatch(state.identity):
            steps.append(step._replace(action="carry", reason="it means the same, as you say"))
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


def _check_names(plan: Plan, rename: Mapping[str, str], same: Collection[str]) -> None:
    names = list(plan.identities())
    operators = [name for name in same if name not in plan.input_names()]
    for old, new in [*rename.items(), *((name, name) for name in operators)]:
        if new not in names:
            raise UsageError(
                f"pipeline {plan.name!r} has no operator {new!r} to carry {old!r} over to; with"
                f" state it has {', '.join(names) or 'none'}"
            )
    if len(set(rename.values())) < len(rename):
        raise UsageError("two operators cannot be renamed to one: their state would be mixed")


def _why_not(plan: Plan, checkpoint: Checkpoint, operator: str, name: str) -> str:
    identities = plan.identities()
    better, same, _ = _remedy(plan, checkpoint)
    better_name = better.get(operator, operator)
    if better_name in same and better_name in identities:
        return (
            f"sources or functions of {better_name!r} read differently (was:"
            f" {checkpoint.operators[operator].identity}; is: {identities[better_name]}): if it"
            " means what it meant, say that it is the same, or drop it"
        )
    if better_name not in {operator, name}:
        return f"{better_name!r} means the same: rename it, or drop it"
    if name not in identities:
        return f"the plan has no operator {name!r}: rename it, or drop it"
    was = checkpoint.operators[operator].identity
    return f"what it keeps means something else to {name!r} (was: {was}; is: {identities[name]})"
