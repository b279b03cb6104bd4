"""Migrate the state of a pipeline to a plan that has changed.

What becomes of which state is decided in changed_plan.py. Here it is done: state that goes on under
another name is copied, record by record as it is, into the state topic of that name, and the
checkpoint is changed in the same commit. A crash before it leaves everything as it was, a crash
after it leaves at most topics that nobody reads; the next migration removes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import msgspec

from millstream import DataError, Store, Transaction, UnknownPipelineError, UsageError

from .added_columns import AddedColumns, added_columns
from .carried_time import carry_time
from .changed_plan import MigrationStep, migration_steps
from .checkpoint import Checkpoint, OperatorState, SourceState, encode_checkpoint
from .ingest import is_source_of_another
from .kept import kept_state_topics
from .plan import Plan
from .regrouping import RegroupOperator
from .spilled_states import temporary_states
from .state import StateRecords, encode_entries, encode_removed
from .state_log import (
    checkpoint_name,
    read_checkpoint,
    state_batches,
    state_entries,
    state_topic,
    write_state_records,
)


@dataclass(frozen=True, slots=True)
class Migration:
    """What becomes, or became, of the state of a pipeline."""

    steps: tuple[MigrationStep, ...]
    """One for each operator with state, of the former plan and of the new one."""
    new_inputs: tuple[str, ...]
    """Source topics that have not been read so far: they begin at their log start."""
    left_inputs: tuple[str, ...]
    """Source topics that are no longer read."""
    unknown: tuple[str, ...]
    """Names to rename or drop under which nothing is kept: done before, or misspelt."""
    done: bool
    """Whether it has been done; otherwise this is what would be."""
    recreated: tuple[str, ...] = ()
    """Source topics that were deleted and created again: they begin at their log start."""

    @property
    def carried(self) -> tuple[MigrationStep, ...]:
        """State that the plan goes on with."""
        return tuple(step for step in self.steps if step.action in {"keep", "carry"})

    @property
    def refused(self) -> tuple[MigrationStep, ...]:
        """State of which nobody has said what shall become of it."""
        return tuple(step for step in self.steps if step.action == "refuse")

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.recreated) or any(step.action in {"carry", "drop"} for step in self.steps)


def migrate(
    plan: Plan,
    store: Store,
    rename: Mapping[str, str],
    drop: Collection[str],
    *,
    same: Collection[str] = (),
    dry_run: bool = False,
) -> Migration:
    """Carry state over to a plan; see `Pipeline.migrate`."""
    plan.check()
    if dry_run:
        checkpoint = _checkpoint(plan, store)
        recreated = _recreated(plan, checkpoint, store, same)
        migration = _migration(plan, checkpoint, rename, drop, same)
        steps = tuple(_tried(plan, store, checkpoint, step) for step in migration.steps)
        return replace(migration, steps=steps, recreated=recreated)
    with store.own(checkpoint_name(plan.name)) as ownership:
        checkpoint = _checkpoint(plan, store)
        recreated = _recreated(plan, checkpoint, store, same)
        migration = replace(_migration(plan, checkpoint, rename, drop, same), recreated=recreated)
        if migration.refused:
            names = ", ".join(f"{each.operator!r} ({each.reason})" for each in migration.refused)
            raise UsageError(f"pipeline {plan.name!r} was not migrated: state of {names}")
        if migration.changes:
            checkpoint = _with_recreated(checkpoint, recreated, store)
            topics = _topics(plan, checkpoint, migration, store)
            with store.transaction(owner=ownership) as transaction:
                operators = _operators(plan, checkpoint, migration, transaction, store)
                time = carry_time(plan, checkpoint, _identities(checkpoint, migration.carried))
                checkpoint = msgspec.structs.replace(
                    checkpoint,
                    epoch=checkpoint.epoch + 1,
                    migrated_epoch=checkpoint.epoch + 1,
                    operators=operators,
                    topics=topics,
                    sources=time.sources,
                    shared=time.shared,
                )
                encoded = encode_checkpoint(checkpoint)
                transaction.put_checkpoint(checkpoint_name(plan.name), encoded)
        _remove_unused(store, plan.name, checkpoint)
    return replace(migration, done=True)


def _checkpoint(plan: Plan, store: Store) -> Checkpoint:
    checkpoint = read_checkpoint(store, plan.name)
    if checkpoint.epoch == 0:
        raise UnknownPipelineError(
            f"pipeline {plan.name!r} has never run here: there is nothing to migrate"
        )
    return checkpoint


def _migration(
    plan: Plan,
    checkpoint: Checkpoint,
    rename: Mapping[str, str],
    drop: Collection[str],
    same: Collection[str],
) -> Migration:
    read = dict.fromkeys(
        topic
        for topic, _, _ in checkpoint.positions
        if not is_source_of_another(topic, plan.name)  # a fork that has not run yet has them
    )
    inputs = plan.input_topics()
    steps = migration_steps(plan, checkpoint, rename, drop, same)
    carried = [step for step in steps if step.action in {"keep", "carry"}]
    refused = carry_time(plan, checkpoint, _identities(checkpoint, carried)).refused
    return Migration(
        tuple(
            step._replace(
                operator=step.former or "", action="refuse", reason=refused[step.operator]
            )
            if step in carried and step.operator in refused
            else step
            for step in steps
        ),
        tuple(topic for topic in inputs if topic not in read),
        tuple(topic for topic in read if topic not in inputs),
        tuple(name for name in (*rename, *drop) if name not in checkpoint.operators),
        done=False,
    )


def _tried(plan: Plan, store: Store, checkpoint: Checkpoint, step: MigrationStep) -> MigrationStep:
    """The step, refused if what it would make of the rows there are cannot be made."""
    if step.former is None or step.action != "carry":
        return step
    known = checkpoint.operators[step.former]
    added = added_columns(plan, step.operator, known.identity)
    if added is None or added.regrouped is None:
        return step
    try:
        for _ in _regrouped(plan, store, state_topic(plan.name, step.former), known, added):
            pass
    except UsageError as error:
        return step._replace(operator=step.former, action="refuse", reason=str(error))
    return step


def _recreated(
    plan: Plan, checkpoint: Checkpoint, store: Store, same: Collection[str]
) -> tuple[str, ...]:
    """The source topics in `same` that are other ones than were read, of the same names."""
    known = checkpoint.topics
    return tuple(
        topic
        for name, topic in plan.input_names().items()
        if name in same and topic in known and store.topic(topic).id != known[topic]
    )


def _with_recreated(checkpoint: Checkpoint, recreated: Collection[str], store: Store) -> Checkpoint:
    """The checkpoint as one of topics of which nothing has been read yet. W stays."""
    return msgspec.structs.replace(
        checkpoint,
        positions=[each for each in checkpoint.positions if each[0] not in recreated],
        sources={
            topic: SourceState([], state.level) if topic in recreated else state
            for topic, state in checkpoint.sources.items()
        },
        topics=checkpoint.topics | {topic: store.topic(topic).id for topic in recreated},
    )


def _identities(checkpoint: Checkpoint, carried: Iterable[MigrationStep]) -> dict[str, str]:
    """The former identities of operators whose state goes on, by their new names."""
    return {step.operator: checkpoint.operators[step.former or ""].identity for step in carried}


def _topics(
    plan: Plan, checkpoint: Checkpoint, migration: Migration, store: Store
) -> dict[str, int]:
    """Ids of the input and state topics from here on; those for state that is renamed are created.

    Raises:
        DataError: State that is to be carried over was deleted.
    """
    former = {state_topic(plan.name, operator) for operator in checkpoint.operators}
    topics = {topic: number for topic, number in checkpoint.topics.items() if topic not in former}
    for step in migration.carried:
        topic = state_topic(plan.name, step.operator)
        if step.former == step.operator:
            topics[topic] = checkpoint.topics[topic]
            continue
        source = state_topic(plan.name, step.former or "")
        if store.topic(source).id != checkpoint.topics[source]:
            raise DataError(
                f"the state of {step.former!r} in pipeline {plan.name!r} was deleted with its"
                " topic: restore the store from a backup, or drop it",
                topic=source,
            )
        topics[topic] = store.create_topic(topic, exist_ok=True).id
    return topics


def _operators(
    plan: Plan,
    checkpoint: Checkpoint,
    migration: Migration,
    transaction: Transaction,
    store: Store,
) -> dict[str, OperatorState]:
    """Where the state of each operator is from here on; what goes to another topic is copied."""
    identities = plan.identities()
    operators = {}
    for step in migration.carried:
        assert step.former is not None
        known = checkpoint.operators[step.former]
        source = state_topic(plan.name, step.former)
        topic = state_topic(plan.name, step.operator)
        added = added_columns(plan, step.operator, known.identity)
        if added is not None and added.regrouped is not None:
            pieces = _regrouped(plan, store, source, known, added)
            known = _written(transaction, topic, known, pieces)
        elif added is not None:
            pieces = _extended(store, source, known, topic, added)
            known = _written(transaction, topic, known, pieces)
        elif step.former != step.operator:
            known = _copied(store, transaction, source, known, topic)
        identity = identities[step.operator]
        operators[step.operator] = msgspec.structs.replace(known, identity=identity)
    return operators


def _copied(
    store: Store, transaction: Transaction, source: str, known: OperatorState, topic: str
) -> OperatorState:
    """Copy the records that make up some state, and say where they are."""
    count, start, end = 0, 0, 0
    for batch in state_batches(store, source, known):
        written = transaction.append_many(topic, batch.values, batch.keys, None, 0)
        start = start if count else written[0].base_offset
        end = written[-1].base_offset + written[-1].record_count
        count += len(batch.values)
    return msgspec.structs.replace(known, snapshot_offset=start, change_count=count, end_offset=end)


def _extended(
    store: Store, source: str, known: OperatorState, topic: str, added: AddedColumns
) -> Iterator[StateRecords]:
    """The records that make up some state, with what was added to each."""
    for piece in state_entries(store, source, known).pieces():
        records = StateRecords([], [])
        for path, value in zip(piece.paths, piece.values, strict=True):
            if value is None:
                records.extend(encode_removed([path]))
            else:
                records.extend(encode_entries(topic, [path], [tuple(added.extend(value))]))
        yield records


def _regrouped(
    plan: Plan, store: Store, source: str, known: OperatorState, added: AddedColumns
) -> Iterator[StateRecords]:
    """The records of a grouped table, with results that are made of its rows.

    Raises:
        UsageError: They cannot be, exactly.
    """
    assert added.regrouped is not None
    with temporary_states(plan.holding) as states:
        operator = RegroupOperator(added.regrouped, 0, states)

        def settle() -> None:
            if states.full:
                states.changing()
                operator.changes()
                states.committed({})

        with states.restoring(operator.name, None, whole=False):
            operator.restore(state_entries(store, source, known))
        operator.extend(added.names, added.extend, settle)
        states.changing()
        operator.changes()
        states.committed({})
        yield from operator.sweep()


def _written(
    transaction: Transaction, topic: str, known: OperatorState, pieces: Iterable[StateRecords]
) -> OperatorState:
    """Write the records that make up some state, and say where they are."""
    count, start, end = 0, 0, 0
    for records in pieces:
        written = write_state_records(transaction, topic, records)
        if written is not None:
            start, end = start if count else written[0], written[1]
        count += len(records.keys)
    return msgspec.structs.replace(known, snapshot_offset=start, change_count=count, end_offset=end)


def _remove_unused(store: Store, pipeline: str, checkpoint: Checkpoint) -> None:
    """Remove the state topics that no checkpoint points to; only who owns the pipeline may."""
    used = {state_topic(pipeline, operator) for operator in checkpoint.operators}
    used |= kept_state_topics(store, pipeline)
    for topic in store.topics(internal=True):
        if topic.name.startswith(state_topic(pipeline, "")) and topic.name not in used:
            store.delete_topic(topic.name)
