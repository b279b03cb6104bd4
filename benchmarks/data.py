"""The records every workload uses: made from a seed, the same for all contestants."""

from __future__ import annotations

import random

KEY_BYTES = 16
VALUE_BYTES = 100
USERS = 10_000
HOUR_MS = 3_600_000
DISORDER_MS = 10_000
START_MS = 1_700_000_000_000 - 1_700_000_000_000 % HOUR_MS


def records(count: int, seed: int) -> tuple[list[bytes], list[bytes]]:
    """Keys of 16 bytes and JSON-like values of 100 bytes."""
    choose = random.Random(seed).randrange
    keys = [b"user-%011d" % choose(USERS) for _ in range(count)]
    values = [
        b'{"user":"u%05d","amount":%04d.%02d,"ts":%013d,"city":"Springfield","note":"%016d"}'
        % (choose(USERS), choose(10_000), choose(100), START_MS + index, choose(1 << 30))
        for index in range(count)
    ]
    assert len(keys[0]) == KEY_BYTES
    assert len(values[0]) == VALUE_BYTES, len(values[0])
    return keys, values


def events(count: int, seed: int) -> list[bytes]:
    """JSON events of one hour, up to 10 s out of order, of 10,000 users."""
    choose = random.Random(seed).randrange
    step = HOUR_MS / count
    return [
        b'{"user":"u%d","amount":%d.%02d,"ts":%d}'
        % (
            choose(USERS),
            choose(100),
            choose(100),
            START_MS + DISORDER_MS + int(index * step) - choose(DISORDER_MS),
        )
        for index in range(count)
    ]
