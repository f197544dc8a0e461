"""Real recordings, really transcribed, by the plugin alone and in worker processes."""

import asyncio
import math
import os
import pickle
import struct
import sys
import warnings
import wave
from array import array
from pathlib import Path
from typing import Any, Iterator

import pytest
from repo import python, said

from cjm_worker_protocols import JobError, JobManager
from cjm_worker_protocols.worker import context
from cjm_worker_protocols.worker.plugins import drive
from cjm_worker_protocols.plugins.extras import ExtraNotInstalledError
from cjm_worker_protocols.plugins.speech import SPEECH, AudioFileError, PocketSphinx, Recording, WideWav, sample_recording

SPOKEN = (
    "the model is loaded once and then it answers many questions",
    "if one of the workers dies the others go on with their work",
)


@pytest.fixture(scope="module")
def speech() -> Iterator[PocketSphinx]:
    """The plugin, loaded."""
    if problem := SPEECH.problem():
        pytest.skip(f"the plugin {problem}")
    plugin = PocketSphinx()
    plugin.load({})
    yield plugin
    plugin.unload()


@pytest.fixture(scope="module")
def samples() -> "list[float]":
    """The samples of the recording, from -1 to 1."""
    with wave.open(str(sample_recording())) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (16000, 2, 1)
        data = file.readframes(file.getnframes())
    return [value / 32768 for (value,) in struct.iter_unpack("<h", data)]


def resampled(samples: "list[float]", rate: int) -> "list[float]":
    """The same sound at another rate, straight lines between the samples; one of a lower rate has its highs taken first."""
    step = 16000 / rate
    if (width := math.ceil(step)) > 1:
        samples = [sum(samples[i : i + width]) / width for i in range(len(samples) - width)]
    made = []
    for i in range(int((len(samples) - 1) / step)):
        at, part = divmod(i * step, 1)
        made.append(samples[int(at)] * (1 - part) + samples[int(at) + 1] * part)
    return made


def encoded(value: float, width: int) -> bytes:
    """A sample as WAV files have it: unsigned when it is one byte wide, else signed."""
    whole: float = max(-1.0, min(1.0, value))
    if width == 1:
        return bytes([round(whole * 127) + 128])
    return round(whole * ((1 << 8 * width - 1) - 1)).to_bytes(width, "little", signed=True)


def write(path: Path, samples: "list[float]", rate: int = 16000, width: int = 2, channels: int = 1) -> Path:
    """A WAV file, as the standard library writes it; with more channels the sound is in the last, and twice as loud."""
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        silent = encoded(0, width) * (channels - 1)
        file.writeframes(b"".join(silent + encoded(value * min(channels, 1.4), width) for value in samples))
    return path


def transcribe(plugin: PocketSphinx, path: "str | Path") -> "tuple[dict[str, Any], list[dict[str, Any]]]":
    """The result, and all that was yielded on the way."""
    heard: "list[dict[str, Any]]" = []
    return drive(plugin.run(path), heard.append), heard


def wrong(text: str, said: "tuple[str, ...]" = SPOKEN) -> float:
    """How much of what was said was not understood: the word error rate."""
    spoken, words = " ".join(said).split(), text.split()
    row = list(range(len(words) + 1))
    for i, one in enumerate(spoken, 1):
        left, row = row, [i]
        for j, other in enumerate(words, 1):
            row.append(min(left[j] + 1, row[-1] + 1, left[j - 1] + (one != other)))
    return row[-1] / len(spoken)


def test_the_recording_is_understood_word_for_word(speech: PocketSphinx) -> None:
    """The recording that the package carries gives both sentences, as two segments, with times and confidence."""
    result, _ = transcribe(speech, sample_recording())
    assert result["text"] == " ".join(SPOKEN)
    assert tuple(segment["text"] for segment in result["segments"]) == SPOKEN
    assert 3 < result["duration"] < 8 and sample_recording().stat().st_size < 300_000
    assert 0.5 < result["confidence"] <= 1
    end = 0.0
    for segment in result["segments"]:
        assert end <= segment["start"] < segment["end"] <= result["duration"] and 0 < segment["confidence"] <= 1
        assert " ".join(word["word"] for word in segment["words"]) == segment["text"]
        for word in segment["words"]:
            assert end <= word["start"] < word["end"] and 0 <= word["confidence"] <= 1
            end = word["end"]
        assert end == segment["end"]


