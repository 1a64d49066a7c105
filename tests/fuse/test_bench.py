"""The benchmark measures every contestant for real, and ends them all."""

from pathlib import Path

from bench.session import Plan, run
from bench.workloads import BARE, FUSECACHE, QEMU, chosen


def test_every_contestant_is_measured_and_ended(tmp_path: Path) -> None:
    _, workloads = chosen("passthrough-directory-write")
    plan = Plan(rounds=2, seconds=0.1, targets=(FUSECACHE, QEMU, BARE), mebibytes=16)
    measured = run(plan, workloads[:1], tmp_path)

    assert [(result.target, result.reason) for result in measured.results] == [
        (FUSECACHE, None),
        (QEMU, None),
        (BARE, None),
    ]
    for result in measured.results:
        assert len(result.samples) == 2
        assert all(sample.iops > 0 and sample.latency_p99_us >= sample.latency_p50_us for sample in result.samples)
        assert all((sample.cpu_us is None) == (result.target == BARE) for sample in result.samples)
    assert [(hop.layer, hop.operation) for hop in measured.hops] == [("0", "write"), ("backend", "write")]
    assert all(hop.requests > 0 and hop.mean_us > 0 for hop in measured.hops)
    assert "qemu-storage-daemon --blockdev" in measured.options[QEMU]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
