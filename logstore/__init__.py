"""Millstream: streaming without a server.

An append-only segmented log on local disk that is both source and replay buffer, with partitions,
consumer groups and transactions, in one directory and without a daemon. `open` is where to start;
pipelines over the log are in `millstream.processor`, the command line in `millstream.cli`.

>>> import millstream
>>> with millstream.open(":memory:") as store:
...     topic = store.create_topic("orders")
...     metadata = store.append("orders", b'{"amount": 3}', key=b"u1")
...     [record.value for record in store.read("orders")]
[b'{"amount": 3}']
"""

from .append import partition_of
from .backup import BackupReport
from .batch_facts import BatchFacts, FieldFacts
from .cache_database import CacheDatabase
from .clock import Clock, SystemClock
from .compactor import CompactionResult
from .config import (
    Compression,
    Durability,
    Isolation,
    TopicConfig,
    TopicInfo,
    check_topic_name,
)
from .consumer import Consumer
from .counters import HandleMetrics
from .doctor import diagnose
from .errors import (
    BackpressureTimeoutError,
    ConflictError,
    ConnectorError,
    CorruptBatchError,
    CorruptSegmentError,
    DataError,
    FencedError,
    FormatVersionError,
    LockedError,
    MillstreamError,
    MissingExtraError,
    MissingKeyError,
    OffsetOutOfRangeError,
    PoisonedError,
    RecordError,
    SequenceGapError,
    StorageError,
    StoreClosedError,
    TopicExistsError,
    UnavailableError,
    UndecidedError,
    UnknownGroupError,
    UnknownPipelineError,
    UnknownTopicError,
    UsageError,
    missing_extra,
)
from .gathered import JoinedBytes, JoinedTimes
from .groups import GroupInfo, GroupMember, OffsetChange, PartitionLag, ResetPlan
from .inspect import BatchDump, SegmentDump, dump_segment
from .job import Job
from .job_queue import Queue
from .machine_checks import Diagnosis
from .metrics import GroupMetrics, PartitionMetrics, StoreMetrics, UnreadablePart
from .named_producer import NamedProducer
from .open_transactions import OpenTransaction
from .owners import Ownership
from .positions import (
    Position,
    datetime_to_ms,
    parse_duration_ms,
    parse_position,
    parse_range,
    parse_size_bytes,
)
from .producer import Producer
from .queues import QueueInfo, QueuePartition, QueueWorker, Redriven
from .reader import LogReader
from .record import (
    AppendMetadata,
    DuplicateMetadata,
    Headers,
    Record,
    RecordMetadata,
    TopicPartition,
)
from .record_batch import RecordBatch
from .retention import RetentionBlocker, SegmentInfo
from .retention_schedule import RetentionReport
from .scan import Scan
from .storage import File, PosixStorage, Storage
from .store import Store, open_store
from .store_repair import LostRange, RepairAction, RepairPlan, plan_repair, repair
from .store_restore import restore
from .topics import OffsetRange
from .transaction import Transaction
from .user_database import DatabaseColumn, UserDatabase
from .verify_report import VerifyFinding, VerifyReport

__version__ = "0.1.0"

open = open_store  # noqa: A001 - `millstream.open(path)`, as with gzip.open and dbm.open

__all__ = [
    "AppendMetadata",
    "BackpressureTimeoutError",
    "BackupReport",
    "BatchDump",
    "BatchFacts",
    "CacheDatabase",
    "Clock",
    "CompactionResult",
    "Compression",
    "ConflictError",
    "ConnectorError",
    "Consumer",
    "CorruptBatchError",
    "CorruptSegmentError",
    "DataError",
    "DatabaseColumn",
    "Diagnosis",
    "DuplicateMetadata",
    "Durability",
    "FencedError",
    "FieldFacts",
    "File",
    "FormatVersionError",
    "GroupInfo",
    "GroupMember",
    "GroupMetrics",
    "HandleMetrics",
    "Headers",
    "Isolation",
    "Job",
    "JoinedBytes",
    "JoinedTimes",
    "LockedError",
    "LogReader",
    "LostRange",
    "MillstreamError",
    "MissingExtraError",
    "MissingKeyError",
    "NamedProducer",
    "OffsetChange",
    "OffsetOutOfRangeError",
    "OffsetRange",
    "OpenTransaction",
    "Ownership",
    "PartitionLag",
    "PartitionMetrics",
    "PoisonedError",
    "Position",
    "PosixStorage",
    "Producer",
    "Queue",
    "QueueInfo",
    "QueuePartition",
    "QueueWorker",
    "Record",
    "RecordBatch",
    "RecordError",
    "RecordMetadata",
    "Redriven",
    "RepairAction",
    "RepairPlan",
    "ResetPlan",
    "RetentionBlocker",
    "RetentionReport",
    "Scan",
    "SegmentDump",
    "SegmentInfo",
    "SequenceGapError",
    "Storage",
    "StorageError",
    "Store",
    "StoreClosedError",
    "StoreMetrics",
    "SystemClock",
    "TopicConfig",
    "TopicExistsError",
    "TopicInfo",
    "TopicPartition",
    "Transaction",
    "UnavailableError",
    "UndecidedError",
    "UnknownGroupError",
    "UnknownPipelineError",
    "UnknownTopicError",
    "UnreadablePart",
    "UsageError",
    "UserDatabase",
    "VerifyFinding",
    "VerifyReport",
    "__version__",
    "check_topic_name",
    "datetime_to_ms",
    "diagnose",
    "dump_segment",
    "missing_extra",
    "open",
    "parse_duration_ms",
    "parse_position",
    "parse_range",
    "parse_size_bytes",
    "partition_of",
    "plan_repair",
    "repair",
    "restore",
]
