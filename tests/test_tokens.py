"""Audio tokens to frames: which vocabulary entries they are, and what a damaged stream still gives."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_llm import CONTROL, byte_tokens, outetts_0_tokens, outetts_1_tokens

from vocoder_plugin import AudioVocabulary, TokenError, TokenReport, deinterleave
from vocoder_plugin.llm.tokens import OUTETTS_0, OUTETTS_1, Deinterleaver, TokenLayout

TEXTS = [*byte_tokens(), *outetts_1_tokens()]
ID = {text: token for token, text in enumerate(TEXTS)}
TEXTS_0 = [*byte_tokens(), *outetts_0_tokens()]
VOCABULARY = AudioVocabulary.from_texts(TEXTS, n_codebooks=2, codebook_size=1024)
INVALID = 1024
OTHERS = [i for i in range(len(TEXTS)) if i not in VOCABULARY.codes]


def audio(codebook: int, code: int) -> int:
    return ID[f"<|c{codebook}_{code}|>"]


def tokens_of(frames) -> list[int]:
    return [audio(q, code) for frame in frames for q, code in enumerate(frame, 1)]


def frames_of(codes: np.ndarray) -> list[tuple[int, int]]:
    return [tuple(frame) for frame in codes.T.tolist()]


def naive(tokens) -> np.ndarray:
    """What OuteTTS's own code does: all c1, all c2, cut to the shorter."""
    found: list[list[int]] = [[], []]
    for token in tokens:
        if match := re.fullmatch(r"<\|c([12])_(\d+)\|>", TEXTS[token]):
            found[int(match[1]) - 1].append(int(match[2]))
    n = min(map(len, found))
    return np.array([codes[:n] for codes in found], np.int32)


# Vocabularies


def test_outetts_1_tokens_by_text():
    assert VOCABULARY.layout is OUTETTS_1
    assert VOCABULARY.n_codebooks == 2
    assert len(VOCABULARY.codes) == 2 * 1025
    assert VOCABULARY.codes[ID["<|c1_0|>"]] == (0, 0)
    assert VOCABULARY.codes[ID["<|c2_1024|>"]] == (1, 1024)
    assert not {ID["<|t_0.50|>"], ID["<|energy_5|>"], ID["<|code|>"], ID["c"]} & VOCABULARY.codes.keys()


def test_numbers_do_not_matter():
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    vocabulary = AudioVocabulary.from_texts(shuffled, n_codebooks=2, codebook_size=1024)
    assert {shuffled[i]: where for i, where in vocabulary.codes.items()} == {
        TEXTS[i]: where for i, where in VOCABULARY.codes.items()
    }
    assert {shuffled[i] for i in vocabulary.end} == {TEXTS[i] for i in VOCABULARY.end}


@pytest.mark.parametrize("text", ["<|c1_7", " <|c1_7|>", "<|c1_7|> ", "<|c3_7|>", "<|c1_-7|>", "<|C1_7|>", "<|c1_|>"])
def test_only_whole_texts_match(text):
    vocabulary = AudioVocabulary.from_texts([*TEXTS, text], n_codebooks=2, codebook_size=1024)
    assert vocabulary.codes == VOCABULARY.codes


def test_outetts_0_tokens_by_text():
    vocabulary = AudioVocabulary.from_texts(TEXTS_0, n_codebooks=1, codebook_size=4096)
    assert vocabulary.layout is OUTETTS_0
    assert {TEXTS_0[i]: where for i, where in vocabulary.codes.items()} == {f"<|{n}|>": (0, n) for n in range(4100)}


@pytest.mark.parametrize(("n_codebooks", "size", "layout"), [(2, 1024, OUTETTS_1), (1, 4096, OUTETTS_0)])
def test_layout_by_number_of_codebooks(n_codebooks, size, layout):
    both = [*TEXTS, *(f"<|{i}|>" for i in range(4096))]
    assert AudioVocabulary.from_texts(both, n_codebooks=n_codebooks, codebook_size=size).layout is layout


