"""Real pages, drawn here and really read, by the plugin alone and in worker processes."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import pytest
from repo import python, said

from cjm_worker_protocols import JobManager
from cjm_worker_protocols.integrations.registry import EntryPointRegistry
from cjm_worker_protocols.plugins.extras import ExtraNotInstalledError, ParameterError
from cjm_worker_protocols.plugins.image import OCR, PIXELS, ImageFileError, RapidOcr, in_lines, read_image
from cjm_worker_protocols.worker import context
from cjm_worker_protocols.worker.context import CancelRequested
from cjm_worker_protocols.worker.describe import describe
from cjm_worker_protocols.worker.plugins import drive

TARGET = "cjm_worker_protocols.plugins.image:RapidOcr"
CONFIG = {"threads": 1, "Det.limit_side_len": 128}
LINES = ("Three models,", "one machine")


@pytest.fixture(scope="module")
def ocr() -> Iterator[RapidOcr]:
    """The plugin, loaded."""
    models.need(OCR)
    plugin = RapidOcr()
    plugin.load(CONFIG)
    yield plugin
    plugin.unload()


def draw(
    *lines: str, mode: str = "RGB", ink: Any = "black", paper: Any = "white", size: "tuple[int, int]" = (360, 120)
) -> Any:
    """A page with lines of text."""
    models.need(OCR)
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new(mode, size, paper)
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((20, 12 + 50 * number), line, fill=ink, font=ImageFont.load_default(28))
    return image


def saved(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of its file."""
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def read(plugin: RapidOcr, image: Any, **parameters: Any) -> "tuple[dict[str, Any], list[dict[str, Any]]]":
    """The result, and all that was yielded on the way."""
    pieces: "list[dict[str, Any]]" = []
    return drive(plugin.run(image, **parameters), pieces.append), pieces


def letters(text: str) -> str:
    """A text without what is easily misread: spaces, case and punctuation."""
    return re.sub(r"\W", "", text).lower()


WANTED = letters("".join(LINES))


def test_a_page_is_read(ocr: RapidOcr, tmp_path: Path) -> None:
    """Line by line, each with a box inside the page around its text, and a confidence."""
    path = tmp_path / "page.png"
    path.write_bytes(saved(draw(*LINES)))
    result, pieces = read(ocr, path)
    assert result["text"].splitlines() == [*LINES] and result["lines"] == pieces
    assert (result["width"], result["height"]) == (360, 120) and 0.8 < result["confidence"] <= 1
    for number, piece in enumerate(pieces):
        assert 0.8 < piece["confidence"] <= 1 and len(piece["box"]) == 4
        assert all(0 <= x <= 360 and 50 * number <= y <= 50 * number + 60 for x, y in piece["box"])


def test_progress_goes_with_the_lines(ocr: RapidOcr) -> None:
    """It rises to 1, and a cancelled job stops before the next line."""

    class Job:
        def __init__(self, checks: int) -> None:
            self.seen, self.checks = [0.0], checks

        def progress(self, fraction: float, message: str) -> None:
            self.seen.append(fraction)

        def check(self) -> None:
            self.checks -= 1
            if self.checks < 0:
                raise CancelRequested()

        def end(self) -> None:
            pass

    for checks, seen in ((5, [0.0, 0.0, 0.5, 1.0]), (1, [0.0, 0.0, 0.5])):
        job = Job(checks)
        context.enter(job)
        try:
            read(ocr, saved(draw(*LINES)))
        except CancelRequested:
            assert checks == 1
        finally:
            context.leave()
        assert job.seen == seen
    assert read(ocr, saved(draw(*LINES)))[0]["text"].splitlines() == [*LINES]


