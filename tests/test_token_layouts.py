"""Layouts of one's own: codebooks in any order, codebooks that lag, and Mimi's codes out of a Llama's tokens."""

from __future__ import annotations

import llama_cpp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_llm import CONTROL, byte_tokens, one_choice, write_tiny_llm

from vocoder_plugin import AudioVocabulary, Codec, SpeechStream, TokenError, TokenLayout, TokenReport, deinterleave
from vocoder_plugin.llm import generate_tokens

SIZE = 64  # codes of a codebook
PAD = SIZE


def spelled(n: int, **options) -> TokenLayout:
    """n places, spelled <|a0_…|>, <|a1_…|>, … by codebook."""
    codebooks = options.get("codebooks") or range(n)
    return TokenLayout("Mine", tuple(rf"<\|a{q}_(\d+|pad)\|>" for q in codebooks), **options)


def texts_of(n: int) -> list[str]:
    return [f"<|a{q}_{code}|>" for q in range(n) for code in range(SIZE + 1)]


def interleaved(codes: np.ndarray, layout: TokenLayout, *, tail: bool = True) -> list[list[tuple[int, int]]]:
    """Codes [n_codebooks, n] -> steps of (codebook, code): what a model of that layout writes, padded where it must."""
    n = codes.shape[1]
    steps = []
    for s in range(n + (layout.delay if tail else 0)):
        frames = [s - delay for delay in layout.delays]
        step = [(q, int(codes[q, f]) if 0 <= f < n else PAD) for q, f in zip(layout.codebooks, frames, strict=True)]
        steps.append(step)
    return steps


def written(steps) -> list[str]:
    return [f"<|a{q}_{code}|>" for step in steps for q, code in step]


def read(words: list[str], layout: TokenLayout) -> tuple[np.ndarray, TokenReport]:
    texts = [*texts_of(layout.n_codebooks), "other"]
    vocabulary = AudioVocabulary.from_texts(texts, n_codebooks=layout.n_codebooks, codebook_size=SIZE, layouts=[layout])
    return deinterleave([texts.index(word) for word in words], vocabulary)


LAYOUTS = st.integers(1, 6).flatmap(
    lambda n: st.builds(
        lambda order, delays: spelled(n, codebooks=tuple(order), delays=(0, *delays)),
        st.permutations(range(n)),
        st.lists(st.integers(0, 4), min_size=n - 1, max_size=n - 1),
    )
)


@given(LAYOUTS, st.integers(0, 12), st.booleans())
def test_any_layout_gives_back_its_codes(layout, n, tail):
    codes = np.random.default_rng(n).integers(0, SIZE, (layout.n_codebooks, n)).astype(np.int32)
    found, report = read(written(interleaved(codes, layout, tail=tail)), layout)
    complete = n if tail else max(0, n - layout.delay)
    np.testing.assert_array_equal(found, codes[:, :complete])
    assert (report.frames, report.damaged_frames) == (complete, n - complete)  # without a tail, frames are cut off
    assert report.stray_tokens == report.other_tokens == 0


def test_by_hand():
    """Moshi's order: the semantic code at once, the acoustic ones a step later."""
    layout = spelled(3, delays=(0, 1, 1))
    words = ["a0_1", "a1_64", "a2_64", "a0_2", "a1_11", "a2_21", "a0_3", "a1_12", "a2_22", "a0_64", "a1_13", "a2_23"]
    codes, report = read([f"<|{word}|>" for word in words], layout)
    assert codes.tolist() == [[1, 2, 3], [11, 12, 13], [21, 22, 23]]
    assert report == TokenReport(frames=3, invalid_tokens=1)  # the padding of the tail


def test_padding_may_be_a_word():
    layout = TokenLayout("Mine", (r"<a(\d+|x)>", r"<b(\d+|x)>"), delays=(0, 1))
    texts = [f"<{q}{code}>" for q in "ab" for code in (0, 1, "x")]
    vocabulary = AudioVocabulary.from_texts(texts, n_codebooks=2, codebook_size=2, layouts=[layout])
    tokens = [texts.index(text) for text in ("<a1>", "<bx>", "<a0>", "<b1>", "<ax>", "<b0>")]
    codes, report = deinterleave(tokens, vocabulary)
    assert codes.tolist() == [[1, 0], [1, 0]]
    assert report == TokenReport(frames=2, invalid_tokens=1)


