"""Word times: every file format, and finding them by alignment."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import soundfile

from vocoder_plugin.families.outetts import AlignmentError, WordTime, read_words
from vocoder_plugin.families.outetts.align import align, aligners
from vocoder_plugin.families.outetts.phones import pronounce

TIMES = [("The", 0.0, 0.25), ("quick", 0.25, 0.5), ("fox.", 0.75, 1.5)]
WORDS = [WordTime(*time) for time in TIMES]
LONG_TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "phones [1]"
        xmin = 0
        xmax = 1.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 1.5
            text = "DH"
    item [2]:
        class = "TextTier"
        name = "notes"
        xmin = 0
        xmax = 1.5
        points: size = 1
        points [1]:
            number = 0.3
            mark = "a ""quoted"" note"
    item [3]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.5
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = "The"
        intervals [2]:
            xmin = 0.25
            xmax = 0.5
            text = "quick"
        intervals [3]:
            xmin = 0.5
            xmax = 0.75
            text = ""
        intervals [4]:
            xmin = 0.75
            xmax = 1.5
            text = "fox."
"""
SHORT_TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

0
1.5
<exists>
1
"IntervalTier"
"Mary"
0
1.5
3
0
0.25
"The"
0.25
0.5
"quick"
0.75
1.5
"fox."
"""
FILES = {
    "list.json": json.dumps([{"word": w, "start": s, "end": e} for w, s, e in TIMES]),
    "triples.json": json.dumps(TIMES),
    "words.json": json.dumps({"words": [{"text": w, "start": s, "end": e} for w, s, e in TIMES]}),
    "whisper.json": json.dumps({
        "segments": [{"words": [{"word": f" {w}", "start": s, "end": e}]} for w, s, e in TIMES]
    }),
    "words.ctm": ";; a comment\nclip 1 0.00 0.25 The 0.9\nclip 1 0.25 0.25 quick\n\nclip 1 0.75 0.75 fox.\n",
    "words.srt": "1\n00:00:00,000 --> 00:00:00,250\nThe\n\n2\n00:00:00,250 --> 00:00:00,500\n<i>quick</i>\n\n"
    "3\n00:00:00,750 --> 00:00:01,500\nfox.\n",
    "words.vtt": "WEBVTT\n\nNOTE nothing\n\n00:00.000 --> 00:00.250\nThe\n\n"
    "00:00.250 --> 00:00.500 align:start\nquick\n\nintro\n00:00:00.750 --> 00:00:01.500\nfox.\n",
    "inline.vtt": "WEBVTT\r\n\r\n00:00.000 --> 00:01.500\r\n"
    "The<00:00.250><c> quick</c><00:00.500><00:00.750><c> fox.</c>\r\n",
    "long.TextGrid": LONG_TEXTGRID,
    "short.textgrid": SHORT_TEXTGRID,
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_formats(name, encoding, tmp_path):
    (tmp_path / name).write_bytes(FILES[name].encode(encoding))
    assert read_words(tmp_path / name) == WORDS


@pytest.mark.parametrize(("name", "content", "said"), [
    ("x.txt", "", r"word times are read from \.json, \.ctm, \.srt, \.vtt, \.textgrid files"),
    ("x.json", "{", r"x\.json: not a readable \.json file"),
    ("x.json", "3", "expected a list of words"),
    ("x.json", "[]", "there are no words"),
    ("x.json", '[{"word": "a", "start": 0}]', "word 1 is .*, expected its text, start and end"),
    ("x.json", '[{"word": "a", "start": 2, "end": 1}]', "word 1 .'a'. is said from 2.0 to 1.0 s"),
    ("x.json", '[{"word": "a", "start": NaN, "end": 1}]', "is said from nan to"),
    ("x.json", '[["a", 1, 2], ["b", 0, 3]]', "word 2 .'b'. comes before the word ahead of it"),
    ("x.json", '{"segments": [{"text": "a b", "start": 0, "end": 1}]}', "have no word times; have Whisper write them"),
    ("x.json", '{"segments": 3}', "expected a list of words, or an object with 'words' or 'segments'"),
    ("x.ctm", "clip 1 0.0 word", "line 1 has 4 fields, expected file, channel, start, duration, word"),
    ("x.ctm", "clip 1 zero 1 word", "not a readable .ctm file"),
    ("x.srt", "1\n00:00:00,000 --> 00:00:01,000\ntwo words\n", "several words, expected a cue for each word"),
    ("x.srt", "1\n00:00 --> 1\nword\n", "has no two times"),
    ("x.TextGrid", "hello", "not a Praat TextGrid"),
    ("x.TextGrid", SHORT_TEXTGRID[:-30], "not a readable|ends early"),
    ("x.TextGrid", SHORT_TEXTGRID.replace("IntervalTier", "TextTier"), "not a readable|no tier of intervals"),
])  # fmt: skip
def test_refused(name, content, said, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(AlignmentError, match=said):
        read_words(tmp_path / name)


def test_no_file(tmp_path):
    with pytest.raises(AlignmentError, match="cannot be read: No such file"):
        read_words(tmp_path / "none.json")


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "link.srt").symlink_to("/dev/zero")
    (tmp_path / "folder.ctm").mkdir()
    for name, kind in (("pipe.json", "named pipe"), ("link.srt", "device"), ("folder.ctm", "folder")):
        with pytest.raises(AlignmentError, match=f"{name}: cannot be read: it is a {kind}, expected a regular file"):
            read_words(tmp_path / name)


LINES = "00:00:00,000 --> 00:00:01,000\n"
LARGE = {
    "digits.srt": "9" * 2_000_000 + " --> 00:00:01,000\nword\n",
    "cue_digits.srt": LINES + "<" + "1" * 2_000_000 + ":1",
    "colons.srt": "1:" * 1_000_000 + " --> 1\nword\n",
    "opening.srt": LINES + "<" * 2_000_000,
    "opening_brace.vtt": LINES + "{" * 2_000_000,
    "times.vtt": LINES + "<00:00:00.5" * 180_000,
    "spaces.srt": ("\n" + " " * 1000) * 2_000,
    "blocks.srt": LINES + "\n\n" * 1_000_000,
    "quotes.textgrid": '"' * 2_000_001,
    "open_string.textgrid": 'ooTextFile "' + 'a""' * 700_000,
    "brackets.textgrid": "[" * 1_000_000 + "1" * 1_000_000,
    "numbers.textgrid": "-1e" * 700_000,
    "tiers.textgrid": SHORT_TEXTGRID.replace("<exists>\n1", "<exists>\n999999999999") + "0 " * 900_000,
    "deep.json": "[" * 2_000_000,
    "number.json": "9" * 2_000_000,
    "objects.json": "[" + "{}," * 600_000 + "{}]",
    "fields.ctm": "a " * 1_000_000,
    "comments.ctm": ";;\n" * 600_000,
}
READ_ALL = """if True:
    import resource, sys, time
    from pathlib import Path
    from vocoder_plugin.families.outetts import AlignmentError, read_words

    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sorted(Path(sys.argv[1]).iterdir()):
        before = time.process_time()
        try:
            read_words(path)
        except AlignmentError as error:
            assert len(str(error)) < 1000, path
        assert time.process_time() - before < 5, f"{path}: {time.process_time() - before} s"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start < 220_000  # kB: 10 times the file, and 200 MB
