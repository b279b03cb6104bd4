"""Crash the log for as long as you like, each time differently: `make crash SEED=7`.

    python tests/crash/campaign.py --seed 7 --minutes 5

The tests beside this file try a fixed choice of what happens here: random lives of a store that
lose power at each operation, are killed at each operation while others go on, run out of disk
space at each write; and real processes in many roles (append, roll, retention, transactions,
compaction, groups, queues, backups, full disks, a pipeline of many operators) that are killed at
random moments; and random pipelines against their models. A round takes two or three minutes and
has a seed of its own; a failure prints it, and `--seed N --rounds 1` tries it again: what the
processes do is the same then, the moments of the kills are those of the machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "support")]

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

KILL_ROUNDS = 24
PIPELINE_KILLS = 50
RANDOM_PLANS = 500
SEGMENT_BYTES = (4096, 16384, 1 << 26)


def play(seed: int) -> dict[str, int]:
    """One round; how many cases of each kind it tried."""
    random = Random(seed)

    def workload(steps: int, processes: int = 1) -> Workload:
        return Workload(
            seed=random.randrange(1 << 30),
            steps=steps,
            compression=random.choice(("none", "lz4", "zstd")),
            segment_bytes=random.choice(SEGMENT_BYTES),
            value_bytes_max=random.choice((50, 1200, 6000)),
            processes=processes,
        )

    seeds = (seed, seed + 1, seed + 2)
    with tempfile.TemporaryDirectory(dir=fast_directory()) as directory, Zygote() as zygote:
        place = Path(directory)
        kills = 30
        kill_again_and_again(
            place / "store", seed=seed, kills=kills, segment_bytes=random.choice(SEGMENT_BYTES)
        )
        (place / "rounds").mkdir()
        rounds = KillRounds(zygote, place / "rounds", seed)
        for _ in range(KILL_ROUNDS):
            rounds.play()
        small = fill_and_kill(zygote, place / "small", seed, kills=10)
    for number in range(RANDOM_PLANS):
        check(seed * 1_000_003 + number)
    life = workload(random.randrange(8, 24), random.randrange(1, 4))
    return {
        "power failures": crash_everywhere(life, seeds=seeds),
        "kills at an operation": kill_everywhere(workload(random.randrange(8, 20))),
        "full disks": fill_the_disk_everywhere(workload(random.randrange(8, 20))),
        "killed on a full disk" if small else "on a full disk, as none may be mounted here": small,
        **{f"killed: {role}": count for role, count in sorted(rounds.kills.items())},
        "killed: life": kills,
        "random pipelines": RANDOM_PLANS,
        "killed: pipeline": kill_operators(seed, PIPELINE_KILLS).phases.total(),
    }


def main() -> int:
    """Play rounds until the time is up or one fails; 0 if none did."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of the first round")
    parser.add_argument("--minutes", type=float, default=5.0, help="start no round after that")
    parser.add_argument("--rounds", type=int, default=1 << 30, help="at most that many")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.minutes * 60
    total: dict[str, int] = {}
    for number in range(arguments.rounds):
        seed = arguments.seed * 1_000_003 + number if number else arguments.seed
        try:
            tried = play(seed)
        except BaseException:
            traceback.print_exc()
            print(f"failed: python tests/crash/campaign.py --seed {seed} --rounds 1")  # noqa: T201
            return 1
        total = {kind: total.get(kind, 0) + count for kind, count in tried.items()}
        said = ", ".join(f"{count} {kind}" for kind, count in total.items())
        print(f"round {number + 1}, seed {seed}: {said} so far", flush=True)  # noqa: T201
        if time.monotonic() > end:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
