"""What does a question to the app's registry cost: on its thread, with the loop waiting for a moment or going on, and on the loop?"""

from collections import Counter
from typing import Any

from bench import Row, Target, compare, interleave, main, timed
from busy import STATES, Others
from integrations import Registry

from cjm_worker_protocols.managers.integrations import RegistryClient


class Impatient(RegistryClient):
    """The loop never waits itself."""

    PATIENCE = 0.0


async def measure(rounds: int, questions: int) -> "list[Row]":
    """Seconds for a question, in three states of the machine."""

    async def ask(client: RegistryClient) -> None:
        for _ in range(questions):
            await client.look_up("noop")

    async def call() -> None:
        for _ in range(questions):
            registry.get_plugin("noop"), registry.load_plugin_config("noop")

    registry, errors = Registry(), Counter[str]()
    waits, goes_on = (kind(registry, "bench", 5.0, 100, errors) for kind in (RegistryClient, Impatient))
    rows: "list[Row]" = []
    with Others() as others:
        for state, count in STATES.items():
            works: "dict[str, Any]" = {
                "waits": lambda: timed(lambda: ask(waits)),
                "goes_on": lambda: timed(lambda: ask(goes_on)),
                "on_loop": lambda: timed(call),
            }
            with others.running(count):
                each = await interleave(rounds, **works)
            took = {name: [seconds / questions for seconds in times] for name, times in each.items()}
            question = f"question to a quick registry, {state}"
            rows.append(compare(question, took["waits"], "the loop goes on meanwhile", took["goes_on"], Target("at most", 0.5)))
            rows.append(compare(question, took["waits"], "called on the loop, which nothing bounds", took["on_loop"]))
    for client in (waits, goes_on):
        await client.executor.close()
    return rows


if __name__ == "__main__":
    main(measure, full={"rounds": 20, "questions": 100}, tiny={"rounds": 1, "questions": 3})
