"""Crash the log for as many minutes as you like, each time differently: `make crash SEED=7`.

    python tests/crash/campaign.py --seed 7 --minutes 5
    python tests/crash/campaign.py --seed 7 --only "full disks"

Half of the time goes to the tests of `tests/crash`, `tests/property` and whatever else kills
processes: with the choices of the seed and over the whole matrix, in an order of the seed, as far
as they come. In a campaign of two hours or more they are as large as they can be (every bit of a
catalog, 100,000 segments); in a shorter one no larger than in `make test`.

The other half is rounds of random lives: of a store that loses power at each operation, is killed
at each while others go on, runs out of disk space at each write; of real processes in many roles
(append, roll, retention, transactions, compaction, groups, queues, backups, full disks, a pipeline
of many operators) that are killed at random moments; and of random pipelines against their models.

No test and no part of a round begins when the time is up; what has begun is finished. A failure
says the command that tries it again: what the processes do is the same then, the moments of the
kills are those of the machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

ROOT = Path(__file__).parent.parent.parent
SUPPORT = ROOT / "tests" / "support"
sys.path[:0] = [str(Path(__file__).parent), str(SUPPORT)]

from kill_rounds import KillRounds, fast_directory  # noqa: E402
from operators_rounds import kill_operators  # noqa: E402
from random_runs import check  # noqa: E402
from restarts import (  # noqa: E402 - found by the line above
    crash_everywhere,
    fill_the_disk_everywhere,
    kill_everywhere,
)
from small_disk import fill_and_kill  # noqa: E402
from test_process_kill import kill_again_and_again  # noqa: E402
from workload import Workload  # noqa: E402
from zygote import Zygote  # noqa: E402

SMALL = {"MILLSTREAM_KILLS": "10"}
"""Of a campaign of minutes no test should take many of them."""
LARGE_FROM_MINUTES = 120.0
LARGE = {
    "MILLSTREAM_FLIPS": "1000",
    "MILLSTREAM_CATALOG_FLIPS": "all",
    "MILLSTREAM_FUZZ_EXAMPLES": "600",
    "MILLSTREAM_MODEL_EXAMPLES": "100",
    "MILLSTREAM_PLANS": "1000",
    "MILLSTREAM_SEGMENTS": "100000",
    "MILLSTREAM_TOPICS": "1000",
}
LARGE_PATIENCE = ("-o", "faulthandler_timeout=3600")
"""Every bit of a catalog takes minutes, on a busy machine more than a test that waits is given."""
SEGMENT_BYTES = (4096, 16384, 1 << 26)


class Watch:
    """Says what is done, and how long after the begin."""

    def __init__(self, minutes: float) -> None:
        self._began = time.monotonic()
        self.seconds = minutes * 60

    @property
    def past(self) -> float:
        """Seconds since the begin."""
        return time.monotonic() - self._began

    @property
    def up(self) -> bool:
        """Whether nothing should begin any more."""
        return self.past > self.seconds

    def say(self, text: str) -> None:
        """Print a line now."""
        minutes, seconds = divmod(int(self.past), 60)
        print(f"{minutes:3d}:{seconds:02d} {text}", flush=True)  # noqa: T201


# --- the parts of a round ------------------------------------------------------------------------


def _life(random: Random, steps: int, processes: int = 1) -> Workload:
    return Workload(
        seed=random.randrange(1 << 30),
        steps=steps,
        compression=random.choice(("none", "lz4", "zstd")),
        segment_bytes=random.choice(SEGMENT_BYTES),
        value_bytes_max=random.choice((50, 1200, 6000)),
        processes=processes,
    )


def lose_power(seed: int) -> Counter[str]:
    """At each operation of the life of a store, with any of what was not synced lost."""
    random = Random(seed)
    life = _life(random, random.randrange(8, 24), random.randrange(1, 4))
    return Counter({"power failures": crash_everywhere(life, seeds=(seed, seed + 1, seed + 2))})


def kill_at_operations(seed: int) -> Counter[str]:
    """Before and after each operation, while another process goes on."""
    random = Random(seed)
    return Counter({"kills": kill_everywhere(_life(random, random.randrange(8, 20)))})


def fill_disks(seed: int) -> Counter[str]:
    """At each write."""
    random = Random(seed)
    return Counter({"full disks": fill_the_disk_everywhere(_life(random, random.randrange(8, 20)))})


def kill_writers(seed: int) -> Counter[str]:
    """Processes that live the random life of a store; each imports all of it first."""
    kills = 10
    size = Random(seed).choice(SEGMENT_BYTES)
    with tempfile.TemporaryDirectory(dir=fast_directory()) as directory:
        kill_again_and_again(Path(directory) / "store", seed=seed, kills=kills, segment_bytes=size)
    return Counter({"kills": kills})


def kill_roles(seed: int) -> Counter[str]:
    """Processes of all roles, in waves."""
    with tempfile.TemporaryDirectory(dir=fast_directory()) as directory, Zygote() as zygote:
        rounds = KillRounds(zygote, Path(directory), seed)
        for _ in range(24):
            rounds.play()
    return Counter({f"kills of {role}": count for role, count in sorted(rounds.kills.items())})


def kill_on_a_full_disk(seed: int) -> Counter[str]:
    """Of 3 MiB, if one may be mounted here."""
    with tempfile.TemporaryDirectory(dir=fast_directory()) as directory, Zygote() as zygote:
        kills = fill_and_kill(zygote, Path(directory) / "small", seed, kills=10)
    return Counter({"kills" if kills else "(none may be mounted here)": kills})


def kill_a_pipeline(seed: int) -> Counter[str]:
    """Of many operators; its results against those of a quiet run."""
    tried: Counter[str] = Counter()
    for spilled in (False, True):
        tried["kills"] += kill_operators(seed, 25, spilled=spilled).phases.total()
    return tried


def try_pipelines(seed: int) -> Counter[str]:
    """Random ones against their models."""
    count = 500
    for number in range(count):
        check(seed * 1_000_003 + number)
    return Counter({"pipelines": count})


PARTS: dict[str, Callable[[int], Counter[str]]] = {
    "power failures at each operation": lose_power,
    "kills at each operation": kill_at_operations,
    "a full disk at each write": fill_disks,
    "writers killed": kill_writers,
    "processes of all roles killed": kill_roles,
    "writers killed on a full disk": kill_on_a_full_disk,
    "a pipeline killed": kill_a_pipeline,
    "random pipelines": try_pipelines,
}


# --- the two halves ------------------------------------------------------------------------------


def run_tests(watch: Watch, seed: int, jobs: str, seconds: float) -> bool:
    """The tests, as far as they come; whether none failed."""
    large = watch.seconds >= LARGE_FROM_MINUTES * 60
    watch.say(
        f"tests, {'as large as can be' if large else 'none of them large'}, in an order of"
        f" seed {seed}, for {seconds / 60:.1f} minutes (collecting them takes a while)"
    )
    given = {
        "MILLSTREAM_SEED": str(seed),
        "MILLSTREAM_CELLS": "all",
        "MILLSTREAM_TEST_SECONDS": str(seconds),
        "PYTHONPATH": str(SUPPORT),
    }
    kill_elsewhere = [
        str(path.relative_to(ROOT))
        for path in sorted(ROOT.glob("tests/integration/test_*.py"))
        if "pytest.mark.crash" in path.read_text()
    ]
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "campaign_tests", "-n", jobs),
        *("--dist", "worksteal", f"--hypothesis-seed={seed}", "tests/crash", "tests/property"),
        *(LARGE_PATIENCE if large else ()),
        *kill_elsewhere,
    ]
    done = subprocess.run(
        command, env=os.environ | (LARGE if large else SMALL) | given, cwd=ROOT, check=False
    )
    return done.returncode == 0


def play_rounds(watch: Watch, first_seed: int, rounds: int) -> bool:
    """Rounds until the time is up, or one fails; whether none did."""
    total: Counter[str] = Counter()
    for number in range(rounds):
        # The first one has the seed that was given, so that a failure can be tried again with its.
        seed = first_seed * 1_000_003 + number if number else first_seed
        for name in Random(seed).sample(list(PARTS), len(PARTS)):
            if watch.up:
                watch.say(f"the time is up: {_counts(total)}")
                return True
            watch.say(f"round {number + 1}, seed {seed}: {name} ...")
            if (tried := _try(watch, name, seed)) is None:
                return False
            total += tried
    watch.say(f"all rounds: {_counts(total)}")
    return True


def _try(watch: Watch, name: str, seed: int) -> Counter[str] | None:
    """One part of a round; None if it failed."""
    began = watch.past
    try:
        tried = PARTS[name](seed)
    except Exception:
        traceback.print_exc()
        watch.say(f"FAILED, again: python tests/crash/campaign.py --seed {seed} --only '{name}'")
        return None
    watch.say(f"    {watch.past - began:.0f} s: {_counts(tried)}")
    return tried


def _counts(tried: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in tried.items()) or "nothing was tried"


def main() -> int:
    """Half of the time tests, half of it rounds; 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--seed", type=int, default=0, help="of the choices of all tests and rounds"
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="begin nothing after that")
    parser.add_argument("--jobs", default="auto", help="processes for the tests")
    parser.add_argument("--rounds", type=int, default=1 << 30, help="no tests; at most that many")
    parser.add_argument("--only", choices=PARTS, help="this part of one round, and no tests")
    arguments = parser.parse_args()
    watch = Watch(arguments.minutes)
    if arguments.only:
        return 0 if _try(watch, arguments.only, arguments.seed) is not None else 1
    fine = True
    if arguments.rounds == 1 << 30:
        fine = run_tests(watch, arguments.seed, arguments.jobs, watch.seconds / 2)
    fine = play_rounds(watch, arguments.seed, arguments.rounds) and fine
    watch.say("nothing has failed" if fine else "something has FAILED, see above")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
