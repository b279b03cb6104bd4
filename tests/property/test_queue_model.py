"""Queues against the model in `support/queue_world.py`: random steps, each repeatable by its seed.

`MILLSTREAM_SEED=n` takes others, `MILLSTREAM_STEPS=n` more of them.
"""

from __future__ import annotations

import os

import pytest
from queue_world import World

SEED = int(os.environ.get("MILLSTREAM_SEED", "0")) * 1000
STEPS = int(os.environ.get("MILLSTREAM_STEPS", "400"))


@pytest.mark.parametrize("seed", range(SEED, SEED + 8))
def test_workers_that_come_and_go_do_every_job_once(seed: int) -> None:
    world = World(seed)
    world.begin()
    for number in range(STEPS):
        world.step()
        if number % 10 == 0:
            world.check()
    assert len(world.done) > STEPS / 10
    world.end()


@pytest.mark.parametrize("seed", range(SEED, SEED + 6))
def test_the_machine_may_lose_power_between_their_steps(seed: int) -> None:
    world = World(seed)
    world.begin()
    for number in range(STEPS // 2):
        world.step()
        if number % 40 == 39:
            world.lose_power(seed + number, world.random.choice(("none", "all", "random")))
            world.check()
    world.end()