def test_layout_of_ones_own():
    layout = TokenLayout("Mine", tuple(rf"<{name}(\d+)>" for name in "abc"), end=("<stop>",))
    texts = [*(f"<{name}{i}>" for i in range(4) for name in "cab"), "<stop>", "<|audio_end|>"]
    vocabulary = AudioVocabulary.from_texts(texts, n_codebooks=3, codebook_size=4, layouts=[layout])
    stream = [texts.index(text) for text in ("<a1>", "<b2>", "<c3>", "<a0>", "<b0>", "<a3>", "<b1>", "<c0>")]
    codes, report = deinterleave(stream, vocabulary)
    assert codes.tolist() == [[1, 3], [2, 1], [3, 0]]
    assert report == TokenReport(frames=2, damaged_frames=1)
    assert vocabulary.end == {texts.index("<stop>")}


def test_end_tokens():
    assert VOCABULARY.end == {ID["<|audio_end|>"], ID["<|im_end|>"]}
    vocabulary = AudioVocabulary.from_texts(TEXTS, n_codebooks=2, codebook_size=1024, end=[7])
    assert vocabulary.end == {7, *VOCABULARY.end}


def test_missing_codes():
    texts = [text for text in TEXTS if text not in ("<|c2_5|>", "<|c2_1023|>", "<|c1_1024|>")]
    with pytest.raises(TokenError) as error:
        AudioVocabulary.from_texts(texts, n_codebooks=2, codebook_size=1024)
    assert str(error.value) == ("the model's vocabulary lacks 2 of the codec's codes, such as code 5 of codebook 1")


def test_codec_with_larger_codebooks():
    with pytest.raises(TokenError, match="lacks 6142 of the codec's codes, such as code 1025 of codebook 0"):
        AudioVocabulary.from_texts(TEXTS, n_codebooks=2, codebook_size=4096)


@pytest.mark.parametrize(
    ("texts", "n_codebooks", "message"),
    [
        (TEXTS, 1, "a codec with 1 codebook; it speaks OuteTTS 1.0, which needs another codec file"),
        (TEXTS, 9, "a codec with 9 codebooks; it speaks OuteTTS 1.0, which needs another codec file"),
        (TEXTS_0, 2, "a codec with 2 codebooks; it speaks OuteTTS 0.1 to 0.3, which needs another codec file"),
        (CONTROL, 2, "a codec with 2 codebooks"),
        ([], 1, "a codec with 1 codebook"),
    ],
)
def test_wrong_codec_for_the_model(texts, n_codebooks, message):
    with pytest.raises(TokenError) as error:
        AudioVocabulary.from_texts(texts, n_codebooks=n_codebooks, codebook_size=1024)
    assert str(error.value) == f"the model has no audio tokens for {message}"


# Clean streams

CODES = st.integers(0, 1023)
WORDS = st.lists(
    st.tuples(st.lists(st.sampled_from(OTHERS), max_size=5), st.lists(st.tuples(CODES, CODES), max_size=8)), max_size=8
)


def stream_of(words) -> list[int]:
    return [token for text, frames in words for token in (*text, *tokens_of(frames))]


@given(WORDS, st.booleans())
def test_clean_stream_is_the_naive_extraction(words, cut):
    tokens = stream_of(words)[: -1 if cut else None]  # at most the last c2 is missing
    codes, report = deinterleave(tokens, VOCABULARY)
    assert codes.dtype == np.int32
    assert np.array_equal(codes, naive(tokens))
    assert report.frames == codes.shape[1]
    assert report.stray_tokens == report.invalid_tokens == 0
    assert report.other_tokens == sum(token not in VOCABULARY.codes for token in tokens)


def test_published_speaker(speaker):
    codes, report = deinterleave(tokens_of(speaker["codes"].T), VOCABULARY)
    assert np.array_equal(codes, speaker["codes"])
    assert report == TokenReport(frames=277)


