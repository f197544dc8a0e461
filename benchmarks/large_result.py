"""How long does a result of 100 MB take?"""

from bench import Row, Target, compare, interleave, main, timed
from peers import Bare
from workloads import SIZE, large

from cjm_worker_protocols import JobManager


async def measure(rounds: int) -> "list[Row]":
    """A job whose result is 100 MB of bytes, against as many bytes over a bare socketpair."""

    async def ours() -> None:
        result = await (await manager.start_job("large"))
        assert len(result) == SIZE
        manager.clear_completed_jobs()  # else every round's result is kept, and memory never used before is slow to get

    async def theirs() -> None:
        bare.large(SIZE)

    with Bare() as bare:
        async with JobManager("bench", "large", plugins={"large": large}) as manager:
            times = await interleave(rounds, bare=lambda: timed(theirs), ours=lambda: timed(ours))
    return [compare("result of 100 MB", times["ours"], "bare socketpair", times["bare"], Target("at most", 3))]


if __name__ == "__main__":
    main(measure, full={"rounds": 9}, tiny={"rounds": 1})
