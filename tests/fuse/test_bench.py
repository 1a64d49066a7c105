"""The benchmark measures every contestant for real, and ends them all."""

from pathlib import Path

import pytest

from bench.session import Plan, run
from bench.workloads import CONTESTANTS, DIRECTORY, FUSECACHE, RBD, WORKLOADS

SERVED_BY_NOBODY = ("B", "L")


@pytest.mark.parametrize("place", [DIRECTORY, RBD])
def test_every_contestant_is_measured_and_ended(place: str, tmp_path: Path) -> None:
    workload = next(each for each in WORKLOADS if each.place == place and each.access == "randwrite")
    measured = run(Plan(rounds=2, seconds=0.1, mebibytes=16), [workload], tmp_path)

    assert [(result.target, result.reason) for result in measured.results] == [
        (target, None) for target in CONTESTANTS[place]
    ]
    for result in measured.results:
        assert len(result.samples) == 2
        for sample in result.samples:
            assert sample.iops > 0
            assert sample.latency_p50_us is not None
            assert sample.latency_p99_us is not None
            assert sample.latency_p99_us >= sample.latency_p50_us
        assert all((sample.cpu_us is None) == (result.target in SERVED_BY_NOBODY) for sample in result.samples)
    assert [(hop.layer, hop.operation) for hop in measured.hops] == [("0", "write"), ("backend", "write")]
    assert all(hop.requests > 0 and hop.mean_us > 0 for hop in measured.hops)
    assert list(measured.options) == [(place, target) for target in CONTESTANTS[place]]
    assert f'type = "{place}"' in measured.options[place, FUSECACHE]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