@given(WORDS, st.lists(st.integers(0, 500), max_size=10), st.sampled_from(OTHERS))
def test_text_within_a_frame_does_no_harm(words, places, text):
    tokens = stream_of(words)
    broken_up = list(tokens)
    for place in places:
        broken_up.insert(place, text)
    assert np.array_equal(deinterleave(broken_up, VOCABULARY)[0], naive(tokens))


@pytest.mark.parametrize("tokens", [[], [ID["a"], ID["<|code|>"], ID["<|audio_end|>"]]])
def test_no_audio(tokens):
    codes, report = deinterleave(tokens, VOCABULARY)
    assert codes.shape == (2, 0)
    assert codes.dtype == np.int32
    assert report == TokenReport(other_tokens=len(tokens))


# Damage

A, B, C = (1, 101), (2, 102), (3, 103)


@pytest.mark.parametrize(
    ("damage", "frames", "report"),
    [
        ([audio(2, 102)], [A, C], TokenReport(stray_tokens=1)),
        ([audio(1, 2)], [A, C], TokenReport(damaged_frames=1)),
        ([], [A, C], TokenReport()),
        ([audio(1, 2), audio(1, 2), audio(2, 102)], [A, B, C], TokenReport(damaged_frames=1)),
        ([audio(1, 2), audio(2, 102), audio(2, 102)], [A, B, C], TokenReport(stray_tokens=1)),
        ([audio(1, INVALID), audio(2, 102)], [A, C], TokenReport(damaged_frames=1, invalid_tokens=1)),
        ([audio(1, 2), audio(2, INVALID)], [A, C], TokenReport(damaged_frames=1, invalid_tokens=1)),
        ([audio(1, INVALID), audio(2, INVALID)], [A, C], TokenReport(damaged_frames=1, invalid_tokens=2)),
        ([audio(1, INVALID)], [A, C], TokenReport(damaged_frames=1, invalid_tokens=1)),
        ([audio(2, INVALID)], [A, C], TokenReport(stray_tokens=1)),
        ([audio(2, 102), audio(1, 2)], [A, C], TokenReport(damaged_frames=1, stray_tokens=1)),
        ([audio(2, 9), audio(2, 9), audio(2, 9)], [A, C], TokenReport(stray_tokens=3)),
        ([ID["a"], ID["<|word_end|>"]], [A, C], TokenReport(other_tokens=2)),
    ],
    ids=[
        "lost c1", "lost c2", "lost frame", "doubled c1", "doubled c2", "invalid c1", "invalid c2", "invalid frame",
        "invalid c1, lost c2", "lost c1, invalid c2", "swapped", "only c2", "only text",
    ],
)  # fmt: skip
def test_damage_stays_in_its_frame(damage, frames, report):
    report.frames = len(frames)
    codes, found = deinterleave([*tokens_of([A]), *damage, *tokens_of([C])], VOCABULARY)
    assert frames_of(codes) == frames
    assert found == report


def test_truncated_at_the_end():
    codes, report = deinterleave(tokens_of([A, B])[:-1], VOCABULARY)
    assert frames_of(codes) == [A]
    assert report == TokenReport(frames=1, damaged_frames=1)


def test_begins_within_a_frame():
    codes, report = deinterleave(tokens_of([A, B])[1:], VOCABULARY)
    assert frames_of(codes) == [B]
    assert report == TokenReport(frames=1, stray_tokens=1)


DAMAGE = st.lists(
    st.tuples(st.sampled_from(["delete", "double", "invalid", "swap"]), st.integers(0, 10**6)), min_size=1, max_size=8
)


