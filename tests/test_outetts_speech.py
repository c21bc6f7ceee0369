"""``speak`` on real Llamas: small ones that write a script, and one of random weights."""

from __future__ import annotations

import itertools
import types
import warnings

import llama_cpp
import numpy as np
import pytest
from speaking_llm import FRAMES, NEWLINE, outetts_0_all, outetts_0_script, outetts_1_speaker, write_speaking_llm
from tiny_llm import CONTROL, byte_tokens, outetts_1_tokens, write_tiny_llm

from vocoder_plugin import TokenError
from vocoder_plugin.families.outetts import (
    PromptError,
    Sampling,
    Speaker,
    SpeakerError,
    SpeechError,
    build_prompt,
    loudness,
    model_version,
    speak,
)
from vocoder_plugin.families.outetts import speech as speech_module
from vocoder_plugin.families.outetts.sampler import PENALTY_WINDOW, Sampler
from vocoder_plugin.families.outetts.speech import common_prefix

TOKENS = [*byte_tokens(), *outetts_1_tokens()]
ID = {text: i for i, text in enumerate(TOKENS)}
LONG = " ".join(
    f"This is sentence number {n} of a rather long text, is it not." for n in ("one", "two", "three", "four")
)
CODES = np.array(FRAMES, np.int32).T


def load(path, **options):
    return llama_cpp.Llama(str(path), verbose=False, n_threads=2, **{"n_ctx": 4096} | options)


@pytest.fixture(scope="module")
def llms(speaking_files):
    found = {name: load(path) for name, path in speaking_files.items()}
    for llm in found.values():
        for tokens in ([0, 0], [0]):  # llama.cpp counts from 1, for prompts and for single tokens
            llm.eval(tokens)
            evaluated(llm)
    yield found
    for llm in found.values():
        llm.close()


@pytest.fixture(scope="module")
def profile(speaker) -> Speaker:
    return Speaker.from_dict(outetts_1_speaker(speaker))


def text_of(tokens) -> str:
    return "".join(TOKENS[token] for token in tokens)


def context(llm) -> list[int]:
    return llm.input_ids[: llm.n_tokens].tolist()


def evaluated(llm) -> int:
    """Tokens that llama.cpp itself counts as computed."""
    llama_cpp.llama_synchronize(llm.ctx)
    data = llama_cpp.llama_perf_context(llm.ctx)
    return data.n_p_eval + data.n_eval


def ids(llm, text: str) -> list[int]:
    return llm.tokenize(text.encode(), add_bos=False, special=True)


def test_one_word(llms, small_dac, profile):
    chunks = list(speak(llms["word"], small_dac, "Go on.", speaker=profile, seed=1))
    np.testing.assert_allclose(np.concatenate(chunks), small_dac.decode(CODES), atol=1e-5)
    assert all(chunk.size and chunk.dtype == np.float32 for chunk in chunks)


def test_without_speaker(llms, small_dac):
    samples = np.concatenate(list(speak(llms["word"], small_dac, "Go on.", seed=1)))
    np.testing.assert_allclose(samples, small_dac.decode(CODES), atol=1e-5)


def test_chunks_are_one_stream_of_sound(llms, small_dac, profile):
    """Each chunk has its own prompt; the decoder goes on, without fades or gaps."""
    seen = []
    samples = np.concatenate(
        list(speak(llms["word"], small_dac, LONG, speaker=profile, seed=1, on_progress=lambda p: seen.append(p.chunk)))
    )
    n = seen[-1]
    assert n >= 2
    np.testing.assert_allclose(samples, small_dac.decode(np.tile(CODES, n)), atol=1e-5)


