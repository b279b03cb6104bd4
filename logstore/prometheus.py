"""Metrics of a store for Prometheus, under the names of kafka_exporter where it has one.

    import millstream
    from millstream import prometheus
    from prometheus_client import start_http_server

    store = millstream.open("shop")
    prometheus.register(store)             # into the registry your own metrics are in
    start_http_server(9309, addr="127.0.0.1")

What the operators of a pipeline do is known to the process that runs it: have that one call a
`PipelineCollector` after each commit.

Needs the extra `metrics` (prometheus_client), imported when a collector is made. Nothing is counted
here: each scrape reads `Store.metrics`, or what a run has said last. Dashboards and alerts for
kafka_exporter find lag, log ends and members where they look for them; what is Millstream's own
begins with `millstream_`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from .clock import SystemClock
from .counters import SYNC_BOUNDS_S, HandleMetrics
from .errors import missing_extra
from .groups import PartitionLag
from .metrics import GroupMetrics, PartitionMetrics, StoreMetrics
from .store import Store

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

NO_COMMIT: Final = -1
"""What kafka_exporter says of a partition the group has never committed."""

Families: TypeAlias = Iterator["Metric"]


class Pipeline(Protocol):
    """What is told of a pipeline; `millstream.processor.list_pipelines` gives these."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def epoch(self) -> int:
        """Number of its last commit."""
        ...

    @property
    def watermarks_ms(self) -> Mapping[str, int | None]:
        """W of each source by topic."""
        ...


class Operator(Protocol):
    """What is told of an operator; `millstream.processor.OperatorMetrics` is one."""

    @property
    def label(self) -> str:
        """What it is called in the plan."""
        ...

    @property
    def records_in(self) -> int:
        """Taken in since the run began."""
        ...

    @property
    def records_out(self) -> int:
        """Passed on since the run began."""
        ...

    @property
    def busy_s(self) -> float:
        """Seconds spent in it."""
        ...

    @property
    def late(self) -> int:
        """Refused as too late."""
        ...

    @property
    def skipped(self) -> int:
        """Nothing came of it: a duplicate, or in a gap between windows."""
        ...

    @property
    def state_records(self) -> int:
        """About how many things it keeps."""
        ...

    @property
    def watermark_lag_ms(self) -> int | None:
        """How far its event time is behind the newest of its sources."""
        ...


class Run(Protocol):
    """What is told of a run; `millstream.processor.Metrics` is one."""

    @property
    def epochs(self) -> int:
        """Committed by this run."""
        ...

    @property
    def epoch_s(self) -> float:
        """Seconds the last commit took."""
        ...

    @property
    def dead_letters(self) -> int:
        """Records that could not be processed."""
        ...

    @property
    def lag(self) -> int:
        """Offsets that are not processed yet."""
        ...

    @property
    def watermark_ms(self) -> int | None:
        """The least W of the sources."""
        ...

    @property
    def source_lag_bytes(self) -> Mapping[str, int]:
        """Bytes of files that are not taken in yet, by source."""
        ...

    @property
    def operators(self) -> Sequence[Operator]:
        """In the order of the plan."""
        ...


def register(
    store: Store,
    registry: CollectorRegistry | None = None,
    *,
    pipelines: Callable[[Store], Iterable[Pipeline]] | None = None,
) -> StoreCollector:
    """Have a registry collect the metrics of a store at every scrape; returns the collector.

    Two stores in one registry need a registry each, or the same series would come twice. Unregister
    the collector before closing the store.

    Args:
        store: Open, read-only if nothing else is done with it.
        registry: Of prometheus_client; its default one if not given.
        pipelines: `millstream.processor.list_pipelines`, to have epochs and watermarks too.

    Raises:
        MissingExtraError: prometheus_client is not installed.
    """
    collector = StoreCollector(store, pipelines=pipelines)
    if registry is None:
        from prometheus_client import REGISTRY  # noqa: PLC0415 - an extra

        registry = REGISTRY
    registry.register(collector)
    return collector