def kinds() -> "dict[str, bytes]":
    """The same page in files of many kinds."""
    import numpy
    from PIL import Image

    page, grey = draw(*LINES), draw(*LINES, mode="L", ink=0, paper=255)
    deep = numpy.asarray(grey).astype("uint16")
    turned = page.rotate(90, expand=True)
    exif = turned.getexif()
    exif[0x0112] = 6
    return {
        "grey": saved(grey),
        "grey and alpha": saved(draw(*LINES, mode="LA", ink=(0, 255), paper=(0, 0))),
        "one bit": saved(page.convert("1")),
        "palette": saved(page.convert("P"), "GIF"),
        "black on nothing": saved(draw(*LINES, mode="RGBA", ink="black", paper=(0, 0, 0, 0))),
        "white on nothing": saved(draw(*LINES, mode="RGBA", ink="white", paper=(255, 255, 255, 0))),
        "opaque RGBA": saved(page.convert("RGBA")),
        "white on black": saved(draw(*LINES, ink="white", paper="black")),
        "16 bits": saved(Image.fromarray(deep * 257)),
        "12 of 16 bits": saved(Image.fromarray(deep * 16), "TIFF"),
        "floats": saved(Image.fromarray(deep.astype("float32") / 255), "TIFF"),
        "CMYK": saved(page.convert("CMYK"), "JPEG", quality=90),
        "CMYK TIFF": saved(page.convert("CMYK"), "TIFF"),
        "lossy WebP": saved(page, "WEBP"),
        "BMP": saved(page, "BMP"),
        "held on its side": saved(turned, "JPEG", exif=exif, quality=90),
    }


def test_images_of_all_kinds_are_read_alike(ocr: RapidOcr) -> None:
    """Whatever the mode, the depth and the format."""
    for kind, data in kinds().items():
        result, _ = read(ocr, data)
        assert letters(result["text"]) == WANTED, (kind, result["text"])
        assert (result["width"], result["height"]) == (360, 120), kind


def test_arrays_of_all_kinds_are_read_alike(ocr: RapidOcr) -> None:
    """Red comes first, as Pillow has it; numbers of any type and range."""
    import numpy

    page = numpy.asarray(draw(*LINES))
    grey, alpha = page[:, :, 0], numpy.full(page.shape[:2], 255, "uint8")
    for array in (
        page,
        grey[:, :, None],
        numpy.dstack([page, alpha]),
        grey > 127,
        grey / 255,
        page.astype("int64") - 1000,
    ):
        result, _ = read(ocr, array)
        assert letters(result["text"]) == WANTED, (array.dtype, array.shape)
    assert numpy.asarray(read_image(numpy.dstack([alpha, alpha * 0, alpha * 0])))[0, 0].tolist() == [255, 0, 0]


def test_a_page_that_is_upside_down(ocr: RapidOcr) -> None:
    """Its lines are turned, one by one."""
    result, _ = read(ocr, saved(draw(*LINES).rotate(180)))
    assert {letters(line) for line in result["text"].splitlines()} == {letters(line) for line in LINES}


def test_reading_order(ocr: RapidOcr) -> None:
    """Pieces beside each other are one line, from left to right, also when one stands a little higher."""
    from PIL import ImageDraw, ImageFont

    page = draw(size=(480, 120))
    for at, text in (((300, 6), "3.20"), ((20, 60), "Total"), ((20, 12), "Coffee"), ((300, 66), "4.80")):
        ImageDraw.Draw(page).text(at, text, fill="black", font=ImageFont.load_default(28))
    result, pieces = read(ocr, saved(page))
    assert result["text"] == "Coffee 3.20\nTotal 4.80" and [piece["text"] for piece in pieces] == result["text"].split()


def test_boxes_in_any_order_make_the_same_lines() -> None:
    """The order in which they were found does not matter."""
    import random

    boxes = [[[x, y], [x + 50, y], [x + 50, y + 20], [x, y + 20]] for y in (0, 30, 61) for x in (0, 100, 200)]
    shuffled = random.Random(3).sample(boxes, len(boxes))
    assert (
        [box for line in in_lines(shuffled) for box in line] == boxes
        and len(in_lines(shuffled)) == 3
        and in_lines([]) == []
    )