def damaged(frames, damage) -> tuple[list[int], set[int]]:
    """The frames' tokens after the damage, and the indices of the frames it touched."""
    tagged = [(token, i) for i, frame in enumerate(frames) for token in tokens_of([frame])]
    touched = set()
    for kind, place in damage:
        if not tagged:
            break
        at = place % len(tagged)
        token, frame = tagged[at]
        touched.add(frame)
        if kind == "delete":
            del tagged[at]
        elif kind == "double":
            tagged.insert(at, tagged[at])
        elif kind == "invalid":
            tagged[at] = (audio(1 + VOCABULARY.codes[token][0], INVALID), frame)
        elif at + 1 < len(tagged):
            tagged[at : at + 2] = tagged[at + 1], tagged[at]
            touched.add(tagged[at][1])
    return [token for token, _ in tagged], touched


@given(st.permutations(range(40)), st.integers(1, 40), DAMAGE)
def test_other_frames_survive_any_damage(order, n, damage):
    frames = [(code, 1000 - code) for code in order[:n]]  # each code in one frame only: a pair tells where it is from
    tokens, touched = damaged(frames, damage)
    codes, report = deinterleave(tokens, VOCABULARY)
    found = frames_of(codes)
    whole = [frame for i, frame in enumerate(frames) if i not in touched]
    assert [frame for frame in found if frame in set(whole)] == whole
    first, second = ({frames[i][q] for i in touched} for q in (0, 1))
    rest = [frame for frame in found if frame not in set(whole)]
    assert all(a in first and b in second for a, b in rest)
    assert len(whole) <= len(found) <= len(tokens) // 2
    assert_adds_up(tokens, report)
    assert report.frames == len(found)


def assert_adds_up(tokens, report: TokenReport) -> None:
    places = [VOCABULARY.codes[token][0] for token in tokens if token in VOCABULARY.codes]
    assert places.count(0) == report.frames + report.damaged_frames  # every c1 begins a frame
    ended_damaged = places.count(1) - report.frames - report.stray_tokens  # frames with an invalid code
    assert 0 <= ended_damaged <= report.damaged_frames
    assert ended_damaged <= report.invalid_tokens <= sum(VOCABULARY.codes.get(t, (0, 0))[1] == INVALID for t in tokens)
    assert report.other_tokens == len(tokens) - len(places)


ANY_TOKEN = st.sampled_from([audio(q, code) for q in (1, 2) for code in (0, 1, 2, INVALID)] + [ID["a"], ID["<|code|>"]])


@given(st.lists(ANY_TOKEN, max_size=60))
def test_any_stream_gives_valid_codes(tokens):
    codes, report = deinterleave(tokens, VOCABULARY)
    assert codes.shape == (2, report.frames)
    assert ((codes >= 0) & (codes < 1024)).all()
    assert_adds_up(tokens, report)


@given(st.lists(ANY_TOKEN, max_size=60))
def test_one_at_a_time_equals_all_at_once(tokens):
    deinterleaver = Deinterleaver(VOCABULARY)
    frames, complete = [], []
    for count, token in enumerate(tokens, 1):
        if (frame := deinterleaver.push(token)) is not None:
            frames.append(tuple(frame))
        complete.append(frames == frames_of(deinterleave(tokens[:count], VOCABULARY)[0]))
    deinterleaver.finish()
    codes, report = deinterleave(tokens, VOCABULARY)
    assert all(complete)  # no frame comes later than its last token
    assert frames == frames_of(codes)
    assert deinterleaver.report == report


def test_finish_twice_counts_once():
    deinterleaver = Deinterleaver(VOCABULARY)
    assert deinterleaver.push(audio(1, 0)) is None
    deinterleaver.finish()
    deinterleaver.finish()
    assert deinterleaver.report == TokenReport(damaged_frames=1)


def test_single_codebook():
    vocabulary = AudioVocabulary.from_texts(TEXTS_0, n_codebooks=1, codebook_size=4096)
    texts = ["<|5|>", "a", "<|4095|>", "<|4096|>", "<|0|>", "<|t_0.50|>", "<|0|>"]
    codes, report = deinterleave([TEXTS_0.index(text) for text in texts], vocabulary)
    assert codes.tolist() == [[5, 4095, 0, 0]]
    assert report == TokenReport(frames=4, damaged_frames=1, invalid_tokens=1, other_tokens=2)