def test_the_prefix_is_computed_once(llms, small_dac, profile):
    """The prompts of a text share their beginning; llama.cpp's own count shows that it is not computed again."""
    llm = llms["word"]
    chunks = speech_module.split_text(LONG)
    prompts = [ids(llm, build_prompt(chunk, version=3, speaker=profile)) for chunk in chunks]
    opening = ids(llm, f"<|im_start|>\n<|text_start|>{profile.text.strip()} ")
    llm.reset()
    before = evaluated(llm)
    progress = []
    for _ in speak(llm, small_dac, LONG, speaker=profile, seed=1, on_progress=progress.append):
        pass
    counts = evaluated(llm) - before
    shared = [0] + [
        next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
        for one, two in itertools.pairwise(prompts)
    ]
    assert min(shared[1:]) >= len(opening) - 1
    assert progress[-1].tokens == len(prompts) * (1 + 6 + 2 * len(FRAMES) + 2)
    computed = progress[-1].tokens - len(prompts)  # the last token of a chunk is not computed
    assert counts == progress[-1].evaluated == sum(map(len, prompts)) - sum(shared) + computed
    # the same text again: of the first prompt, all that the last one shares with it is there
    assert common_prefix(llm, prompts[-1]) == len(prompts[-1]) - 1


def test_a_second_try_computes_one_token_of_the_prompt(llms, small_dac, profile):
    llm = llms["silent"]
    llm.reset()
    before = evaluated(llm)
    with pytest.raises(SpeechError, match=r"the model wrote no audio for 'Go on\.', tried 3 times"):
        list(speak(llm, small_dac, "Go on.", speaker=profile, retries=2))
    prompt = ids(llm, build_prompt("Go on.", version=3, speaker=profile))
    assert evaluated(llm) - before == len(prompt) + 2


def test_another_try_may_succeed(llms, small_dac, monkeypatch):
    """Each attempt has its own sampler; the first here ends at once."""
    made = []

    class First(Sampler):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(options["seed"])
            self.first = len(made) == 1

        def sample(self):
            token = super().sample()
            return ID["<|audio_end|>"] if self.first else token

    monkeypatch.setattr(speech_module, "Sampler", First)
    progress = []
    samples = np.concatenate(list(speak(llms["word"], small_dac, "Go on.", seed=5, on_progress=progress.append)))
    np.testing.assert_allclose(samples, small_dac.decode(CODES), atol=1e-5)
    assert made == [5, 6]
    assert progress[-1].retries == 1


@pytest.mark.parametrize("with_speaker", [False, True])
def test_guided_words(llms, small_dac, profile, with_speaker):
    """The model ends after one word, and is made to say the others in order."""
    llm = llms["word"]
    text = "Nine words are here, and all of them come."
    options = {"speaker": profile} if with_speaker else {}
    samples = np.concatenate(list(speak(llm, small_dac, text, guided=True, seed=1, **options)))
    words = text.split()
    np.testing.assert_allclose(samples, small_dac.decode(np.tile(CODES, len(words))), atol=1e-5)
    prompt = ids(llm, build_prompt(text, version=3, **options))
    said = text_of(context(llm)[len(prompt) - with_speaker :])
    found = [part.split("<|features|>")[0] for part in said.split("<|word_start|>")[1:]]
    assert found == words


def test_unguided_words_are_the_models_own(llms, small_dac):
    llm = llms["word"]
    list(speak(llm, small_dac, "Nine words are here, and all of them come.", seed=1))
    assert text_of(context(llm)).count("<|word_start|>a<|features|>") == 1


def test_seed(llm, small_dac):
    def said(seed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            list(speak(llm, small_dac, "Go on.", seed=seed, max_length=300))
        return context(llm)

    assert said(3) == said(3) != said(4)


@pytest.mark.parametrize("loaded_with", [8, 64])
def test_the_penalty_sees_64_tokens(llm_file, loaded_with):
    """Greedy choices of a real Llama, whatever its own window, against the penalty written out."""
    llm = load(llm_file, last_n_tokens_size=loaded_with, n_ctx=1024)
    tokens = ids(llm, "<|im_start|>\n<|text_start|>" + "abcdefgh" * 8)
    sampler = Sampler(llm, Sampling(temperature=0, repetition_penalty=3.0), seed=None)
    sampler.start(tokens)
    llm.reset()
    llm.eval(tokens)
    differing = dict.fromkeys((PENALTY_WINDOW - 1, PENALTY_WINDOW + 1), 0)
    for step in range(400):
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), shape=(llm.n_vocab(),)).copy()
        choice = {window: penalised(logits, tokens, window) for window in (63, 64, 65)}
        token = sampler.sample()
        assert token == choice[PENALTY_WINDOW]
        for window in differing:
            differing[window] += choice[window] != token
        if step % 50 == 49:  # as guided words do
            sampler.replace_last([ID["<|word_start|>"], ID["a"]])
            tokens += [ID["<|word_start|>"], ID["a"]]
            llm.eval(tokens[-2:])
        else:
            tokens.append(token)
            llm.eval([token])
    assert min(differing.values()) > 0  # windows of 63 and of 65 would choose otherwise
    sampler.close()
    llm.close()