class StoreCollector:
    """A collector of prometheus_client. Thread-safe.

    Args:
        store: See `register`.
        pipelines: See `register`.

    Raises:
        MissingExtraError: prometheus_client is not installed.
    """

    def __init__(
        self,
        store: Store,
        *,
        pipelines: Callable[[Store], Iterable[Pipeline]] | None = None,
    ) -> None:
        self._core = _prometheus_core()
        self._store = store
        self._pipelines = pipelines

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering does not read the store."""
        return []

    def collect(self) -> Families:
        """All families; a scrape calls it.

        Raises:
            DataError, UnavailableError: The store cannot be read at all; the scrape fails.
        """
        metrics = self._store.metrics()
        yield from self._topics(metrics.partitions)
        yield from self._groups(metrics.groups)
        yield from self._partitions(metrics)
        yield from self._queues(metrics)
        yield from self._transactions(metrics)
        yield from self._space(metrics)
        if not self._store.read_only:
            yield from self._handle(metrics.handle)
        if self._pipelines is not None:
            yield from self._running(self._pipelines(self._store), metrics.taken_ms)

    # --- the names of kafka_exporter -------------------------------------------------------------

    def _topics(self, partitions: Sequence[PartitionMetrics]) -> Families:
        counts: dict[str, int] = {}
        for each in partitions:
            counts[each.topic] = max(counts.get(each.topic, 0), each.partition + 1)
        yield self._gauge(
            "kafka_topic_partitions",
            "Partitions of the topic",
            ("topic",),
            [((topic,), count) for topic, count in counts.items()],
        )
        places = [((each.topic, str(each.partition)), each) for each in partitions]
        for name, text, field in (
            ("kafka_topic_partition_current_offset", "Log end", "end_offset"),
            ("kafka_topic_partition_oldest_offset", "First offset kept", "start_offset"),
        ):
            samples = [(place, getattr(each, field)) for place, each in places]
            yield self._gauge(name, text, ("topic", "partition"), samples)

    def _groups(self, groups: Sequence[GroupMetrics]) -> Families:
        yield self._gauge(
            "kafka_consumergroup_members",
            "Live members of the group",
            ("consumergroup",),
            [((each.group,), len(each.members)) for each in groups],
        )
        lags = [
            ((each.group, lag.topic, str(lag.partition)), lag)
            for each in groups
            for lag in each.lags
        ]
        labels = ("consumergroup", "topic", "partition")
        for name, text, value in (
            ("kafka_consumergroup_current_offset", "Next offset to read; -1: none", _committed),
            ("kafka_consumergroup_lag", "Offsets the group is behind; -1: unknown", _lag),
        ):
            yield self._gauge(name, text, labels, [(place, value(lag)) for place, lag in lags])
            sums: dict[tuple[str, ...], float] = {}
            for place, lag in lags:
                sums[place[:2]] = sums.get(place[:2], 0) + max(value(lag), 0)
            yield self._gauge(
                f"{name}_sum", f"{text}; of all partitions", labels[:2], list(sums.items())
            )
        yield self._gauge(
            "kafka_consumergroup_group_lag_seconds",
            "For how long the oldest unread record has been in the log",
            ("group", "topic", "partition"),
            [(place, lag.lag_ms / 1000) for place, lag in lags if lag.lag_ms is not None],
        )

    # --- our own ---------------------------------------------------------------------------------

    def _partitions(self, metrics: StoreMetrics) -> Families:
        labels = ("topic", "partition")
        places = [((each.topic, str(each.partition)), each) for each in metrics.partitions]
        for name, text, field in (
            ("millstream_records", "Offsets between log start and log end", "records"),
            ("millstream_disk_bytes", "Bytes of the segments", "data_bytes"),
            ("millstream_segment_count", "Segment files", "segments"),
            ("millstream_poisoned", "1: a sync failed, nothing is accepted", "poisoned"),
        ):
            samples = [(place, getattr(each, field)) for place, each in places]
            yield self._gauge(name, text, labels, samples)
        yield self._gauge(
            "millstream_last_append_timestamp_seconds",
            "When the last batch was appended",
            labels,
            [(p, each.last_append_ms / 1000) for p, each in places if each.last_append_ms],
        )
        yield self._gauge(
            "millstream_unreadable",
            "What of the store could not be read",
            (),
            [((), len(metrics.unreadable))],
        )

    def _queues(self, metrics: StoreMetrics) -> Families:
        queues = metrics.queues
        yield self._gauge(
            "millstream_queue_jobs",
            "Jobs that are not done",
            ("topic", "group", "state"),
            [
                ((each.topic, each.group, state), sum(getattr(p, state) for p in each.partitions))
                for each in queues
                for state in ("ready", "leased", "delayed")
            ],
        )
        labels = ("topic", "group")
        yield self._gauge(
            "millstream_queue_workers",
            "Open handles of the queue",
            labels,
            [((each.topic, each.group), len(each.workers)) for each in queues],
        )
        yield self._gauge(
            "millstream_queue_dead_letters",
            "In the dead-letter topic, of all queues, not given back",
            labels,
            [
                ((each.topic, each.group), each.dead_letters)
                for each in queues
                if each.dead_letters is not None
            ],
        )

    def _transactions(self, metrics: StoreMetrics) -> Families:
        oldest: dict[tuple[str, ...], float] = {}
        for each in metrics.open_transactions:
            place = (each.topic, str(each.partition))
            age_s = max(metrics.taken_ms - each.began_ms, 0) / 1000
            oldest[place] = max(oldest.get(place, 0.0), age_s)
        yield self._gauge(
            "millstream_open_transaction_age_seconds",
            "Of the oldest transaction that keeps readers of the partition waiting",
            ("topic", "partition"),
            list(oldest.items()),
        )
        yield self._gauge(
            "millstream_open_transactions",
            "Transactions neither committed nor aborted",
            (),
            [((), len({(each.owner_id) for each in metrics.open_transactions}))],
        )

    def _space(self, metrics: StoreMetrics) -> Families:
        if metrics.free_bytes is not None:
            text = "Room on the file system of the store"
            yield self._gauge("millstream_free_bytes", text, (), [((), metrics.free_bytes)])

    def _handle(self, handle: HandleMetrics) -> Families:
        for name, text, value in (
            ("records_appended", "Records appended by this process", handle.appended_records),
            ("batches_appended", "Batches appended by this process", handle.appended_batches),
            ("bytes_appended", "Bytes appended by this process", handle.appended_bytes),
            ("fsync_failures", "Syncs that failed", handle.sync_failures),
            ("compactions", "Compactions of a partition", handle.compactions),
            ("compacted_records", "Records removed by compaction", handle.compacted_records),
            ("retained_segments", "Segments removed by retention", handle.retained_segments),
            ("retained_bytes", "Bytes removed by retention", handle.retained_bytes),
        ):
            yield self._core.CounterMetricFamily(f"millstream_{name}", text, value=value)
        buckets, total = [], 0
        for bound, count in zip((*SYNC_BOUNDS_S, "+Inf"), handle.sync_buckets, strict=True):
            total += count
            buckets.append((str(bound), total))
        yield self._core.HistogramMetricFamily(
            "millstream_fsync_seconds",
            "How long data syncs took",
            buckets=buckets,
            sum_value=handle.sync_s,
        )

    def _running(self, pipelines: Iterable[Pipeline], now_ms: int) -> Families:
        found = list(pipelines)
        yield self._gauge(
            "millstream_pipeline_epoch",
            "Number of the last commit",
            ("pipeline",),
            [((each.name,), each.epoch) for each in found],
        )
        yield self._gauge(
            "millstream_watermark_lag_seconds",
            "How far the event time of a source is behind the wall clock",
            ("pipeline", "source"),
            [
                ((each.name, source), (now_ms - level_ms) / 1000)
                for each in found
                for source, level_ms in each.watermarks_ms.items()
                if level_ms is not None
            ],
        )

    def _gauge(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        samples: Sequence[tuple[Sequence[str], float]],
    ) -> Metric:
        return _filled(self._core.GaugeMetricFamily(name, text, labels=labels), labels, samples)


class PipelineCollector:
    """A collector of what a run of a pipeline and its operators do, for the process that runs it.

    It is called with the metrics of each commit, and scrapes see the last of them; before the first
    there is nothing. A new run of the pipeline counts from zero, as a restarted process does.
    Thread-safe.

        progress = prometheus.PipelineCollector("sums")
        prometheus_client.REGISTRY.register(progress)
        pipeline.run(store, on_progress=progress)

    Args:
        pipeline: Its name, the label of all series.
        now_ms: UTC ms, for how far event time is behind; the system's clock if not given.

    Raises:
        MissingExtraError: prometheus_client is not installed.
    """

    def __init__(self, pipeline: str, *, now_ms: Callable[[], int] | None = None) -> None:
        self._core = _prometheus_core()
        self._pipeline = pipeline
        self._now_ms = SystemClock().now_ms if now_ms is None else now_ms
        self._run: Run | None = None

    def __call__(self, run: Run) -> None:
        """Take what a run has done so far; give this as `on_progress`."""
        self._run = run

    def describe(self) -> Iterable[Metric]:
        """Nothing: there is none before a commit."""
        return []

    def collect(self) -> Families:
        """All families; a scrape calls it."""
        run = self._run
        if run is None:
            return
        yield from self._whole(run)
        # Two operators may be called the same, and their number tells them apart.
        places = [
            ((self._pipeline, str(number), each.label), each)
            for number, each in enumerate(run.operators)
        ]
        labels = ("pipeline", "number", "operator")
        for name, text, field in (
            ("records_in", "Taken in by the operator", "records_in"),
            ("records_out", "Passed on by the operator", "records_out"),
            ("late_records", "Refused by the operator as too late", "late"),
            ("skipped_records", "Duplicates, and rows between windows", "skipped"),
            ("busy_seconds", "Spent in the operator", "busy_s"),
        ):
            full = f"millstream_operator_{name}"
            family = self._core.CounterMetricFamily(full, text, labels=labels)
            samples = [(place, getattr(each, field)) for place, each in places]
            yield _filled(family, labels, samples, suffix="_total")
        full = "millstream_operator_state_records"
        family = self._core.GaugeMetricFamily(full, "Kept by the operator, about", labels=labels)
        yield _filled(family, labels, [(place, each.state_records) for place, each in places])
        full = "millstream_operator_watermark_lag_seconds"
        text = "The newest event time of the operator's sources, minus its W"
        family = self._core.GaugeMetricFamily(full, text, labels=labels)
        lags = [(place, each.watermark_lag_ms) for place, each in places]
        samples = [(place, lag / 1000) for place, lag in lags if lag is not None]
        yield _filled(family, labels, samples)

    def _whole(self, run: Run) -> Families:
        labels, place = ("pipeline",), (self._pipeline,)
        for name, text, value in (
            ("epochs", "Commits of this run", run.epochs),
            ("dead_letters", "Records that could not be processed", run.dead_letters),
        ):
            full = f"millstream_pipeline_{name}"
            family = self._core.CounterMetricFamily(full, text, labels=labels)
            yield _filled(family, labels, [(place, value)], suffix="_total")
        gauges: list[tuple[str, str, float]] = [
            ("commit_seconds", "How long the last commit took", run.epoch_s),
            ("lag", "Offsets of the input that are not processed", run.lag),
        ]
        if run.watermark_ms is not None:
            text = "How far the least event time of the sources is behind the wall clock"
            behind_s = (self._now_ms() - run.watermark_ms) / 1000
            gauges.append(("watermark_lag_seconds", text, behind_s))
        for name, text, level in gauges:
            family = self._core.GaugeMetricFamily(
                f"millstream_pipeline_{name}", text, labels=labels
            )
            yield _filled(family, labels, [(place, level)])
        if run.source_lag_bytes:
            named = ("pipeline", "source")
            full = "millstream_pipeline_source_lag_bytes"
            family = self._core.GaugeMetricFamily(full, "Of files, not taken in", labels=named)
            sources = run.source_lag_bytes.items()
            yield _filled(family, named, [((*place, name), count) for name, count in sources])


def _prometheus_core() -> Any:
    try:
        from prometheus_client import core  # noqa: PLC0415 - an extra
    except ImportError:
        raise missing_extra("Prometheus", "prometheus_client", "metrics") from None
    return core


def _filled(
    family: Metric,
    labels: Sequence[str],
    samples: Iterable[tuple[Sequence[str], float]],
    *,
    suffix: str = "",
) -> Metric:
    for values, value in samples:
        named = dict(zip(labels, values, strict=True))
        family.add_sample(family.name + suffix, named, float(value))
    return family


def _committed(lag: PartitionLag) -> float:
    return NO_COMMIT if lag.committed is None else lag.committed


def _lag(lag: PartitionLag) -> float:
    return NO_COMMIT if lag.lag is None else lag.lag
