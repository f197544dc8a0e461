"""Does a job cost more when many others wait?"""

from bench import Row, Target, Work, compare, interleave, main, timed
from workloads import noop

from cjm_worker_protocols import JobManager


async def measure(rounds: int, sizes: "list[int]") -> "list[Row]":
    """Seconds per job from the first `start_job` to the last result, with so many queued at once."""
    least, most = sizes[0], sizes[-1]

    def queue(size: int) -> Work:
        async def run() -> None:
            for job in [await manager.start_job("noop") for _ in range(size)]:
                await job

        async def several() -> float:
            times = max(1, min(5, most // size))
            return sum([await timed(run) for _ in range(times)]) / times / size

        return several

    async with JobManager("bench", "queued", plugins={"noop": noop}) as manager:
        await queue(least)()
        times = await interleave(rounds, **{str(size): queue(size) for size in sizes}, warm_up=False)
    names = ("1,000", "10,000", "100,000")  # also of a tiny run's rows
    return [
        compare(f"cost of a job with {name} queued", times[str(size)], f"with {names[0]}", times[str(least)], target)
        for name, size, target in zip(names, sizes, (None, FLAT, FLAT))
    ]


FLAT = Target("at most", 1.25)  # what we call flat

if __name__ == "__main__":
    sizes = [1_000, 10_000, 100_000]
    main(measure, full={"rounds": 2, "sizes": sizes}, tiny={"rounds": 1, "sizes": [3, 5, 9]}, limit=100)
