"""How many pieces of a stream arrive in a second?"""

from bench import Row, Target, compare, interleave, main, timed
from peers import Bare
from workloads import stream

from cjm_worker_protocols import JobManager


async def measure(rounds: int, chunks: int) -> "list[Row]":
    """Chunks per second from a generator to `async for`, none of them dropped."""

    async def ours() -> None:
        job = await manager.start_job("stream", count=chunks)
        came = 0
        async for _ in job.stream():
            came += 1
        assert came == chunks, came

    async def frames() -> None:
        assert bare.stream(chunks) == chunks

    with Bare() as bare:
        async with JobManager("bench", "stream", plugins={"stream": stream}) as manager:
            times = await interleave(rounds, bare=lambda: timed(frames), ours=lambda: timed(ours))
    each = {name: [chunks / t for t in took] for name, took in times.items()}
    half = Target("at least", 0.5)
    return [compare("streamed chunks", each["ours"], "bare pickled frames", each["bare"], half, rates=True)]


if __name__ == "__main__":
    main(measure, full={"rounds": 20, "chunks": 5_000}, tiny={"rounds": 1, "chunks": 10})
