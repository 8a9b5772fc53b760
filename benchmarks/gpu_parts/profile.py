"""The kernels of one client's round: torch's profiler over a unit whose steps are recorded already."""

from torch.autograd import DeviceType  # pyright: ignore - not listed, but documented
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_parts.engines import broadcast, engine, synchronize
from benchmarks.gpu_parts.log import Log
from benchmarks.gpu_parts.setup import Setup
from rayfl.prepare import prepare
from rayfl.training.process import configure_process
from rayfl.training.units import WorkUnit

TOP = 25


def run(setup: Setup, log: Log) -> None:
    configure_process(threads=1)
    prepared = prepare(setup.experiment("federation.precision=tf32"))
    trainer = engine(prepared, setup.device)
    sent, on_gpu = broadcast(prepared, trainer.algorithm), setup.device == "cuda"
    result, memories = trainer.train(WorkUnit(1, (0,), 0.1), sent, [None])
    for round in (2, 3):
        trainer.train(WorkUnit(round, (0,), 0.1), sent, [*memories])
    synchronize(setup.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        result, _ = trainer.train(WorkUnit(4, (0,), 0.1), sent, [*memories])
        synchronize(setup.device)
    steps = int(result.steps.sum())
    time = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    device = (
        DeviceType.CUDA if on_gpu else DeviceType.CPU
    )  # else operations count beside their kernels
    rows = [
        row
        for row in profiler.key_averages()
        if row.device_type == device and getattr(row, time) > 0
    ]
    rows.sort(key=lambda row: -getattr(row, time))
    kind = "kernels" if on_gpu else "operations (no GPU: of the CPU)"
    log.value(f"{kind} a step", sum(row.count for row in rows) / steps)
    total = sum(getattr(row, time) for row in rows)
    log.value("device time a step", total / steps / 1e3, "ms")
    with (setup.out / "profile.txt").open("w") as file:
        for row in rows[:TOP]:
            used, count = getattr(row, time) / steps, row.count / steps
            file.write(f"{used:9.1f} us {count:6.1f} x  {row.key[:200]}\n")
    for row in rows[:5]:
        log.value(row.key[:60], getattr(row, time) / steps, "us", note="a step")
    log.note(f"the first {TOP}", "profile.txt")