def test_without_text_there_is_none(ocr: RapidOcr) -> None:
    """Blank pages, and images of odd sizes."""
    import numpy

    for shape in ((120, 360), (1, 1), (1, 9), (9, 1), (30, 200)):
        result, pieces = read(ocr, numpy.full(shape, 255, "uint8"))
        assert (result["text"], result["lines"], result["confidence"], pieces) == ("", [], 0.0, []), shape


def test_what_the_model_is_not_sure_of_is_dropped(ocr: RapidOcr) -> None:
    """As far as is asked: here a line that is out of focus."""
    models.need(OCR)
    from PIL import ImageFilter

    drawn = draw(*LINES)
    drawn.paste(drawn.crop((0, 60, 360, 120)).filter(ImageFilter.GaussianBlur(2)), (0, 60))
    page = saved(drawn)
    unsure, sure = sorted(read(ocr, page)[1], key=lambda piece: float(piece["confidence"]))
    assert unsure["confidence"] < sure["confidence"]
    assert read(ocr, page, min_confidence=sure["confidence"])[0]["text"] == sure["text"]


@pytest.mark.parametrize("value", [95, -0.1, float("nan"), "high", None, True])
def test_a_wrong_parameter_is_named(value: Any, ocr: RapidOcr) -> None:
    """Percents would drop all text."""
    with pytest.raises(ParameterError, match="min_confidence: expected a number from 0 to 1"):
        read(ocr, saved(draw()), min_confidence=value)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "many", 1 << 40])
def test_a_wrong_setting_is_named(threads: Any) -> None:
    """Before a model is loaded."""
    models.need(OCR)
    with pytest.raises(ParameterError, match="threads: expected a whole number"):
        RapidOcr().load({"threads": threads})


