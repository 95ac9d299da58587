"""How many cores are used in a container."""

import os
from pathlib import Path

import pytest

from trainer.devices import available_cores

ALL = len(os.sched_getaffinity(0))
V1 = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "130000 100000\n"}, min(2, ALL)),
        ({"cpu.max": "9900000 100000\n"}, ALL),
        ({"cpu.max": "max 100000\n"}, ALL),
        (dict(zip(V1, ("50000\n", "100000\n"), strict=True)), 1),
        (dict(zip(V1, ("-1\n", "100000\n"), strict=True)), ALL),
        ({}, ALL),
    ],
)
def test_no_more_cores_than_the_container_gets(tmp_path: Path, files: dict, cores: int):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert available_cores(tmp_path) == cores