def test_a_loss_costs_the_frames_in_flight_and_nothing_else():
    """Frame 5's step loses its third token: of a delay of 2, frames 3, 4 and 5 are gone."""
    layout = spelled(3, delays=(0, 1, 2))
    codes = np.arange(36).reshape(3, 12)
    steps = interleaved(codes, layout)
    del steps[5][2]
    found, report = read(written(steps), layout)
    np.testing.assert_array_equal(found, np.delete(codes, [3, 4, 5], axis=1))
    assert report == TokenReport(frames=9, damaged_frames=3, invalid_tokens=3)  # invalid: the padding of the tail


def test_an_invalid_code_costs_its_own_frame():
    layout = spelled(3, delays=(0, 1, 2))
    codes = np.arange(36).reshape(3, 12)
    steps = interleaved(codes, layout)
    steps[5][1] = (1, PAD)  # of frame 4
    found, report = read(written(steps), layout)
    np.testing.assert_array_equal(found, np.delete(codes, 4, axis=1))
    assert report == TokenReport(frames=11, damaged_frames=1, invalid_tokens=4)


@given(
    LAYOUTS.filter(lambda layout: layout.n_codebooks > 1),
    st.dictionaries(st.integers(0, 19), st.tuples(st.sampled_from(["delete", "double", "invalid"]), st.integers(0, 5))),
)
def test_whole_frames_are_never_mixed(layout, damage):
    """Frame f's codes are f in every codebook. One damage a step: what it touches may be lost, all else is there.

    Nobody can tell a frame from the halves of two, where one step loses its end and the next its beginning.
    """
    codes = np.tile(np.arange(20), (layout.n_codebooks, 1))
    steps = interleaved(codes, layout)
    touched: set[int] = set()
    for s, (kind, place) in damage.items():
        place %= layout.n_codebooks
        if kind == "delete":
            del steps[s][place]
        elif kind == "double":
            steps[s].insert(place, steps[s][place])
        else:
            steps[s][place] = (layout.codebooks[place], PAD)
        touched |= {s - layout.delays[place]} if kind == "invalid" else set(range(s - layout.delay, s + 1))
    found, report = read(written(steps), layout)
    assert report.frames == found.shape[1]
    mixed = (found != found[:1]).any(axis=0)
    assert set(found[:, mixed].flat) <= touched
    frames = found[0, ~mixed].tolist()
    assert frames == sorted(set(frames))
    assert set(range(20)) - touched <= set(frames)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebooks": (0, 0)}, r"codebooks are \(0, 0\), expected 0 to 1, each once"),
        ({"codebooks": (0, 1, 2)}, r"codebooks are \(0, 1, 2\)"),
        ({"delays": (1, 2)}, r"delays are \(1, 2\), expected 2, the smallest of them 0"),
        ({"delays": (0, -1)}, "the smallest of them 0"),
        ({"delays": (0,)}, r"delays are \(0,\), expected 2"),
        ({"patterns": (r"<a\d+>", r"<b(\d+)>")}, "has not one group"),
    ],
)
def test_layouts_that_contradict_themselves(options, message):
    with pytest.raises(ValueError, match=message):
        TokenLayout(**{"name": "Mine", "patterns": (r"<a(\d+)>", r"<b(\d+)>"), **options})


def test_a_token_of_two_places():
    layout = TokenLayout("Mine", (r"<(\d+)>", r"<(\d+)>"))
    with pytest.raises(TokenError, match="layout 'Mine': token '<0>' fits places 0 and 1"):
        AudioVocabulary.from_texts(["<0>"], n_codebooks=2, codebook_size=1, layouts=[layout])


# Mimi's codes out of a generation