def bomb() -> bytes:
    """A PNG of some bytes that says it has 10 billion pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    """The error has the file, what was expected, and what is there."""
    good, jpeg = saved(draw(*LINES)), saved(draw(*LINES), "JPEG")
    cases = {
        "empty": (b"", "an empty file"),
        "text": (b"not an image at all", "begins with b'not an i'"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "begins with b'%!PS-Ado'"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "begins with b'<svg"),
        "half a PNG": (good[: len(good) // 2], "damaged"),
        "half a JPEG": (jpeg[: len(jpeg) // 2], "damaged"),
        "a header": (good[:30], "damaged|begins with"),
        "a bomb": (bomb(), f"100,000 by 100,000 pixels, of at most {PIXELS:,}|damaged.*decompression bomb"),
        "damaged": (good[:60] + bytes(40) + good[100:], "damaged"),
    }
    for name, (data, reason) in cases.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(data)
        for image, shown in ((path, str(path)), (data, "the bytes")):
            with pytest.raises(ImageFileError, match=reason) as caught:
                read_image(image)
            assert caught.value.name == shown and repr(shown) in str(caught.value), name
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path / "missing", "no such file"),
        (tmp_path, "a directory"),
        (tmp_path / "pipe", "a pipe"),
    ):
        with pytest.raises(ImageFileError, match=reason):
            read_image(str(path))
    with pytest.raises(ImageFileError, match="null"):
        read_image("a\0b")


def test_arrays_that_are_no_images_are_named() -> None:
    """A wrong shape, nothing in it, or no numbers; and anything else is a TypeError."""
    models.need(OCR)
    import numpy

    for array in (
        numpy.zeros(9),
        numpy.zeros((9, 9, 2)),
        numpy.zeros((1, 9, 9, 3)),
        numpy.zeros((9, 9), complex),
        numpy.array([["a"]]),
    ):
        with pytest.raises(ImageFileError, match="the array"):
            read_image(array)
    huge = numpy.lib.stride_tricks.as_strided(numpy.zeros(1, "uint8"), (10**5, 10**5), (0, 0))
    for array in (numpy.zeros((0, 9)), numpy.zeros((1, 61)), numpy.zeros((3000, 9)), huge):
        with pytest.raises(ImageFileError, match="pixels"):
            read_image(array)
    for thing in (5, None, ["a.png"]):
        with pytest.raises(TypeError):
            read_image(thing)


@pytest.mark.slow
def test_no_damage_breaks_it() -> None:
    """Random changes of good files are read, or are an error about the image."""
    import random

    dice = random.Random(5)
    for data in kinds().values():
        for _ in range(30):
            bad = bytearray(data)
            for _ in range(dice.randint(1, 8)):
                bad[dice.randrange(len(bad))] = dice.randrange(256)
            try:
                assert read_image(bytes(bad[: dice.randint(1, len(bad))] if dice.random() < 0.3 else bad)).mode == "RGB"
            except ImageFileError:
                pass


def test_no_file_is_left_open(tmp_path: Path) -> None:
    """Good or bad."""
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(saved(draw(*LINES)))
    bad.write_bytes(good.read_bytes()[:200])
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        read_image(good)
        with pytest.raises(ImageFileError):
            read_image(bad)
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.limit(120)
async def test_in_a_worker(ocr: RapidOcr, tmp_path: Path) -> None:
    """It reads as it does outside, of a path, bytes and an array; an error does not end the process."""
    import numpy

    page = draw(*LINES)
    path = tmp_path / "page.png"
    path.write_bytes(saved(page))
    expected, _ = read(ocr, path)
    registry = EntryPointRegistry({"ocr": TARGET}, {"ocr": CONFIG})
    async with JobManager("image", "image", plugins=registry.targets(), plugin_registry=registry) as manager:
        job = await manager.start_job("ocr", image=str(path))
        assert [piece async for piece in job.stream()] == expected["lines"] and await job == expected
        assert await (await manager.start_job("ocr", image=path.read_bytes())) == expected
        assert await (await manager.start_job("ocr", image=numpy.asarray(page))) == expected
        failed = await (await manager.start_job("ocr", image=str(tmp_path / "gone.png"))).wait()
        assert failed.error and failed.error.category == "exception" and "gone.png" in failed.error.message
        assert failed.worker_pid == job.worker_pid


def test_what_is_missing_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cjm-workers plugins` shows it, with the line for pip."""
    monkeypatch.setattr("cjm_worker_protocols.plugins.extras.find_spec", lambda name: None)
    assert describe(TARGET)["problem"] == "needs rapidocr, onnxruntime: run pip install 'cjm-worker-protocols[ocr]'"


def test_importing_it_imports_no_model(tmp_path: Path) -> None:
    """The module costs nothing until a model is loaded."""
    code = "import sys, cjm_worker_protocols.plugins.image as i; print({*i.OCR.packages, 'numpy', 'PIL', 'cv2'} & {*sys.modules})"
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == "set()", said(done)


@pytest.mark.parametrize("package", OCR.packages)
def test_without_the_extra_the_error_says_how_to_get_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading names the package that is missing, and the extra."""
    models.need(OCR)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExtraNotInstalledError, match=r"pip install 'cjm-worker-protocols\[ocr\]'") as caught:
        RapidOcr().load({})
    assert caught.value.package == package


@pytest.mark.slow
def test_it_reads_without_a_network(tmp_path: Path) -> None:
    """Its models are in its wheel, and from the command line it gives the text."""
    (tmp_path / "page.png").write_bytes(saved(draw(*LINES)))
    hook = "def hook(event, args):\n    if event == 'socket.getaddrinfo': raise OSError('offline')\n"
    (tmp_path / "sitecustomize.py").write_text(f"{hook}import sys\nsys.addaudithook(hook)\n")
    command = ("run", TARGET, "image=page.png", '--config={"threads": 1, "Det.limit_side_len": 128}')
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", "cjm_worker_protocols", *command],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout.count('{"event": "job:chunk"') == 2, done.stdout + done.stderr
