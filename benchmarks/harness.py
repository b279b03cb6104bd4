"""Run contestants against each other, round by round, and keep what they measured.

A workload has contestants that do the same work: ours, and the limits it is compared with. Each
run is a process of its own, so that no contestant inherits another's memory or warm objects. A
round runs all of them once (A B C, A B C, ...); ratios are taken within a round, because the disk
and the neighbours of a virtual machine change by the minute, and the median over rounds is quoted.
"""

from __future__ import annotations

import gc
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

Sample = dict[str, float]
"""What one run measured: metric name (unit last) to value."""


@dataclass(frozen=True)
class Context:
    """What a run is given."""

    directory: str
    """Empty before the run, removed after it."""
    prepared: str
    """What `prepare` made, shared by the rounds of a workload; not to be changed."""
    records: int
    seconds: float
    seed: int
    quick: bool


@dataclass(frozen=True)
class Target:
    """What must hold. With `against`: ours / against >= bound, or <= with `most`.

    Without: metric <= bound.
    """

    contestant: str
    metric: str
    bound: float
    against: str | None = None
    most: bool = False

    def describe(self) -> str:
        """For the table."""
        if self.against is None:
            return f"{self.metric} <= {self.bound:g}"
        if self.most:
            return f"{self.metric} <= {self.bound:g} x {self.against}"
        return f">= {self.bound:g} x {self.against}"


@dataclass(frozen=True)
class Workload:
    """One line of the report."""

    name: str
    title: str
    durability: str
    contestants: dict[str, Callable[[Context], Sample]]
    targets: Sequence[Target] = ()
    prepare: Callable[[Context], None] | None = None
    records: int = 1_000_000
    rounds: int | None = None
    """None takes the number asked for; fixed where one run says it all."""
    module: str = "benchmarks"
    """What `python -m` has to run for a contestant's process."""


@dataclass
class Outcome:
    """All rounds of one workload."""

    name: str
    title: str
    durability: str
    rounds: list[dict[str, Sample]] = field(default_factory=list)
    targets: list[dict[str, object]] = field(default_factory=list)


def run(workload: Workload, base: Context, rounds: int, *, inline: bool) -> Outcome:
    """Measure `workload` under the directory of `base`; prints a line per run to stderr."""
    root = Path(base.directory) / workload.name.replace(" ", "-")
    outcome = Outcome(workload.name, workload.title, workload.durability)
    prepared = root / "prepared"
    records = min(base.records, workload.records)
    try:
        prepared.mkdir(parents=True)
        context = _context(base, prepared, prepared, records)
        if workload.prepare is not None:
            _execute(workload, "prepare", context, inline=inline)
        for number in range(workload.rounds or rounds):
            samples: dict[str, Sample] = {}
            for name in workload.contestants:
                directory = root / f"{number}-{name.replace(' ', '-')}"
                directory.mkdir()
                context = _context(base, directory, prepared, records)
                samples[name] = _execute(workload, name, context, inline=inline)
                shutil.rmtree(directory)
                _progress(f"{workload.name} round {number + 1} {name}: {_brief(samples[name])}")
            outcome.rounds.append(samples)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    outcome.targets = [judge(target, outcome.rounds) for target in workload.targets]
    return outcome


def judge(target: Target, rounds: Sequence[dict[str, Sample]]) -> dict[str, object]:
    """The target beside the median of what was measured."""
    ours = [samples[target.contestant][target.metric] for samples in rounds]
    if target.against is None:
        value = statistics.median(ours)
        met = value <= target.bound
    else:
        theirs = [samples[target.against][target.metric] for samples in rounds]
        value = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
        met = value <= target.bound if target.most else value >= target.bound
    return {**asdict(target), "text": target.describe(), "measured": value, "met": met}


def measure(workload: Workload, name: str, context: Context) -> Sample:
    """Run one contestant (or "prepare") in this process and add what it cost."""
    if name == "prepare":
        assert workload.prepare is not None
        workload.prepare(context)
        return {}
    gc.collect()
    sample = workload.contestants[name](context)
    # The peak counts from the start of the process; Linux gives kilobytes, macOS bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sample.setdefault("rss_peak_mb", peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))
    return sample


def work(workloads: Sequence[Workload], name: str, contestant: str, context: str) -> None:
    """One run in a process of its own: the context as JSON in, the sample on stdout."""
    (workload,) = (each for each in workloads if each.name == name)
    print(json.dumps(measure(workload, contestant, Context(**json.loads(context)))))


class Stopwatch:
    """Wall and processor seconds of a `with` block."""

    def __enter__(self) -> Self:
        self._cpu = time.process_time()
        self._wall = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._wall
        self.cpu_seconds = time.process_time() - self._cpu

    def sample(self, count: int) -> Sample:
        """Rate per wall second and per processor second."""
        return {
            "rate": count / self.seconds,
            "rate_per_cpu_s": count / max(self.cpu_seconds, 1e-9),
            "wall_s": self.seconds,
        }


def latencies(samples_ns: Sequence[int]) -> Sample:
    """p50 and p99 of nanoseconds, in microseconds."""
    ordered = sorted(samples_ns)
    return {
        "p50_us": ordered[len(ordered) // 2] / 1000,
        "p99_us": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] / 1000,
    }


def _context(base: Context, directory: Path, prepared: Path, records: int) -> Context:
    return Context(str(directory), str(prepared), records, base.seconds, base.seed, base.quick)


def _execute(workload: Workload, name: str, context: Context, *, inline: bool) -> Sample:
    if inline:
        return measure(workload, name, context)
    command = [sys.executable, "-m", workload.module, "--worker", workload.name, name]
    done = subprocess.run(
        [*command, json.dumps(asdict(context))], stdout=subprocess.PIPE, check=True, timeout=900
    )
    sample: Sample = json.loads(done.stdout)
    return sample


def _brief(sample: Sample) -> str:
    return ", ".join(f"{name} {value:,.4g}" for name, value in sample.items())


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
