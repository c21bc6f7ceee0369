"""Speech of a real llama_cpp.Llama: a logits processor makes it write given tokens, which become samples."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator
from types import SimpleNamespace

import gguf
import llama_cpp
import numpy as np
import pytest
from tiny_llm import CONTROL, byte_tokens, one_choice, outetts_0_tokens, outetts_1_tokens, write_tiny_llm

from vocoder_plugin import (
    ArgumentError,
    AudioVocabulary,
    Codec,
    KindError,
    SpeechStream,
    StreamError,
    TokenError,
    TokenReport,
    VocoderError,
    deinterleave,
    special_tokens_shown,
)
from vocoder_plugin.llm import generate_tokens
from vocoder_plugin.llm.speech import SCHEDULE

pytestmark = pytest.mark.usefixtures("no_thread_left")
PROMPT = "<|im_start|>\n<|text_start|>hello<|text_end|>\n<|audio_start|>\n"
ID = {text: token for token, text in enumerate([*byte_tokens(), *outetts_1_tokens()])}
END = [ID["<|audio_end|>"], ID["<|im_end|>"]]


@pytest.fixture(scope="module")
def script(llm, speaker) -> list[int]:
    """The speaker's words as OuteTTS 1.0 writes them, without the end."""
    tokens, first = [], 0
    for word, frames, duration in zip(speaker["words"], speaker["frames"], speaker["durations"], strict=True):
        features = f"<|features|><|t_{duration:.2f}|><|energy_5|><|spectral_centroid_20|><|pitch_40|><|code|>"
        tokens += [ID["<|word_start|>"], *text_tokens(llm, word + features)]
        for c1, c2 in speaker["codes"].T[first : first + frames]:
            tokens += [ID[f"<|c1_{c1}|>"], ID[f"<|c2_{c2}|>"]]
        tokens += [ID["<|word_end|>"], *text_tokens(llm, "\n")]
        first += frames
    return tokens


@pytest.fixture(scope="module")
def expected(small_dac, speaker) -> np.ndarray:
    return small_dac.decode(speaker["codes"])


def text_tokens(llm, text: str) -> list[int]:
    return llm.tokenize(text.encode(), add_bos=False, special=True)


def writes(tokens: list[int]):
    """Sampling options that make a Llama write these tokens."""
    return {"logits_processor": [one_choice(tokens)]}


def speak(llm, codec, tokens: Iterable[int], **options) -> tuple[list[tuple[int, np.ndarray]], SpeechStream]:
    """Chunks with the number of frames written when they came (the last: flush), and the closed stream."""
    chunks = []
    with SpeechStream(llm, codec, **options) as stream:
        for token in tokens:
            chunks += [(stream.report.frames, chunk) for chunk in stream.push(token)]
            if stream.finished:
                break
        chunks.append((stream.report.frames, stream.flush()))
    return chunks, stream


def generation(llm, tokens: list[int]) -> Iterator[int]:
    return llm.generate(text_tokens(llm, PROMPT), **writes(tokens))


def joined(chunks) -> np.ndarray:
    return np.concatenate([chunk for _, chunk in chunks])