MIMI = TokenLayout(
    "tiny speech model",
    tuple(rf"<\|mimi_{q}_(\d+)\|>" for q in (*range(1, 8), 0)),
    codebooks=(*range(1, 8), 0),  # the semantic code comes last in a step
    delays=(2,) * 7 + (0,),  # and two steps before the acoustic ones
)
END = "<|audio_end|>"


@pytest.fixture(scope="module")
def mimi(fixtures):
    with Codec.load(fixtures / "codec_cpp_mimi_hf_f32.gguf", sliding_window=20, n_threads=2) as codec:
        yield codec


@pytest.fixture(scope="module")
def speech_llm(tmp_path_factory):
    """A Llama that carries Mimi's 8 codebooks of 32 entries, and code 32 for padding; and its texts' ids."""
    path = tmp_path_factory.mktemp("llm") / "mimi_llm.gguf"
    texts = write_tiny_llm(path, [*CONTROL, *(f"<|mimi_{q}_{code}|>" for q in range(8) for code in range(33))])
    llm = llama_cpp.Llama(str(path), n_ctx=2048, n_threads=2, verbose=False)
    yield llm, {text: i for i, text in enumerate(texts)}
    llm.close()


def speech(codes: np.ndarray) -> list[str]:
    """What the model writes for these codes, with text between steps."""
    words = []
    for s in range(codes.shape[1] + MIMI.delay):
        frames = [s - delay for delay in MIMI.delays]
        words += [
            f"<|mimi_{q}_{codes[q, f] if 0 <= f < codes.shape[1] else 32}|>"
            for q, f in zip(MIMI.codebooks, frames, strict=True)
        ]
        words += [byte_tokens()[ord("a")]] * (s % 3)
    return words


def spoken(llm, ids: dict[str, int], codec: Codec, words: list[str]) -> tuple[np.ndarray, TokenReport]:
    """Through a generation in which the model has one choice a step."""
    dictated = one_choice(ids[word] for word in (*words, END))
    with SpeechStream(llm, codec, layout=MIMI, schedule=(1, 3)) as stream:
        tokens = generate_tokens(
            llm, "<|audio_start|>", end=stream.vocabulary.end, max_tokens=2000, logits_processor=[dictated]
        )
        chunks = [pcm for token in tokens for pcm in stream.push(token)]
        assert len(chunks) > 1  # samples came while the model wrote
        return np.concatenate([*chunks, stream.flush()]), stream.report


def test_a_llama_speaks_mimi(speech_llm, mimi):
    codes = np.random.default_rng(0).integers(0, 32, (8, 30))
    samples, report = spoken(*speech_llm, mimi, speech(codes))
    expected = mimi.decode(codes)
    assert samples.shape == expected.shape == (30 * 1920,)
    assert np.linalg.norm(samples - expected) <= 2e-6 * np.linalg.norm(expected)
    assert (report.frames, report.damaged_frames, report.stray_tokens) == (30, 0, 0)


def test_a_llama_that_loses_a_token(speech_llm, mimi):
    codes = np.random.default_rng(1).integers(0, 32, (8, 30))
    words = speech(codes)
    lost = next(i for i, word in enumerate(words) if word == f"<|mimi_3_{codes[3, 10]}|>" and i > 12 * 8)
    samples, report = spoken(*speech_llm, mimi, words[:lost] + words[lost + 1 :])
    assert (report.frames, report.damaged_frames) == (27, 2)  # the third had not begun: its code would have come last
    step = sum(word.startswith("<|mimi_0_") for word in words[:lost])  # frames step - 2 to step were begun
    expected = mimi.decode(np.delete(codes, [step - 2, step - 1, step], axis=1))
    assert np.linalg.norm(samples - expected) <= 2e-6 * np.linalg.norm(expected)


def test_layouts_and_codecs_of_different_codebooks(speech_llm, fixtures):
    with (
        Codec.load(fixtures / "codec_cpp_mimi_hf_f32.gguf", n_codebooks=4) as codec,
        pytest.raises(TokenError, match=r"'tiny speech model' has 8 codebooks, the codec 4; .* n_codebooks=8"),
    ):
        SpeechStream(speech_llm[0], codec, layout=MIMI)