def test_partial_hypotheses_stream_while_it_decodes(speech: PocketSphinx) -> None:
    """Guesses grow and come before the end of their segment; every segment comes once as final; progress rises to 1."""
    log: "list[tuple[str, Any]]" = []

    class Watched:
        def progress(self, fraction: float, message: str) -> None:
            log.append(("progress", fraction))

        def check(self) -> None:
            pass

    context.enter(Watched())
    try:
        result = drive(speech.run(sample_recording()), lambda chunk: log.append(("chunk", chunk)))
    finally:
        context.enter(None)
    chunks = [value for kind, value in log if kind == "chunk"]
    progress = [value for kind, value in log if kind == "progress"]
    assert progress == sorted(progress) and progress[0] < 0.1 and progress[-1] == 1.0 and len(progress) > 20
    assert [c["text"] for c in chunks if c["final"]] == [s["text"] for s in result["segments"]]
    for segment in result["segments"]:
        final = next(i for i, c in enumerate(chunks) if c["final"] and c["text"] == segment["text"])
        before = [c for c in chunks[:final] if c["start"] <= segment["end"] <= c["end"] + 5]
        assert len({c["text"] for c in before}) > 5
    halfway = next(i for i, (kind, value) in enumerate(log) if kind == "progress" and value > 0.3)
    assert any(kind == "chunk" and "the model is" in value["text"] for kind, value in log[:halfway])


@pytest.mark.parametrize("width, channels", [(1, 1), (1, 2), (2, 2), (2, 6), (3, 1), (3, 2), (4, 1), (4, 2)])
def test_any_width_and_any_channels(width: int, channels: int, samples: "list[float]", tmp_path: Path) -> None:
    """8-bit unsigned, 16, 24 and 32 bit, mono and more, are read alike: their mean, as 16 bit."""
    with Recording(write(tmp_path / "a.wav", samples, width=width, channels=channels)) as recording:
        got = array("h", b"".join(recording.blocks()))
    want = [max(-1.0, min(1.0, value * min(channels, 1.4))) / channels * 32767 for value in samples]
    assert len(got) == len(want)
    assert max(abs(a - b) for a, b in zip(got, want)) < (300 if width == 1 else 3)


@pytest.mark.slow
def test_samples_wider_than_libsndfile_reads(speech: PocketSphinx, samples: "list[float]", tmp_path: Path) -> None:
    """What `wave` reads and libsndfile doesn't is transcribed too: here of 64 bit, whose upper half is the sound."""
    path = write(tmp_path / "a.wav", samples, width=4, channels=2)
    data = bytearray(path.read_bytes())
    data[22:24], data[34:36] = (1).to_bytes(2, "little"), (64).to_bytes(2, "little")
    path.write_bytes(data)
    with wave.open(str(path)) as file:
        assert file.getparams()[:2] == (1, 8)
    result, _ = transcribe(speech, path)
    assert wrong(result["text"]) < 0.1, result["text"]
    path.write_bytes(data[:24] + bytes(4) + data[28:])
    with pytest.raises(AudioFileError, match="damaged"):
        transcribe(speech, path)