def penalised(logits: np.ndarray, tokens: list[int], window: int) -> int:
    scores = logits.copy()
    for token in set(tokens[-window:]):
        scores[token] = scores[token] / 3.0 if scores[token] > 0 else scores[token] * 3.0
    return int(scores.argmax())


def test_progress(llms, small_dac, profile):
    seen = []
    chunks = list(
        speak(
            llms["word"],
            small_dac,
            LONG,
            speaker=profile,
            on_progress=lambda p: seen.append((p.words, p.seconds, p.chunk)),
        )
    )
    assert seen == sorted(seen)
    words, seconds, chunk = seen[-1]
    assert words == chunk  # this model says one word a chunk
    assert seconds == pytest.approx(sum(c.size for c in chunks) / small_dac.sample_rate)


def test_speed_figures():
    progress = speech_module.Progress(tokens=300, elapsed=2.0, seconds=4.0)
    assert (progress.tokens_per_second, progress.rtf) == (150.0, 0.5)
    assert speech_module.Progress().rtf == float("inf")


def test_loudness_is_one_gain(llms, small_dac, profile):
    plain = np.concatenate(list(speak(llms["word"], small_dac, "Go on.", speaker=profile, seed=1)))
    level = loudness.measure(profile.decode(small_dac), small_dac.sample_rate)
    soft = np.concatenate(list(speak(llms["word"], small_dac, "Go on.", speaker=profile, seed=1, loudness=level - 20)))
    assert np.abs(plain).max() * 0.1 < 0.5
    np.testing.assert_allclose(soft, plain * 0.1, atol=1e-6)
    loud = np.concatenate(list(speak(llms["word"], small_dac, "Go on.", speaker=profile, seed=1, loudness=level + 60)))
    assert np.abs(loud).max() <= 10 ** (-1 / 20) + 1e-6


def test_stopping_in_the_middle(llms, small_dac):
    iterator = speak(llms["endless"], small_dac, "Go on.", seed=1)
    first = next(iterator)
    iterator.close()
    assert first.size
    with pytest.raises(StopIteration):
        next(iterator)


@pytest.mark.parametrize("error", [SpeechError("llama.cpp could not compute"), KeyboardInterrupt()])
def test_what_was_said_before_an_error_comes_first(error, llms, small_dac, monkeypatch):
    whole, calls = speech_module._Speech.chunk, []

    def chunk(self, plan, **options):
        calls.append(plan)
        if len(calls) == 2:
            raise error
        return whole(self, plan, **options)

    monkeypatch.setattr(speech_module._Speech, "chunk", chunk)
    parts = []
    with pytest.raises(type(error)):
        parts.extend(speak(llms["word"], small_dac, LONG, seed=1))  # extend keeps what came before
    assert len(calls) == 2
    np.testing.assert_allclose(np.concatenate(parts), small_dac.decode(CODES), atol=1e-5)


def test_limit_of_tokens(llms, small_dac):
    with pytest.warns(UserWarning, match="the limit of 200 tokens was reached"):
        samples = np.concatenate(list(speak(llms["endless"], small_dac, "Go on.", seed=1, max_length=200)))
    prompt = ids(llms["endless"], build_prompt("Go on.", version=3))
    frames = (200 - len(prompt) - 1) // 2
    assert abs(samples.size - small_dac.decoded_length(frames)) <= small_dac.hop_length


