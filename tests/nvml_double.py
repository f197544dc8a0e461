"""A stand-in for NVIDIA's library on a machine of any kind: it raises the exception classes of the real nvidia-ml-py."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

GB = 10**9
KINDS = ("Compute", "Graphics", "MPSCompute")


def error(name: str) -> Exception:
    """The real exception of that name, such as `GpuIsLost`."""
    made: Exception = getattr(pynvml, f"NVMLError_{name}")()
    return made


@dataclass
class Card:
    """A GPU, or an instance of one."""

    total: int = 80 * GB
    used: int = 0
    uuid: str = ""
    name: "str | bytes" = "Model"
    processes: "dict[str, list[Any]]" = field(default_factory=lambda: {"Compute": []})  # (pid, bytes, *other fields) by kind
    fails: "dict[str, str]" = field(default_factory=dict)  # The exception's name by the end of the function's name
    instances: "list[Card | None] | None" = None  # Of a GPU in MIG mode; None is an empty slot


class Library:
    """The functions that are asked, and how often the library was started and stopped."""

    def __init__(self, *cards: Card, **fails: str) -> None:
        self.cards, self.fails, self.calls = list(cards), fails, list[str]()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVMLError"):
            return getattr(pynvml, name)
        if not hasattr(pynvml, name):
            raise AttributeError(name)
        return lambda *arguments: self._answer(name.removeprefix("nvml").removeprefix("DeviceGet"), *arguments)

    def _answer(self, question: str, *arguments: Any) -> Any:
        if question in ("Init", "Shutdown"):
            self.calls.append(question)
        owner = arguments[0] if arguments and isinstance(arguments[0], Card) else None
        fails = self.fails if owner is None else owner.fails
        if question in fails:
            raise error(fails[question])
        if owner is None or question.startswith(("Mig", "MaxMig")):
            return getattr(self, f"get_{question}")(*arguments)
        return self._of(owner, question)

    def get_Init(self) -> None:
        """Nothing to do."""

    def get_Shutdown(self) -> None:
        """Nothing to do."""

    def get_Count(self) -> int:
        """All, those that do not answer included, as NVML documents."""
        return len(self.cards)

    def get_HandleByIndex(self, index: int) -> Card:
        """A card stands for its own handle."""
        card = self.cards[index]
        if "HandleByIndex" in card.fails:
            raise error(card.fails["HandleByIndex"])
        return card

    def get_MigMode(self, card: Card) -> "list[int]":
        """Only some GPUs have that mode."""
        if card.instances is None:
            raise error("NotSupported")
        return [1, 1]

    def get_MaxMigDeviceCount(self, card: Card) -> int:
        """Slots, those that are empty included."""
        return len(card.instances or ())

    def get_MigDeviceHandleByIndex(self, card: Card, slot: int) -> Card:
        """An empty slot is not found."""
        found = (card.instances or [])[slot]
        if found is None:
            raise error("NotFound")
        if "MigDeviceHandleByIndex" in found.fails:
            raise error(found.fails["MigDeviceHandleByIndex"])
        return found

    def _of(self, card: Card, question: str) -> Any:
        for kind in KINDS:
            if question == f"{kind}RunningProcesses":
                if kind not in card.processes:
                    raise error("NotSupported")
                return [SimpleNamespace(pid=pid, usedGpuMemory=amount, **dict(rest)) for pid, amount, *rest in card.processes[kind]]
        return {"Name": card.name, "UUID": card.uuid, "MemoryInfo": SimpleNamespace(total=card.total, used=card.used)}[question]