def test_more_channels_than_libsndfile_reads(speech: PocketSphinx, tmp_path: Path) -> None:
    """Their mean, as of fewer."""
    sound = [math.sin(i / 5) for i in range(8000)]
    write(tmp_path / "one.wav", sound)
    with wave.open(str(tmp_path / "many.wav"), "wb") as file:
        file.setparams((1100, 2, 16000, 0, "NONE", ""))
        file.writeframes(b"".join(encoded(value, 2) * 1100 for value in sound))
    one, many = (b"".join(Recording(tmp_path / f"{name}.wav").blocks()) for name in ("one", "many"))
    assert len(one) == len(many) and max(abs(a - b) for a, b in zip(array("h", one), array("h", many))) <= 1


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_wide_file_is_read_as_soundfile_would(width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sample for sample, in pieces of any length, and empty at the end."""
    path = write(tmp_path / "a.wav", [math.sin(i / 5) for i in range(1000)], width=width, channels=3)
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed: pip install -e '.[speech]'")
    monkeypatch.setattr(WideWav, "WIDTH", 0)
    with soundfile.SoundFile(path) as theirs, path.open("rb") as file, WideWav(file) as ours:
        assert (ours.frames, ours.samplerate) == (theirs.frames, theirs.samplerate)
        for count in (1, 7, 992, 1):
            expected = theirs.read(count, dtype="float32", always_2d=True)
            assert expected.tolist() == ours.read(count, dtype="float32", always_2d=True).tolist()


@pytest.mark.parametrize("rate", [11025, *(pytest.param(rate, marks=pytest.mark.slow) for rate in (12345, 44100, 192000))])
def test_any_rate(rate: int, speech: PocketSphinx, samples: "list[float]", tmp_path: Path) -> None:
    """Any sample rate is resampled; times and durations are those of the recording."""
    result, _ = transcribe(speech, write(tmp_path / "a.wav", resampled(samples, rate), rate))
    assert wrong(result["text"]) < (0.35 if rate < 16000 else 0.1), result["text"]
    assert abs(result["duration"] - len(samples) / 16000) < 0.02
    assert 7 < result["segments"][-1]["end"] < result["duration"]


@pytest.mark.parametrize("rate", [100, 1_000_000, *(pytest.param(rate, marks=pytest.mark.slow) for rate in (1, 4000, 8000))])
def test_odd_rates_are_read(rate: int, speech: PocketSphinx, tmp_path: Path) -> None:
    """What cannot be understood any more is still read to its end."""
    path = write(tmp_path / "a.wav", [0.1 * math.sin(i) for i in range(max(rate // 4, 3))], rate)
    result, _ = transcribe(speech, path)
    assert result["duration"] == pytest.approx(max(rate // 4, 3) / rate, abs=0.01)


def test_resampling_does_not_alias(tmp_path: Path) -> None:
    """A tone that 16 kHz cannot hold is gone, and one that it can hold stays."""
    pytest.importorskip("soxr", reason="soxr is not installed: pip install -e '.[speech]'")

    def loudness(hertz: float) -> float:
        tone = [0.5 * math.sin(2 * math.pi * hertz * i / 48000) for i in range(48000)]
        with Recording(write(tmp_path / "a.wav", tone, 48000)) as recording:
            values = [v for block in recording.blocks() for (v,) in struct.iter_unpack("<h", block)]
        assert abs(len(values) - 16000) <= 1
        return math.sqrt(sum(v * v for v in values[2000:-2000]) / len(values[2000:-2000])) / 32768

    assert loudness(1000) == pytest.approx(0.5 / math.sqrt(2), rel=0.01)
    assert loudness(11000) < 0.001


@pytest.mark.slow
def test_a_result_does_not_depend_on_what_was_transcribed_before(
    speech: PocketSphinx, samples: "list[float]", tmp_path: Path
) -> None:
    """The decoder adapts to a recording, and forgets it."""
    first, _ = transcribe(speech, sample_recording())
    transcribe(speech, write(tmp_path / "quiet.wav", [value * 0.05 for value in samples]))
    again, _ = transcribe(speech, sample_recording())
    assert again == first


@pytest.mark.slow
def test_a_run_that_is_given_up_leaves_the_plugin_usable(speech: PocketSphinx) -> None:
    """A generator that is closed half-way, and one that is cancelled, end their utterance."""
    for _ in range(3):
        chunks = speech.run(sample_recording())
        next(chunks)
        chunks.close()
    assert transcribe(speech, sample_recording())[0]["text"] == " ".join(SPOKEN)


@pytest.mark.parametrize("kind", [pytest.param("silence", marks=pytest.mark.slow), "one sample", "ten samples"])
def test_without_speech_there_is_no_text(kind: str, speech: PocketSphinx, tmp_path: Path) -> None:
    """Silence, and almost nothing, are recordings too."""
    count = {"silence": 80_000, "one sample": 1, "ten samples": 10}[kind]
    result, heard = transcribe(speech, write(tmp_path / "a.wav", [0.0] * count))
    assert (result["text"], result["segments"], result["confidence"], heard) == ("", [], 0.0, [])


@pytest.mark.slow
def test_long_recordings_are_cut_at_pauses(speech: PocketSphinx, samples: "list[float]", tmp_path: Path) -> None:
    """Three times the recording is transcribed like one, each segment with its place in the whole."""
    path = write(tmp_path / "a.wav", (samples + [0.001 * (-1) ** i for i in range(16000)]) * 3)
    result, _ = transcribe(speech, path)
    assert len(result["segments"]) >= 3 and wrong(result["text"], SPOKEN * 3) < 0.15, result["text"]
    starts = [segment["start"] for segment in result["segments"]]
    assert starts == sorted(starts) and starts[-1] > 2 * len(samples) / 16000


@pytest.mark.slow
def test_speech_without_a_pause_is_cut_all_the_same(speech: PocketSphinx, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment has a longest length, so that memory and delay have one."""
    monkeypatch.setattr(sys.modules[PocketSphinx.__module__], "LONGEST", 2.0)
    result, _ = transcribe(speech, sample_recording())
    assert len(result["segments"]) >= 4 and all(s["end"] - s["start"] < 2.1 for s in result["segments"])
    assert wrong(result["text"]) < 0.5


def bad_files(folder: Path) -> "dict[str, Path]":
    """Files that are no recordings, by what is wrong with them."""
    good = sample_recording().read_bytes()
    made = {
        "empty": b"",
        "text": b"this is not a recording, whatever its name says\n" * 50,
        "zeros": bytes(4096),
        "header cut after 8": good[:8],
        "header cut after 20": good[:20],
        "header cut after 36": good[:36],
        "no samples": good[:44],
        "sample rate 0": good[:24] + bytes(4) + good[28:],
        "no channels": good[:22] + bytes(2) + good[24:],
        "a chunk beyond the end": good[:12] + b"\xffmt " + bytes.fromhex("1000ff0001000200ff000000000000000000000164617461") + bytes(4),
    }
    paths = {what: folder / f"{what}.wav" for what in made}
    for what, data in made.items():
        paths[what].write_bytes(data)
    (folder / "raw.raw").write_bytes(good[44:])
    return paths | {"missing": folder / "missing.wav", "folder": folder, "raw": folder / "raw.raw"}


def test_a_bad_file_is_named_with_what_is_wrong(speech: PocketSphinx, tmp_path: Path) -> None:
    """Each gives an `AudioFileError` that names the file, what was expected, and what was found."""
    reasons = {
        "empty": "an empty file",
        "missing": "no such file",
        "folder": "a directory",
        "no samples": "without a single sample",
        **dict.fromkeys(("text", "zeros", "raw"), "not audio"),
    }
    for what, path in bad_files(tmp_path).items():
        with pytest.raises(AudioFileError) as caught:
            transcribe(speech, path)
        assert caught.value.path == str(path)
        assert repr(str(path)) in str(caught.value) and "expected a recording" in str(caught.value)
        assert reasons.get(what, "damaged") in caught.value.got, what
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert transcribe(speech, sample_recording())[0]["text"] == " ".join(SPOKEN)


def flac(folder: Path, samples: "list[float]", known: bool = True) -> Path:
    """A FLAC file; one that was written to a pipe doesn't know its number of samples."""
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed: pip install -e '.[speech]'")
    path = folder / "a.flac"
    soundfile.write(path, samples, 16000)
    if not known:
        data = bytearray(path.read_bytes())
        data[21] &= 0xF0
        data[22:26] = bytes(4)
        path.write_bytes(data)
    return path


class Log:
    """Takes what a plugin reports."""

    def __init__(self) -> None:
        self.progress_: "list[tuple[float, str]]" = []

    def progress(self, fraction: float, message: str) -> None:
        """Keep it."""
        self.progress_.append((fraction, message))

    def check(self) -> None:
        """It is never cancelled."""


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_flac_of_unknown_length(times: int, speech: PocketSphinx, samples: "list[float]", tmp_path: Path) -> None:
    """As ffmpeg writes it to a pipe: the text, times and duration of the same sound in a file that knows its length."""
    log = Log()
    sound = samples * times
    known, _ = transcribe(speech, flac(tmp_path, sound))
    context.enter(log)
    try:
        result, _ = transcribe(speech, flac(tmp_path, sound, known=False))
    finally:
        context.enter(None)
    assert result == known and result["duration"] == round(len(sound) / 16000, 2)
    fractions = [fraction for fraction, _ in log.progress_]
    assert fractions == sorted(fractions) and fractions[0] < 0.1 and fractions[-1] == 1.0 and len(set(fractions)) > 20
    assert ("about" in log.progress_[0][1]) == (len(sound) > 160_000) and "about" not in log.progress_[-1][1]
    assert 0.3 < fractions[len(fractions) // 2] < 0.8


def test_a_flac_of_unknown_length_without_samples(speech: PocketSphinx, tmp_path: Path) -> None:
    """It is known at the end only that there is nothing in it."""
    path = flac(tmp_path, [0.0] * 10, known=False)
    path.write_bytes(path.read_bytes()[:8192].partition(b"\xff\xf8")[0])
    with pytest.raises(AudioFileError, match="without a single sample|damaged"):
        transcribe(speech, path)


@pytest.mark.parametrize("kind", ["footer", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("flac", "wav", "two tags"))])
def test_audio_behind_a_tag(kind: str, speech: PocketSphinx, samples: "list[float]", tmp_path: Path) -> None:
    """Taggers put an ID3v2 tag before the audio."""
    path = flac(tmp_path, samples) if kind != "wav" else write(tmp_path / "a.wav", samples)
    frames = b"TIT2" + (300).to_bytes(4, "big") + bytes(302)
    tag = b"ID3\x04\0" + (b"\x10" if kind == "footer" else b"\0") + bytes([0, 0, len(frames) >> 7, len(frames) & 0x7F]) + frames
    tag += b"3DI" + tag[3:10] if kind == "footer" else b""
    path.write_bytes(tag * (2 if kind == "two tags" else 1) + path.read_bytes())
    try:
        assert transcribe(speech, path)[0]["text"] == " ".join(SPOKEN)
    except AudioFileError as e:  # libsndfile itself reads one tag without a footer
        assert kind in ("two tags", "footer") and "damaged" in e.got


def test_an_mp3_is_called_one(tmp_path: Path) -> None:
    """With a tag and without, whatever its name says."""
    frame = bytes.fromhex("fffb9064") + bytes(413)
    for name, data in {"a.wav": frame * 3, "b.mp3": b"ID3\x03\0\0\0\0\0\x05" + bytes(5) + frame}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(AudioFileError, match="an MP3 file"):
            Recording(tmp_path / name)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    """Opening it would wait for a writer; a device is named too, and the writer of a pipe is not disturbed."""
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    os.write(writer, sample_recording().read_bytes()[:1000])
    for path, kind in ((tmp_path / "pipe", "a pipe"), (Path("/dev/null"), "a device")):
        with pytest.raises(AudioFileError, match=kind):
            Recording(path)
    assert len(os.read(writer, 2000)) == 1000
    os.close(writer)
    os.mkfifo(tmp_path / "lonely")
    with pytest.raises(AudioFileError, match="a pipe"):
        Recording(tmp_path / "lonely")


@pytest.mark.slow
@pytest.mark.parametrize("nonsense", [math.nan, 1e30, math.inf, -math.inf])
def test_samples_that_are_no_sound(nonsense: float, speech: PocketSphinx, samples: "list[float]", tmp_path: Path) -> None:
    """A channel full of it, and one sample in the middle of a word, are silence or a click; nothing is raised, no warning given."""
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed: pip install -e '.[speech]'")
    clicked = [*samples[:40_000], nonsense, *samples[40_001:]]
    rows = list(zip(clicked, [0.0 if nonsense == 1e30 else nonsense] * len(samples)))
    soundfile.write(tmp_path / "a.wav", rows, 16000, subtype="FLOAT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result, _ = transcribe(speech, tmp_path / "a.wav")
    assert wrong(result["text"]) < 0.2, result["text"]


def test_no_file_is_left_open(speech: PocketSphinx, tmp_path: Path) -> None:
    """Good or bad, a file is closed when its job is over."""
    paths = [sample_recording(), *bad_files(tmp_path).values()]
    before = len(os.listdir("/dev/fd"))
    for path in paths * 3:
        try:
            speech.run(path).close()
            Recording(path).__exit__()
        except AudioFileError:
            pass
    assert len(os.listdir("/dev/fd")) == before


def test_a_file_whose_samples_are_cut_is_transcribed_as_far_as_it_goes(speech: PocketSphinx, tmp_path: Path) -> None:
    """A recording that was not finished is worth having."""
    path = tmp_path / "a.wav"
    path.write_bytes(sample_recording().read_bytes()[:125_001])
    result, _ = transcribe(speech, path)
    assert result["segments"][0]["text"] == SPOKEN[0] and result["duration"] == pytest.approx(3.9, abs=0.05)


@pytest.mark.parametrize("audio", [5, None, ["a.wav"]])
def test_what_is_no_path_is_refused(audio: Any, speech: PocketSphinx) -> None:
    """A number is no file descriptor here."""
    with pytest.raises(TypeError, match="PathLike"):
        transcribe(speech, audio)


def test_in_a_worker(speech: PocketSphinx, tmp_path: Path) -> None:
    """In a worker process it streams, reports progress, fails with the file's name, and goes on in the same process."""

    async def session() -> "tuple[list[Any], Any, list[JobError | None], Any, set[int | None]]":
        async with JobManager("speech", "speech", plugins={"pocketsphinx": f"{PocketSphinx.__module__}:PocketSphinx"}) as manager:
            job = await manager.start_job("pocketsphinx", audio=str(sample_recording()))
            chunks = [(chunk, job.progress, job.done) async for chunk in job.stream()]
            result, errors = await job, []
            pids = {job.worker_pid}
            for path in bad_files(tmp_path).values():
                failing = await manager.start_job("pocketsphinx", audio=str(path))
                errors.append((await failing.wait()).error)
                pids.add(failing.worker_pid)
                assert str(path) in str(errors[-1])
            again = await manager.start_job("pocketsphinx", audio=str(sample_recording()))
            return chunks, result, errors, await again, pids | {again.worker_pid}

    chunks, result, errors, again, pids = asyncio.run(session())
    assert result["text"] == again["text"] == " ".join(SPOKEN)
    assert len(pids) == 1
    assert sum(not done for _, _, done in chunks) > 30  # they really came before the end
    assert chunks[0][1] < 0.3 and chunks[-1][0]["final"]
    assert {error.category for error in errors if error} == {"exception"}


@pytest.mark.slow
def test_cancelled_in_a_worker(speech: PocketSphinx, samples: "list[float]", tmp_path: Path) -> None:
    """It asks whether it is cancelled, so its worker and its model live on."""
    path = write(tmp_path / "long.wav", samples * 20)

    async def session() -> None:
        async with JobManager("speech", "speech", plugins={"pocketsphinx": PocketSphinx}) as manager:
            job = await manager.start_job("pocketsphinx", audio=str(path))
            async for _ in job.stream():
                break
            assert await manager.cancel_job(job.id) and job.status == "cancelled" and job.progress < 0.9
            after = await manager.start_job("pocketsphinx", audio=str(sample_recording()))
            assert (await after)["text"] == " ".join(SPOKEN)
            assert after.worker_pid == job.worker_pid

    asyncio.run(session())


def test_importing_it_imports_no_recognizer(tmp_path: Path) -> None:
    """The module costs nothing until a model is loaded."""
    code = "import sys, cjm_worker_protocols.plugins.speech as s; print({*s.SPEECH.packages, 'numpy', 'asyncio'} & {*sys.modules})"
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == "set()", said(done)


@pytest.mark.parametrize("package", SPEECH.packages)
def test_without_the_extra_the_error_tells_how_to_get_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading names the package that is missing, and the extra."""
    monkeypatch.setitem(sys.modules, package, None)
    if package != "pocketsphinx":
        pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed: pip install -e '.[speech]'")
    with pytest.raises(ExtraNotInstalledError, match=r"pip install 'cjm-worker-protocols\[speech\]'") as caught:
        PocketSphinx().load({})
    assert caught.value.package == package and isinstance(caught.value, ImportError)


def test_a_wrong_setting_is_told(speech: PocketSphinx) -> None:
    """What PocketSphinx says of its config is passed on."""
    with pytest.raises((KeyError, ValueError, RuntimeError)):
        PocketSphinx().load({"no_such_setting": 1})
    with pytest.raises((RuntimeError, ValueError)):
        PocketSphinx().load({"hmm": "/nowhere"})


def test_what_a_config_has_for_the_manager_is_left_to_it(speech: PocketSphinx) -> None:
    """PocketSphinx knows none of these settings."""
    share = {"concurrency": 2, "estimate": {"memory": 50_000_000}, "worker_resources": {"CPU": 1}}
    PocketSphinx().load({**share, "worker_python": sys.executable})


def test_the_recording_has_a_licence() -> None:
    """It is part of the package, and a text beside it says where it comes from."""
    path = sample_recording()
    assert path.is_file()
    assert "CC0-1.0" in (path.parent / "LICENSE.txt").read_text()