def test_babble_without_audio_ends(llms, small_dac, monkeypatch):
    monkeypatch.setattr(Sampler, "sample", lambda self: (self._window.append(ID["x"]), ID["x"])[1])
    with pytest.warns(UserWarning, match="256 tokens without audio"), pytest.raises(SpeechError, match="tried 1 time;"):
        list(speak(llms["word"], small_dac, "Go on.", retries=0))


def test_versions(llms, llm, tmp_path, small_dac):
    assert model_version(llm) == model_version(llms["word"]) == 3
    for version, special in ((2, outetts_0_all()), (1, [t for t in outetts_0_all() if t != "<|space|>"])):
        write_speaking_llm(tmp_path / f"{version}.gguf", outetts_0_script(), special=special)
        other = load(tmp_path / f"{version}.gguf", n_ctx=512)
        assert model_version(other) == version
        with pytest.raises(TokenError, match=r"is OuteTTS 0.*, which needs a codec with 1 codebook, but .* 2;"):
            speak(other, small_dac, "Go on.")
        other.close()


class OneCodebook:
    """Stands in for a WavTokenizer: a sample a frame, which is the code."""

    name, path, n_codebooks, codebook_size, sample_rate = "counter", __file__, 1, 4096, 24000
    device = types.SimpleNamespace(is_cpu=True)

    def decoder_stream(self, **_options):
        return self

    def push(self, codes):
        return codes[0].astype(np.float32)

    finish = push

    def close(self):
        pass


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("with_speaker", [False, True])
def test_versions_1_and_2_speak(version, with_speaker, tmp_path):
    special = outetts_0_all() if version == 2 else [t for t in outetts_0_all() if t != "<|space|>"]
    # where a version 1 prompt ends, after its last word, a new line opens the next one
    script = outetts_0_script() + ([["<|code_end|>", "<|0|>"]] if version == 1 else [])
    tokens = write_speaking_llm(tmp_path / "old.gguf", script, special=special)
    old = load(tmp_path / "old.gguf", n_ctx=1024)
    words = [{"word": "oh", "duration": 0.03, "codes": [7, 8]}, {"word": "hi", "duration": 0.01, "codes": [9]}]
    options = {"speaker": {"text": "Oh, hi", "words": words, "interface_version": version}} if with_speaker else {}
    if version == 2:
        options["voice"] = "soft"
    samples = np.concatenate(list(speak(old, OneCodebook(), "Go on.", seed=1, **options)))
    assert samples.tolist() == list(range(12))
    prompt = old.tokenize(build_prompt("Go on.", version=version, **options).encode(), add_bos=False, special=True)
    assert context(old)[: len(prompt)] == prompt
    assert [tokens[t] for t in context(old)[len(prompt) :]] == [f"<|{i}|>" for i in range(12)]
    old.close()