def assert_same(codec, got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    if codec.lowering == "portable":  # libggml's matrix products may sum differently for other widths
        assert np.allclose(got, expected, rtol=0, atol=1e-5)
    else:
        assert np.array_equal(got, expected)


# From a generation to samples


def test_generation_to_samples(llm, small_dac, script, expected, small_reference):
    chunks, stream = speak(llm, small_dac, generation(llm, [*script, *END]))
    assert stream.finished
    assert_same(small_dac, joined(chunks), expected)
    reference = small_reference["audio"]
    assert np.linalg.norm(joined(chunks) - reference) <= 1e-5 * np.linalg.norm(reference)
    assert stream.report.frames == 277
    assert stream.report.damaged_frames == stream.report.stray_tokens == stream.report.invalid_tokens == 0
    assert stream.report.other_tokens == len(script) - 2 * 277


@pytest.mark.parametrize("schedule", [SCHEDULE, (20,), (1, 100), (1000,)])
def test_chunks_come_as_scheduled(llm, small_dac, script, expected, schedule):
    chunks, _ = speak(llm, small_dac, [*script, *END], schedule=schedule)
    assert_same(small_dac, joined(chunks), expected)
    *early, (_, rest) = chunks
    counts = [frames for frames, _ in early]
    lookahead = small_dac.decoder_stream().lookahead_frames
    if schedule[0] <= 277:
        assert schedule[0] <= counts[0] <= lookahead + schedule[0]
    else:
        assert counts == []
    waits = [schedule[min(i, len(schedule) - 1)] for i in range(1, len(counts))]
    assert np.diff(counts).tolist() == waits
    assert all(chunk.size > 0 for _, chunk in early)
    assert rest.size > 0


def test_samples_lag_by_no_more_than_the_lookahead(llm, small_dac, script):
    chunks, _ = speak(llm, small_dac, [*script, *END])
    lookahead = small_dac.decoder_stream().lookahead_frames
    samples = 0
    for frames, chunk in chunks[:-1]:
        samples += chunk.size
        assert samples >= (frames - lookahead) * small_dac.hop_length


@pytest.mark.parametrize("end", ["<|audio_end|>", "<|im_end|>"])
def test_nothing_after_an_end_token(llm, small_dac, script, end):
    with SpeechStream(llm, small_dac) as stream:
        for token in script[:200]:
            list(stream.push(token))
        assert not stream.finished
        assert list(stream.push(ID[end])) == []
        assert stream.finished
        frames = stream.report.frames
        assert [list(stream.push(token)) for token in script[200:]] == [[]] * len(script[200:])
        assert stream.report.frames == frames
        codes, _ = deinterleave(script[:200], stream.vocabulary)
        assert stream.flush().size > 0
    assert codes.shape[1] == frames


def test_flush_without_tokens(llm, small_dac):
    with SpeechStream(llm, small_dac) as stream:
        samples = stream.flush()
        assert samples.shape == (0,)
        assert samples.dtype == np.float32
        assert stream.finished


def test_one_frame(llm, small_dac, speaker):
    with SpeechStream(llm, small_dac) as stream:
        for q, code in enumerate(speaker["codes"][:, 0], 1):
            assert list(stream.push(ID[f"<|c{q}_{code}|>"])) == []
        assert_same(small_dac, stream.flush(), small_dac.decode(speaker["codes"][:, :1]))


def test_damaged_generation(llm, small_dac, script):
    rng = random.Random(0)
    damaged = [token for token in script if rng.random() > 0.03]
    damaged[50:50] = [ID["<|c1_1024|>"], ID["<|c2_7|>"], ID["<|c2_7|>"]]
    codes, report = deinterleave(damaged, AudioVocabulary.from_llm(llm, small_dac))
    assert report.damaged_frames > 0
    assert report.stray_tokens > 0
    assert 200 < codes.shape[1] < 277
    chunks, stream = speak(llm, small_dac, generation(llm, [*damaged, *END]))
    assert_same(small_dac, joined(chunks), small_dac.decode(codes))
    assert stream.report == report


def test_flush_within_a_frame(llm, small_dac):
    with SpeechStream(llm, small_dac) as stream:
        for text in ("<|c1_5|>", "<|c2_6|>", "<|c1_7|>"):
            list(stream.push(ID[text]))
        assert_same(small_dac, stream.flush(), small_dac.decode(np.array([[5], [6]])))
        assert stream.report == TokenReport(frames=1, damaged_frames=1)


def test_two_streams_at_once(llm, small_dac, script, expected):
    with SpeechStream(llm, small_dac) as a, SpeechStream(llm, small_dac) as b:
        parts: list[list[np.ndarray]] = [[], []]
        for token in script:
            for stream, out in zip((a, b), parts, strict=True):
                out.extend(stream.push(token))
        for stream, out in zip((a, b), parts, strict=True):
            assert_same(small_dac, np.concatenate([*out, stream.flush()]), expected)


def test_close_twice(llm, small_dac, script):
    stream = SpeechStream(llm, small_dac)
    assert [token for token in script[:100] if list(stream.push(token))] != []
    stream.close()
    stream.close()
    assert stream.finished
    assert list(stream.push(script[0])) == []
    with pytest.raises(StreamError):
        stream.flush()


def test_flush_ends_the_stream(llm, small_dac):
    with SpeechStream(llm, small_dac) as stream:
        stream.flush()
        with pytest.raises(StreamError, match="has ended; make a new one for the next generation"):
            stream.flush()


@pytest.mark.parametrize("schedule", [(), (0,), (1, -8)])
def test_schedule_refused(llm, small_dac, schedule):
    with pytest.raises(ValueError, match="expected frame counts of at least 1"):
        SpeechStream(llm, small_dac, schedule=schedule)


# Vocabularies of real models


def test_vocabulary_of_a_llama(llm, small_dac):
    vocabulary = AudioVocabulary.from_llm(llm, small_dac)
    texts = AudioVocabulary.from_texts(list(ID), n_codebooks=2, codebook_size=1024)
    assert vocabulary.codes == texts.codes
    assert vocabulary.end == set(END)


def test_codes_beyond_a_smaller_codebook_are_invalid(llm, fixtures):
    with Codec.load(fixtures / "codec_cpp_dac_pth_f32.gguf", n_threads=2) as codec, SpeechStream(llm, codec) as stream:
        for text in ("<|c1_63|>", "<|c2_0|>", "<|c1_64|>", "<|c2_0|>", "<|c1_0|>", "<|c2_63|>"):
            list(stream.push(ID[text]))
        assert_same(codec, stream.flush(), codec.decode(np.array([[63, 0], [0, 63]])))
        assert (stream.report.frames, stream.report.invalid_tokens) == (2, 1)


def test_end_tokens_of_a_llama(small_dac, tmp_path):
    texts = write_tiny_llm(tmp_path / "llm.gguf", [*outetts_1_tokens(), "<|endoftext|>"])
    llm = llama_cpp.Llama(str(tmp_path / "llm.gguf"), n_ctx=256, n_threads=1, verbose=False)
    end = AudioVocabulary.from_llm(llm, small_dac).end
    llm.close()
    assert end == {*END, texts.index("<|endoftext|>")}  # llama.cpp knows it as an end of generation


@pytest.mark.parametrize(
    ("tokens", "message"),
    [(CONTROL, "codebooks$"), (outetts_0_tokens(), "it speaks OuteTTS 0.1 to 0.3, which needs another codec file")],
    ids=["no audio tokens", "one codebook"],
)
def test_llama_that_does_not_fit(small_dac, tmp_path, tokens, message):
    write_tiny_llm(tmp_path / "llm.gguf", tokens)
    llm = llama_cpp.Llama(str(tmp_path / "llm.gguf"), n_ctx=256, n_threads=1, verbose=False)
    with pytest.raises(TokenError, match=message):
        SpeechStream(llm, small_dac)
    llm.close()


def test_outetts_0_llama(tmp_path):
    texts = write_tiny_llm(tmp_path / "llm.gguf", outetts_0_tokens())
    llm = llama_cpp.Llama(str(tmp_path / "llm.gguf"), n_ctx=256, n_threads=1, verbose=False)
    vocabulary = AudioVocabulary.from_llm(llm, SimpleNamespace(n_codebooks=1, codebook_size=4096))
    llm.close()
    assert deinterleave([texts.index("<|4095|>"), texts.index("<|7|>")], vocabulary)[0].tolist() == [[4095, 7]]
    assert vocabulary.end == {texts.index("<|audio_end|>"), texts.index("<|im_end|>")}


# generate_tokens


def generated(llm, tokens, *, prompt=PROMPT, max_tokens=10_000, end=frozenset(END)) -> list[int]:
    return list(generate_tokens(llm, prompt, end=end, max_tokens=max_tokens, **writes(tokens)))


@pytest.mark.parametrize("end", END)
def test_generation_ends_at_an_end_token(llm, script, end):
    assert generated(llm, [*script[:30], end, *script[30:]]) == [*script[:30], end]


def test_a_generation_says_why_it_was_cut(short_llm, script):
    def cut(tokens, *, end=frozenset(END), **options):
        tokens = generate_tokens(short_llm, PROMPT, end=end, **{"max_tokens": 9} | options | writes(tokens))
        assert tokens.cut == ""
        list(tokens)
        return tokens.cut

    assert cut([*script[:5], END[0]]) == ""
    assert cut([*script[:8], END[0]]) == ""
    assert cut(script) == "max_tokens = 9 was reached"
    assert cut(script, max_tokens=10_000) == f"the context of {short_llm.n_ctx()} is full"


def test_a_stream_says_that_it_was_cut(llm, small_dac, script):
    for tokens, cut in ((script[:100], True), ([*script[:100], END[0]], False), ([END[1]], False), ([], True)):
        _, stream = speak(llm, small_dac, tokens)
        assert stream.cut is cut


def test_a_stream_cut_by_a_callback(completed, llm, small_dac, script):
    for limit, cut in ((10, True), (10_000, False)):
        with SpeechStream(llm, small_dac) as stream:
            completed(stream, [*script[:30], *END], lambda _pcm: None, limit=limit)
            stream.flush()
            assert stream.cut is cut


def test_what_is_no_token_and_no_text(llm, small_dac):
    with SpeechStream(llm, small_dac) as stream, special_tokens_shown(llm):
        for token in ("<|c1_5|>", None, 3.0):
            with pytest.raises(KindError, match="expected a token id"):
                stream.push(token)
        for text in (ID["<|c1_5|>"], None, b"<|c1_5|>"):
            with pytest.raises(KindError, match="expected a str"):
                stream.push_text(text)
        assert list(stream.push(np.int32(ID["<|c1_5|>"]))) == []
        assert stream.report.other_tokens == 0


CLOSED = """if True:
    import sys
    import llama_cpp
    from vocoder_plugin import ArgumentError, AudioVocabulary, Codec, SpeechStream
    from vocoder_plugin.families.outetts import model_version, speak
    from vocoder_plugin.llm import generate_tokens

    llm = llama_cpp.Llama(sys.argv[1], n_ctx=256, n_threads=1, verbose=False)
    with Codec.load(sys.argv[2], n_threads=1) as codec:
        stream = SpeechStream(llm, codec)
        waiting = speak(llm, codec, "Hello.")
        llm.close()
        for use in (
            lambda: SpeechStream(llm, codec),
            lambda: AudioVocabulary.from_llm(llm, codec),
            lambda: generate_tokens(llm, "x", end=frozenset(), max_tokens=3),
            lambda: stream.push_text("x"),
            lambda: stream.as_logits_processor(print),
            lambda: model_version(llm),
            lambda: speak(llm, codec, "Hello."),
            lambda: next(waiting),
        ):
            try:
                use()
            except ArgumentError as error:
                assert "is closed" in str(error), error
            else:
                raise SystemExit("a closed Llama was taken")
"""


def test_a_closed_llama_is_refused(llm_file, small_dac_file):
    """In a process of its own: llama.cpp would crash."""
    command = [sys.executable, "-c", CLOSED, str(llm_file), str(small_dac_file)]
    assert subprocess.run(command, check=False).returncode == 0


def test_what_is_no_llama(small_dac):
    with pytest.raises(KindError, match=r"is of type str, expected a llama_cpp\.Llama"):
        SpeechStream("llm.gguf", small_dac)


@pytest.mark.parametrize("max_tokens", [1, 2, 29])
def test_generation_ends_at_max_tokens(llm, script, max_tokens):
    assert generated(llm, script, max_tokens=max_tokens) == script[:max_tokens]


def test_end_token_after_max_tokens(llm, script):
    assert generated(llm, [*script[:5], END[0]], max_tokens=5) == script[:5]


@pytest.fixture(scope="module")
def short_llm(llm_file):
    model = llama_cpp.Llama(str(llm_file), n_ctx=256, n_threads=1, verbose=False)
    yield model
    model.close()


@pytest.mark.parametrize("left", [1, 2, 100])
def test_generation_ends_at_a_full_context(short_llm, script, left):
    prompt = "x" * (short_llm.n_ctx() - left)
    assert generated(short_llm, script, prompt=prompt) == script[:left]


def test_no_tokens_at_all(llm, script):
    with pytest.raises(ArgumentError, match="max_tokens is 0, expected at least 1"):
        generated(llm, script, max_tokens=0)


@pytest.mark.parametrize("excess", [0, 1, 1000])
def test_prompt_that_fills_the_context(short_llm, script, excess):
    n = short_llm.n_ctx() + excess
    with pytest.raises(VocoderError, match=f"has {n} tokens, which leaves no room in a context of {short_llm.n_ctx()}"):
        generated(short_llm, script, prompt="x" * n)


def test_empty_prompt(llm, script):
    with pytest.raises(VocoderError, match="the prompt is empty"):
        generated(llm, script, prompt="")


# Early audio


@pytest.mark.parametrize("overlap", [False, True])
def test_first_samples_as_soon_as_the_lookahead_is_in(llm, small_dac, script, overlap):
    with SpeechStream(llm, small_dac, overlap=overlap) as stream:
        for token in script:
            if first := list(stream.push(token)):
                break
        assert stream.report.frames <= small_dac.decoder_stream().lookahead_frames + 1
        assert first[0].size > 0


# Overlap


@pytest.mark.parametrize("schedule", [SCHEDULE, (1,), (5, 3), (1000,)])
def test_overlap_gives_the_same_samples(llm, small_dac, script, expected, schedule):
    chunks, stream = speak(llm, small_dac, [*script, *END], schedule=schedule, overlap=True)
    assert_same(small_dac, joined(chunks), expected)
    assert stream.report.frames == 277


def test_overlap_is_for_other_devices_than_a_cpu(llm, small_dac, monkeypatch):
    assert not SpeechStream(llm, small_dac).overlap
    monkeypatch.setattr(type(small_dac.device), "is_cpu", False)
    assert SpeechStream(llm, small_dac).overlap
    assert not SpeechStream(llm, small_dac, overlap=False).overlap


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vocoder-decode")]


def on_worker() -> bool:
    return threading.current_thread() in workers()


def slow_decoder(stream: SpeechStream, monkeypatch, gate: threading.Event) -> list[int]:
    """Make the stream's decoder wait at a gate; the frames of each chunk that got there."""
    chunks, decode = [], stream._stream.push

    def push(codes):
        chunks.append(codes.shape[1])
        if on_worker():
            assert gate.wait(30)
        return decode(codes)

    monkeypatch.setattr(stream._stream, "push", push)
    return chunks


def test_push_does_not_wait_for_the_worker_until_the_queue_is_full(llm, small_dac, script, expected, monkeypatch):
    gate, pushed = threading.Event(), []
    with SpeechStream(llm, small_dac, schedule=(11, 10), overlap=True) as stream:
        slow_decoder(stream, monkeypatch, gate)

        def generating():
            for token in script:
                out.extend(stream.push(token))
                pushed.append(token)

        out: list[np.ndarray] = []
        thread = threading.Thread(target=generating)
        thread.start()
        # the first chunk, one in work, one waiting, and the one with which push waits
        limit, give_up = 11 + 3 * 10, time.monotonic() + 30
        while stream.report.frames < limit and time.monotonic() < give_up:
            time.sleep(0.01)
        thread.join(0.2)
        assert stream.report.frames == limit
        assert len(out) == 1
        gate.set()
        thread.join()
        assert pushed == script
        assert_same(small_dac, np.concatenate([*out, stream.flush()]), expected)


def test_close_from_another_thread_waits_for_the_chunk_in_work(llm, small_dac, script, monkeypatch):
    gate = threading.Event()
    stream = SpeechStream(llm, small_dac, schedule=(11, 10), overlap=True)
    chunks = slow_decoder(stream, monkeypatch, gate)
    tokens = iter(script)
    while stream.report.frames < 31:  # the first chunk, one in work, one waiting
        list(stream.push(next(tokens)))
    closing = threading.Thread(target=stream.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    assert stream.finished
    gate.set()
    closing.join()
    assert sum(chunks) == 21  # the chunk that waited was dropped
    assert list(stream.push(next(tokens))) == []
    with pytest.raises(StreamError, match="is closed"):
        stream.flush()


def test_errors_of_the_worker_reach_the_caller(llm, small_dac, script, monkeypatch):
    stream = SpeechStream(llm, small_dac, overlap=True)
    decode = stream._stream.push

    def push(codes):
        if on_worker():
            raise VocoderError("the device is on fire")
        return decode(codes)

    monkeypatch.setattr(stream._stream, "push", push)
    with pytest.raises(VocoderError, match="on fire"):
        [pcm for token in script for pcm in stream.push(token)]
    assert stream.finished
    assert not stream._worker
    stream.close()


def test_errors_of_the_worker_reach_flush(llm, small_dac, script, monkeypatch):
    gate = threading.Event()
    with SpeechStream(llm, small_dac, schedule=(11, 10), overlap=True) as stream:
        slow_decoder(stream, monkeypatch, gate)
        tokens = iter(script)
        while stream.report.frames < 21:
            list(stream.push(next(tokens)))
        stream._stream._state.memory.close()  # under the worker's feet
        gate.set()
        with pytest.raises(Exception, match=r"closed|freed|NULL"):
            stream.flush()
        assert stream.finished


def test_dropped_stream_leaves_no_thread(llm, small_dac, script):
    stream = SpeechStream(llm, small_dac, overlap=True)
    for token in script:
        list(stream.push(token))
    (worker,) = workers()
    del stream
    worker.join(10)
    assert not worker.is_alive()


# Callbacks of llama_cpp


def frame_end(script: list[int]) -> int:
    """Tokens to the end of some frame in the middle of the script."""
    return max(i for i in range(300) if ID["<|c2_0|>"] <= script[i] <= ID["<|c2_1024|>"]) + 1


def prompt_tokens(llm) -> list[int]:
    return text_tokens(llm, PROMPT)  # a text prompt would get the model's BOS token before it


def dictation(tokens: list[int]):
    return llama_cpp.LogitsProcessorList(writes(tokens)["logits_processor"])


@pytest.fixture(params=["stopping criteria", "logits processor"])
def completed(request, llm):
    """Runs create_completion with a stream's callback, over a model that writes given tokens."""

    def complete(stream, tokens, on_audio, *, limit=None, **options):
        if request.param == "stopping criteria":
            own = {"stopping_criteria": stream.as_stopping_criteria(on_audio=on_audio, max_tokens=limit)}
            own["logits_processor"] = dictation(tokens)
        else:
            both = [*dictation(tokens), *stream.as_logits_processor(on_audio=on_audio, max_tokens=limit)]
            own = {"logits_processor": llama_cpp.LogitsProcessorList(both)}
        return llm.create_completion(prompt_tokens(llm), **{"max_tokens": None} | own | options)

    return complete


@pytest.mark.parametrize(("end", "overlap"), [(END, False), (END[1:], True)], ids=["audio_end", "im_end-overlap"])
def test_callbacks_decode_a_completion(completed, llm, small_dac, script, expected, end, overlap):
    out, threads = [], set()

    def on_audio(pcm):
        out.append(pcm)
        threads.add(threading.current_thread())

    with SpeechStream(llm, small_dac, overlap=overlap) as stream:
        completion = completed(stream, [*script, *end], on_audio)
        if not overlap:
            assert len(out) > 5
        assert_same(small_dac, np.concatenate([*out, stream.flush()]), expected)
        assert stream.report.frames == 277
    assert threads == {threading.main_thread()}
    assert completion["choices"][0]["finish_reason"] == "stop"


def test_callbacks_end_the_generation_with_the_audio(completed, llm, small_dac, script):
    # llama.cpp does not know <|audio_end|> as an end: without the callback it would write on
    with SpeechStream(llm, small_dac) as stream:
        completion = completed(stream, [*script[:40], END[0], *script], lambda _pcm: None)
        assert stream.finished
        assert completion["usage"]["completion_tokens"] < 45


@pytest.mark.parametrize("excess", [0, 1])
def test_callbacks_stop_at_max_tokens_without_losing_one(completed, llm, small_dac, script, excess):
    n = frame_end(script)
    out = []
    with SpeechStream(llm, small_dac) as stream:
        completed(stream, script, out.append, limit=n - excess)
        codes, _ = deinterleave(script[: n - excess], stream.vocabulary)
        assert_same(small_dac, np.concatenate([*out, stream.flush()]), small_dac.decode(codes))


def test_llama_cpp_hides_the_last_token_before_its_own_limit(completed, llm, small_dac, script):
    n = frame_end(script)
    with SpeechStream(llm, small_dac) as stream:
        completed(stream, script, lambda _pcm: None, max_tokens=n)
        stream.flush()
        codes, _ = deinterleave(script[:n], stream.vocabulary)
        assert stream.report.frames == codes.shape[1] - 1


@pytest.mark.parametrize("overlap", [False, True])
def test_exceptions_of_on_audio(completed, llm, small_dac, script, overlap):
    calls = []

    def on_audio(_pcm):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no loudspeaker")

    stream = SpeechStream(llm, small_dac, schedule=(11, 4), overlap=overlap)

    def run():
        completed(stream, [*script, *END], on_audio)
        stream.flush()

    with pytest.raises(RuntimeError, match="no loudspeaker"):
        run()
    assert len(calls) == 2
    assert stream.finished
    assert stream.report.frames < 277
    assert not workers()
    stream.close()  # raises nothing more
    with pytest.raises(StreamError, match="is closed"):
        stream.flush()


def raise_interrupt(_pcm):
    raise KeyboardInterrupt


def test_close_raises_what_a_logits_processor_kept(llm, small_dac, script):
    stream = SpeechStream(llm, small_dac)
    both = llama_cpp.LogitsProcessorList([*dictation([*script, *END]), *stream.as_logits_processor(raise_interrupt)])
    completion = llm.create_completion(prompt_tokens(llm), max_tokens=None, logits_processor=both)
    assert completion["choices"][0]["finish_reason"] == "stop"
    assert completion["usage"]["completion_tokens"] < 60
    with pytest.raises(KeyboardInterrupt):
        stream.close()
    stream.close()


def test_leaving_the_block_raises_what_a_logits_processor_kept(llm, small_dac, script):
    def run():
        with SpeechStream(llm, small_dac) as stream:
            processors = [*dictation([*script, *END]), *stream.as_logits_processor(raise_interrupt)]
            list(zip(range(100), llm.generate(prompt_tokens(llm), logits_processor=processors), strict=False))

    with pytest.raises(KeyboardInterrupt):
        run()


def test_close_within_on_audio_ends_the_generation(completed, llm, small_dac, script):
    stream = SpeechStream(llm, small_dac, schedule=(11, 4))
    completion = completed(stream, [*script, *END], lambda _pcm: stream.close())
    assert completion["usage"]["completion_tokens"] < 60
    stream.close()


def test_stopping_criteria_of_llama_generate(llm, small_dac, script, expected):
    out = []
    with SpeechStream(llm, small_dac) as stream:
        options = writes([*script, *END]) | {"stopping_criteria": stream.as_stopping_criteria(out.append)}
        for _ in llm.generate(prompt_tokens(llm), **options):
            pass
        assert_same(small_dac, np.concatenate([*out, stream.flush()]), expected)


def test_generator_closed_in_the_middle(llm, small_dac, script, expected):
    with SpeechStream(llm, small_dac, overlap=True) as stream:
        generator = generation(llm, [*script, *END])
        for token in generator:
            list(stream.push(token))
            if stream.report.frames == 100:
                break
        generator.close()
    chunks, _ = speak(llm, small_dac, generation(llm, [*script, *END]))  # the model is as good as before
    assert_same(small_dac, joined(chunks), expected)


def test_chat_completion(llm, small_dac, script, expected):
    out = []
    with SpeechStream(llm, small_dac) as stream:
        processors = llama_cpp.LogitsProcessorList(
            [*dictation([*script, *END]), *stream.as_logits_processor(on_audio=out.append)]
        )
        llm.create_chat_completion([{"role": "user", "content": "hello"}], logits_processor=processors, max_tokens=None)
        assert_same(small_dac, np.concatenate([*out, stream.flush()]), expected)


def test_callback_of_an_earlier_generation(llm, small_dac, script):
    with SpeechStream(llm, small_dac) as stream:
        criteria = stream.as_stopping_criteria(lambda _pcm: None)
        for _ in zip(range(5), llm.generate(prompt_tokens(llm), stopping_criteria=criteria), strict=False):
            pass
        with pytest.raises(StreamError, match="make a stream for each"):
            next(llm.generate([0, 1], stopping_criteria=criteria))


def test_callbacks_refused(llm, small_dac, monkeypatch):
    with SpeechStream(llm, small_dac) as stream:
        with pytest.raises(ValueError, match="max_tokens is 0, expected at least 1"):
            stream.as_stopping_criteria(lambda _pcm: None, max_tokens=0)
        monkeypatch.setattr(llm, "draft_model", lambda _ids: None)
        for method in (stream.as_stopping_criteria, stream.as_logits_processor):
            with pytest.raises(VocoderError, match="use push in a loop"):
                method(lambda _pcm: None)


# Text of completions


def pushed_text(stream, pieces: Iterable[str]) -> np.ndarray:
    out = [pcm for piece in pieces for pcm in stream.push_text(piece)]
    return np.concatenate([*out, stream.flush()])


@pytest.mark.parametrize("overlap", [False, True])
def test_text_of_a_completion(llm, small_dac, script, expected, overlap):
    with SpeechStream(llm, small_dac, overlap=overlap) as stream, special_tokens_shown(llm):
        chunks = llm.create_completion(
            prompt_tokens(llm), max_tokens=None, stream=True, logits_processor=dictation([*script, *END])
        )
        samples = pushed_text(stream, (chunk["choices"][0]["text"] for chunk in chunks))
        assert_same(small_dac, samples, expected)
        assert stream.report.frames == 277


def test_text_cut_by_max_tokens_is_complete(llm, small_dac, script):
    n = frame_end(script)
    with SpeechStream(llm, small_dac) as stream, special_tokens_shown(llm):
        chunks = llm.create_completion(
            prompt_tokens(llm), max_tokens=n, stream=True, logits_processor=dictation(script)
        )
        samples = pushed_text(stream, (chunk["choices"][0]["text"] for chunk in chunks))
        assert_same(small_dac, samples, small_dac.decode(deinterleave(script[:n], stream.vocabulary)[0]))


def test_audio_tokens_that_completions_show_by_themselves(small_dac, script, expected, tmp_path):
    write_tiny_llm(tmp_path / "llm.gguf", outetts_1_tokens(), kind=gguf.TokenType.USER_DEFINED)
    llm = llama_cpp.Llama(str(tmp_path / "llm.gguf"), n_ctx=1024, n_threads=2, verbose=False)
    with SpeechStream(llm, small_dac) as stream:
        chunks = llm.create_completion(
            prompt_tokens(llm), max_tokens=None, stream=True, logits_processor=dictation([*script, *END])
        )
        samples = pushed_text(stream, (chunk["choices"][0]["text"] for chunk in chunks))
    llm.close()
    assert_same(small_dac, samples, expected)


def test_text_without_audio_tokens_is_refused(llm, small_dac):
    plain = llm.tokenizer_
    with SpeechStream(llm, small_dac) as stream:
        with pytest.raises(TokenError, match="special_tokens_shown"):
            stream.push_text("hello")
        with special_tokens_shown(llm):
            assert llm.detokenize([ID["<|c1_5|>"]]) == b"<|c1_5|>"
            assert list(stream.push_text("hello")) == []
    assert llm.tokenizer_ is plain


@pytest.mark.parametrize("size", [1, 2, 3, 7, 11, 64, 100_000])
def test_text_cut_anywhere(llm, small_dac, script, expected, size):
    text = "".join(list(ID)[token] for token in [*script, *END])
    with SpeechStream(llm, small_dac, schedule=(1000,)) as stream, special_tokens_shown(llm):
        samples = pushed_text(stream, (text[i : i + size] for i in range(0, len(text), size)))
        assert_same(small_dac, samples, expected)
        assert stream.finished


@pytest.mark.parametrize(
    "noise", ["<", "<<|", "< |c1_9|>", "<|c1_9", "<|c1_9|", "<|" + "x" * 100, "<|nonsense|>", "a > b"]
)
def test_noise_between_tokens_of_text(llm, small_dac, noise):
    with SpeechStream(llm, small_dac) as stream, special_tokens_shown(llm):
        samples = pushed_text(stream, ["<|c1_5|>", *noise, "<|c2_6|><|c1_", "7|><|c2_8|>", noise])
        assert_same(small_dac, samples, small_dac.decode(np.array([[5, 7], [6, 8]])))


# One libggml


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_one_libggml_in_the_process(llm_file, small_dac_file):
    program = """
        import importlib.util, json, sys
        from pathlib import Path
        import llama_cpp, numpy
        from vocoder_plugin import Codec, SpeechStream

        llm = llama_cpp.Llama(sys.argv[1], n_ctx=256, n_threads=1, verbose=False)
        with Codec.load(sys.argv[2], llm=llm) as codec, SpeechStream(llm, codec) as stream:
            next(llm.generate([0, 1, 2]))
            samples = codec.decode(numpy.zeros((2, 5), int)).size
        mapped = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "libggml" in line}
        bindings = importlib.util.find_spec("ggml").submodule_search_locations[0]
        print(json.dumps({"mapped": sorted(mapped), "bindings": str(Path(bindings).resolve()), "samples": samples}))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(llm_file), str(small_dac_file)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["samples"] > 0
    assert len([path for path in found["mapped"] if "libggml-base" in path]) == 1
    assert not [path for path in found["mapped"] if path.startswith(found["bindings"] + "/")]