"""


def test_work_and_memory_are_bounded_by_the_size(tmp_path):
    """Files of 2 MB that a search which starts anew at each character would read for hours."""
    for name, text in LARGE.items():
        (tmp_path / name).write_text(text)
    subprocess.run([sys.executable, "-c", READ_ALL, str(tmp_path)], check=True, timeout=300)


def test_too_large(tmp_path):
    with open(tmp_path / "x.json", "wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(AlignmentError, match=r"x\.json: 4294967296 bytes are too many"):
        read_words(tmp_path / "x.json")


@pytest.mark.parametrize("name", FILES)
def test_damaged_anywhere(name, tmp_path):
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(60):
        text = FILES[name]
        place = int(rng.integers(len(text)))
        damaged = text[:place] + (chr(rng.integers(32, 127)) + text[place + 1 :] if rng.integers(2) else "")
        (tmp_path / name).write_text(damaged)
        with contextlib.suppress(AlignmentError):
            assert read_words(tmp_path / name)
            read += 1
    assert 0 < read < 60


@pytest.fixture(scope="module")
def spoken(fixtures):
    """Sentences by espeak-ng: text, the start of each word, samples, rate."""
    return [
        (entry["text"], np.array(entry["starts"]), *soundfile.read(fixtures / entry["file"], dtype="float32"))
        for entry in json.loads((fixtures / "spoken.json").read_text())
    ]


def test_alignment(spoken):
    """Numbers, names of no dictionary and titles included; tests/parity measures a hundred sentences."""
    for text, starts, samples, rate in spoken:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            words = align(samples, rate, text, aligner="pocketsphinx")
        assert [word.text for word in words] == text.split()
        errors = np.abs(np.array([word.start for word in words]) - starts)
        assert np.median(errors) <= 0.04
        assert errors.max() < 0.2
        assert words[-1].end <= len(samples) / rate + 0.01


def test_alignment_again_and_at_another_rate(spoken):
    text, _, samples, rate = spoken[0]
    first = align(samples, rate, text, aligner="pocketsphinx")
    doubled = align(np.repeat(samples, 3), 3 * rate, text, aligner="pocketsphinx")
    assert align(samples, rate, text, aligner="pocketsphinx") == first
    assert max(abs(a.start - b.start) for a, b in zip(first, doubled, strict=True)) < 0.1


def test_marks_alone_join_a_word(spoken):
    text, _, samples, rate = spoken[0]
    dashed = text.replace("slowly", "slowly --")
    assert "slowly --" in [word.text for word in align(samples, rate, f"* {dashed}", aligner="pocketsphinx")]


def test_a_transcript_of_something_else_is_warned_about(spoken):
    (text, _, samples, rate), (other, _, _, _) = spoken
    with pytest.warns(UserWarning, match=r"may not be what is said in the clip: .*; check it"):
        align(samples, rate, other, aligner="pocketsphinx")
    beginning = " ".join(text.split()[:4])
    with pytest.warns(UserWarning, match=r"may not be what is said .*: [5-9]\d% of the sound is in none of its words"):
        align(samples, rate, beginning, aligner="pocketsphinx")


def test_silence_around_the_words_is_no_sound_unused(spoken):
    text, _, samples, rate = spoken[0]
    padded = np.concatenate([np.zeros(2 * rate, np.float32), samples, np.zeros(2 * rate, np.float32)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert align(padded, rate, text, aligner="pocketsphinx")[0].start > 1.9


@pytest.mark.parametrize("pitch", [0.8, 1.35])
def test_voices_far_from_the_model_are_placed(spoken, pitch):
    """With beams of 1e-200, the words of such voices were lost."""
    text, starts, samples, rate = spoken[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        words = align(samples, int(rate * pitch), text, aligner="pocketsphinx")
    assert np.median(np.abs(np.array([word.start for word in words]) * pitch - starts)) < 0.05


@pytest.mark.parametrize(("text", "letter"), [
    ("The old Учитель walked", "у"), ("こんにちは", "こ"), ("The old straße.", "ß"), ("今日 is fine", "今"),
])  # fmt: skip
def test_other_scripts_are_refused(spoken, text, letter):
    _, _, samples, rate = spoken[0]
    with pytest.raises(
        AlignmentError, match=f"has the letter '{letter}', and pocketsphinx knows English only; .*--words"
    ):
        align(samples, rate, text, aligner="pocketsphinx")


def test_another_language_in_plain_letters_is_warned_about(spoken):
    _, _, samples, rate = spoken[0]
    german = "Der alte Lehrer ging langsam zwischen den Tischen umher, und niemand antwortete."
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        align(samples, rate, german, aligner="pocketsphinx")
    said = "words of the transcript are in no English dictionary, such as "
    assert any(said in str(warning.message) and "--words" in str(warning.message) for warning in told)


def test_accents_are_english_enough(spoken):
    text, _, samples, rate = spoken[0]
    accented = text.replace("teacher", "téacher")
    plain = align(samples, rate, text, aligner="pocketsphinx")
    found = align(samples, rate, accented, aligner="pocketsphinx")
    assert [(w.start, w.end) for w in found] == [(w.start, w.end) for w in plain]


def test_alignment_refuses(spoken):
    text, _, samples, rate = spoken[0]
    for transcript in (None, "  ", "こんにちは"):
        with pytest.raises(AlignmentError, match="transcript"):
            align(samples, rate, transcript, aligner="pocketsphinx")
    with pytest.raises(AlignmentError, match="does not fit the clip"):
        align(samples[:2000], rate, text, aligner="pocketsphinx")
    with pytest.raises(AlignmentError, match=r"no aligner 'none'; installed are .*pocketsphinx"):
        align(samples, rate, text, aligner="none")


def test_aligners_are_entry_points():
    assert {"pocketsphinx", "faster-whisper"} <= set(aligners())


def test_an_aligner_of_ones_own():
    def thirds(samples, sample_rate, transcript):
        step = samples.size / sample_rate / 3
        return [WordTime(word, i * step, (i + 1) * step) for i, word in enumerate(transcript.split())]

    words = align(np.zeros(300, np.float32), 100, "a b c", aligner=thirds)
    assert words == [WordTime("a", 0, 1), WordTime("b", 1, 2), WordTime("c", 2, 3)]
    with pytest.raises(AlignmentError, match=r"'d' starts at 3\.00 s of a clip of 2\.50 s"):
        align(np.zeros(250, np.float32), 100, "d", aligner=lambda *_: [("d", 3, 4)])


def test_faster_whisper(monkeypatch):
    """Through a stand-in for the package: its model needs a download."""
    seen = {}

    class WhisperModel:
        def __init__(self, model, compute_type):
            seen.update(model=model)

        def transcribe(self, audio, word_timestamps, initial_prompt):
            seen.update(size=audio.size, prompt=initial_prompt)
            words = [types.SimpleNamespace(word=f" {w}", start=s, end=e) for w, s, e in TIMES]
            return iter([types.SimpleNamespace(words=words)]), None

    monkeypatch.setitem(sys.modules, "faster_whisper", types.SimpleNamespace(WhisperModel=WhisperModel))
    samples = np.zeros(48000, np.float32)
    assert align(samples, 24000, None, aligner="faster-whisper", model="small") == WORDS
    assert seen == {"model": "small", "size": 32000, "prompt": None}
    with pytest.raises(AlignmentError, match="faster-whisper needs a model"):
        align(samples, 24000, None, aligner="faster-whisper")


def test_missing_packages_are_named(monkeypatch, spoken):
    from vocoder_plugin import VocoderError
    from vocoder_plugin.families.outetts.align import _sphinx

    _sphinx.cache_clear()
    for package, aligner in (("pocketsphinx", "pocketsphinx"), ("faster_whisper", "faster-whisper")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(VocoderError, match=r"needs the package .*; install it with: pip install 'vocoder-plugin\["):
            align(spoken[0][2], spoken[0][3], "text", aligner=aligner)


@pytest.mark.parametrize(("word", "phones"), [
    ("zorblax", "Z AO R B L AE K S"), ("bbc", "B IY B IY S IY"), ("shime", "SH IH M"), ("x'y", "K S IY"),
    ("thing", "TH IH NG"),
])  # fmt: skip
def test_pronounce(word, phones):
    assert " ".join(pronounce(word)) == phones