@pytest.mark.parametrize("ends_early", [False, True])
@pytest.mark.parametrize("with_speaker", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_guided_words_of_versions_1_and_2(version, with_speaker, ends_early, tmp_path):
    """The model goes on for ever, or ends after the first word; both ways it says each word once, in order."""
    mark = {1: "<|code_end|>", 2: "<|space|>"}[version]
    special = [*outetts_0_all(), "<|comma|>", "<|exclamation_mark|>"]
    if version == 1:
        special.remove("<|space|>")
    codes = [f"<|{i}|>" for i in range(12)]
    scripts = [["a", *codes, "<|audio_end|>" if ends_early else mark], ["<|comma|>", codes[0]]]
    tokens = write_speaking_llm(tmp_path / "old.gguf", [*scripts, ["<|exclamation_mark|>", codes[0]]], special=special)
    old = load(tmp_path / "old.gguf", n_ctx=1024)
    words = [{"word": "oh", "duration": 0.03, "codes": [7, 8]}, {"word": "hi", "duration": 0.01, "codes": [9]}]
    options = {"speaker": {"text": "Oh, hi", "words": words, "interface_version": version}} if with_speaker else {}
    progress = []
    said = "Papa, mama, data!"
    samples = np.concatenate(
        list(speak(old, OneCodebook(), said, seed=1, guided=True, on_progress=progress.append, **options))
    )
    assert samples.tolist() == [*range(12)] * 3
    prompt = old.tokenize(build_prompt(said, version=version, **options).encode(), add_bos=False, special=True)
    written = "".join(tokens[token] for token in context(old)[len(prompt) :]).replace(NEWLINE, "\n")
    texts = ["papa", "mama", "data"] if version == 1 else ["papa<|comma|>", "mama<|comma|>", "data<|exclamation_mark|>"]
    opening = "\n" if version == 1 and with_speaker else ""
    assert written == opening + f"{mark}\n".join(text + "".join(codes) for text in texts)
    assert progress[-1].words == (0 if ends_early else 3)
    old.close()


def test_guided_emotions():
    text = "well <|emotion_start|>laughs <|audio_end|><|emotion_end|> then, <|emotion_start|>sighs<|emotion_end|>"
    guided = ["".join(parts) for parts in speech_module._guided_words(text, 2)]
    assert guided == ["well", "<|emotion_start|>laughs  <|emotion_end|><|space|>\nthen<|comma|>"]


def test_two_speeches_in_turns_on_one_llama(llms, small_dac):
    llm = llms["endless"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = [next(iter(speak(llm, small_dac, text, seed=1, max_length=300))) for text in ("Go on.", "Stop it.")]
        first, second = (speak(llm, small_dac, text, seed=1, max_length=300) for text in ("Go on.", "Stop it."))
        np.testing.assert_array_equal(next(first), alone[0])
        np.testing.assert_array_equal(next(second), alone[1])  # begins anew, whatever the context holds
        with pytest.raises(SpeechError, match="the Llama was used for something else in the middle of a speech"):
            list(first)
        assert next(second).size  # nothing has used the Llama since


def test_a_model_without_audio_tokens(tmp_path, small_dac):
    write_tiny_llm(tmp_path / "plain.gguf", CONTROL)
    plain = load(tmp_path / "plain.gguf", n_ctx=512)
    with pytest.raises(TokenError, match="the model has no audio tokens of OuteTTS"):
        speak(plain, small_dac, "Go on.")
    plain.close()


def test_refused_before_anything_is_computed(llms, small_dac, profile):
    llm = llms["word"]
    before = evaluated(llm)
    for text in ("", "  \n", "... !"):
        with pytest.raises(SpeechError, match="nothing to say"):
            speak(llm, small_dac, text)
    with pytest.raises(PromptError, match="expected str"):
        speak(llm, small_dac, None)
    with pytest.raises(PromptError, match="version 2 was asked for, but the model is OuteTTS"):
        speak(llm, small_dac, "Go on.", version=2)
    with pytest.raises(PromptError, match="only known to version 2"):
        speak(llm, small_dac, "Go on.", voice="soft")
    with pytest.raises(SpeakerError, match=r"is made for OuteTTS 0\.2 or 0\.3, but the model is OuteTTS 1\.0"):
        speak(llm, small_dac, "Go on.", speaker={"text": "a", "words": [{"word": "a", "duration": 1, "codes": [1]}]})
    with pytest.raises(SpeechError, match=r"the prompt of 'Go on\.' has \d+ tokens, which leaves no room .* in 100;"):
        speak(llm, small_dac, "Go on.", speaker=profile, max_length=100)
    with pytest.raises(SpeakerError, match="there is no speaker"):
        speak(llm, small_dac, "Go on.", loudness=-18)
    with pytest.raises(ValueError, match="expected at least 1 and 0"):
        speak(llm, small_dac, "Go on.", retries=-1)
    with pytest.raises(ValueError, match="min_words"):
        speak(llm, small_dac, "Go on.", min_words=0)
    assert evaluated(llm) == before


def test_control_tokens_in_the_text_are_left_out(llms, small_dac):
    llm = llms["word"]
    list(speak(llm, small_dac, "Go <|im_end|> on <|audio_start|>.", seed=1))
    assert text_of(context(llm)).count("<|audio_start|>") == 1


def test_a_speaker_of_another_codec_is_warned_about(llms, small_dac, profile):
    other = profile.replace(codec={"name": "another dac", "sha256": "ab" * 32})
    with pytest.warns(UserWarning, match=r"'another dac' .* is not this codec"):
        speak(llms["word"], small_dac, "Go on.", speaker=other)
