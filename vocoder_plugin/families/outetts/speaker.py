"""Speaker profiles: what a speaker said, word by word, as codes that begin a prompt.

The JSON is that of outetts (``interface_version`` 1 to 3) and of llama.cpp (``version`` "0.2" and
the like); keys this package does not know are kept.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ...codec import Codec
from ...errors import refusal
from ...files import complete_file, regular_file
from .errors import SpeakerError
from .fingerprint import fingerprint
from .markup import FEATURE_NAMES

VERSIONS = (1, 2, 3)
LLAMA_CPP_VERSIONS = {"0.1": 1, "0.2": 2, "0.3": 2, "1.0": 3, "1": 1, "2": 2, "3": 3}
FILE_LIMIT = 4 << 20  # bytes; a profile of 20 s has about 0.1 MB
CODE_KEYS = {1: ("codes",), 2: ("codes",), 3: ("c1", "c2")}
CODE_LIMIT = {1: 4096, 2: 4096, 3: 1024}  # codes the models' codecs have; a codec may have fewer
MODELS = {1: "OuteTTS 0.1", 2: "OuteTTS 0.2 or 0.3", 3: "OuteTTS 1.0"}
CODECS = {1: "wavtokenizer", 2: "wavtokenizer", 3: "dac"}  # that the models of each version need
FEATURE_LIMIT = 100


class _Frozen:
    """A dataclass whose mappings cannot be changed, and which can be copied and pickled all the same."""

    def __post_init__(self) -> None:
        for name, value in self._values().items():
            if isinstance(value, Mapping):
                object.__setattr__(self, name, MappingProxyType(dict(value)))

    def __reduce__(self) -> tuple[Any, ...]:
        values = (dict(value) if isinstance(value, Mapping) else value for value in self._values().values())
        return type(self), tuple(values)

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Word(_Frozen):
    """A word as it was said.

    Attributes
    ----------
    text : str
    duration : float
        Seconds.
    codes : tuple of tuple of int
        One row a codebook, all of one length.
    features : mapping
        energy, spectral_centroid and pitch, integers 0 to 100; empty in versions 1 and 2.
    extra : mapping
        Keys of the file that this package does not know.
    """

    text: str
    duration: float
    codes: tuple[tuple[int, ...], ...]
    features: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_frames(self) -> int:
        return len(self.codes[0])


@dataclass(frozen=True)
class Speaker(_Frozen):
    """A voice: what is put before the text so that the model goes on speaking in it. Immutable.

    Attributes
    ----------
    version : int
        1 for OuteTTS 0.1, 2 for 0.2 and 0.3, 3 for 1.0.
    text : str
        What the speaker says.
    words : tuple of Word
    global_features : mapping
        Features of the whole clip (version 3), only used in training prompts.
    codec : mapping or None
        ``name`` and ``sha256`` of the codec file that made the codes, where known.
    extra : mapping
        Keys of the file that this package does not know.
    """

    version: int
    text: str
    words: tuple[Word, ...]
    global_features: Mapping[str, int] = field(default_factory=dict)
    codec: Mapping[str, str] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Speaker:
        """Read and check a profile; raises SpeakerError if it is damaged."""
        try:
            size = regular_file(path).st_size
            if size > FILE_LIMIT:
                raise SpeakerError(f"{size} bytes are too many for a speaker profile", path=path)
            data = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise SpeakerError(f"cannot be read: {error.strerror}", path=path) from None
        except SpeakerError:
            raise
        except (ValueError, RecursionError) as error:
            raise SpeakerError(f"not a JSON file: {error}", path=path) from None
        try:
            return cls.from_dict(data)
        except SpeakerError as error:
            raise SpeakerError(str(error), path=path, key=error.key) from None

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the profile as JSON that outetts reads too; an existing file only with ``force``.

        Raises SpeakerError, and leaves what was there, if it cannot be written.
        """
        path = Path(path)
        if path.exists() and not force:
            raise SpeakerError("exists already; use force to overwrite it", path=path)
        try:
            with complete_file(path) as file:
                file.write(f"{json.dumps(self.to_dict(), indent=2, ensure_ascii=False)}\n".encode())
        except UnicodeEncodeError as error:
            raise SpeakerError(
                f"cannot be written: the text is not valid Unicode ({error.reason})", path=path
            ) from None
        except OSError as error:
            raise SpeakerError(f"cannot be written: {error.strerror}", path=path) from None

    @classmethod
    def from_dict(cls, data: Any) -> Speaker:
        """Check a profile given as the JSON's dict, which is left as it is."""
        if not isinstance(data, Mapping):
            raise SpeakerError(f"a profile is a JSON object, got {type(data).__name__}")
        version = _version(data)
        text, words = _text(data, "text"), data.get("words")
        if not isinstance(words, (list, tuple)) or not words:
            raise SpeakerError("'words' is missing or empty, expected a list of the words said", key="words")
        known = {"text", "words", "interface_version", "version", "global_features", "codec"}
        extra = {key: value for key, value in data.items() if key not in known}
        if isinstance(data.get("version"), str):
            extra["version"] = data["version"]
        codec = data.get("codec")
        if codec is not None and not (
            isinstance(codec, Mapping) and all(isinstance(codec.get(key), str) for key in ("name", "sha256"))
        ):
            raise _wrong("codec", codec, "an object with the strings 'name' and 'sha256'")
        return cls(
            version,
            text,
            tuple(_word(word, version, f"word {index}") for index, word in enumerate(words, 1)),
            _features(data, "global_features"),
            codec,
            extra,
        )

    def to_dict(self) -> dict[str, Any]:
        """The profile as a new dict, in the JSON's form."""
        words = []
        for word in self.words:
            entry: dict[str, Any] = {"word": word.text, "duration": word.duration}
            entry |= {key: list(row) for key, row in zip(CODE_KEYS[self.version], word.codes, strict=True)}
            if self.version == 3:
                entry["features"] = dict(word.features)
            words.append(entry | dict(word.extra))
        data: dict[str, Any] = {"text": self.text, "words": words}
        if self.version == 3:
            data["global_features"] = dict(self.global_features)
        data["interface_version"] = self.version
        if self.codec is not None:
            data["codec"] = dict(self.codec)
        return data | dict(self.extra)

    @property
    def n_codebooks(self) -> int:
        return len(CODE_KEYS[self.version])

    @property
    def n_frames(self) -> int:
        return sum(word.n_frames for word in self.words)

    @property
    def codes(self) -> np.ndarray:
        """All words' codes, int32 [n_codebooks, n_frames]."""
        rows = [[code for word in self.words for code in word.codes[row]] for row in range(self.n_codebooks)]
        return np.array(rows, np.int32)

    def decode(self, codec: Codec) -> np.ndarray:
        """How the speaker sounds: float32 [n_samples] at ``codec.sample_rate``."""
        self.check_codec(codec)
        return codec.decode(self.codes)

    def check_codec(self, codec: Codec) -> str | None:
        """Refuse a codec that cannot have these codes; a warning if it is not the one that made them."""
        if codec.n_codebooks != self.n_codebooks:
            raise SpeakerError(
                f"the speaker has codes of {self.n_codebooks} codebook{'s' * (self.n_codebooks > 1)} "
                f"(made for {MODELS[self.version]}), but codec {codec.name!r} has {codec.n_codebooks}; "
                f"use the codec of that model"
            )
        largest = int(self.codes.max(initial=-1))
        if largest >= codec.codebook_size:
            raise SpeakerError(
                f"the speaker has code {largest}, but codec {codec.name!r} only has 0 to {codec.codebook_size - 1}"
            )
        if self.codec is None:
            return None
        name, digest = codec.name, fingerprint(codec.path)
        if digest == self.codec["sha256"]:
            return None
        return (
            f"the speaker's codes were made by codec {self.codec['name']!r} ({self.codec['sha256'][:12]}), "
            f"which is not this codec, {name!r} ({digest[:12]}); the voice may differ"
        )

    def check_version(self, version: int) -> None:
        """Refuse to speak with a model of another version, which would not understand the profile."""
        if self.version == version or (self.version, version) == (2, 1):  # a file without version counts as 2
            return
        raise SpeakerError(
            f"the speaker is made for {MODELS[self.version]}, but the model is {MODELS[version]}; "
            f"make a profile for it from the clip with `vocoder-plugin create-speaker`, or use such a model"
        )

    def replace(self, **changes: Any) -> Speaker:
        """A copy with other attributes."""
        return dataclasses.replace(self, **changes)


def as_speaker(speaker: Speaker | Mapping[str, Any]) -> Speaker:
    return speaker if isinstance(speaker, Speaker) else Speaker.from_dict(speaker)


def _version(data: Mapping[str, Any]) -> int:
    given = data.get("interface_version")
    if given is not None:
        if isinstance(given, bool) or given not in VERSIONS:
            raise _wrong("interface_version", given, "1, 2 or 3")
        return int(given)
    given = data.get("version")
    if given is not None:
        if str(given) not in LLAMA_CPP_VERSIONS:
            raise _wrong("version", given, f"one of {', '.join(LLAMA_CPP_VERSIONS)}")
        return LLAMA_CPP_VERSIONS[str(given)]
    words = data.get("words")
    first = words[0] if isinstance(words, (list, tuple)) and words else None
    return 3 if isinstance(first, Mapping) and "c1" in first else 2


def _word(data: Any, version: int, where: str) -> Word:
    if not isinstance(data, Mapping):
        raise SpeakerError(refusal(where, _short(data), "an object"), key="words")
    text, duration = _text(data, "word", f"{where}: "), data.get("duration")
    where = f"{where} ({text[:20]!r})"
    if not isinstance(duration, (int, float)) or isinstance(duration, bool) or not 0 <= duration < 100:
        raise _wrong("duration", duration, "seconds", f"{where}: ")
    keys = CODE_KEYS[version]
    rows = tuple(tuple(_codes(data.get(key), version, key, f"{where}: ")) for key in keys)
    if len({len(row) for row in rows}) > 1:
        lengths = " and ".join(f"{len(row)} in {key}" for key, row in zip(keys, rows, strict=True))
        raise SpeakerError(f"{where} has {lengths}: a frame needs a code of each", key=keys[0])
    known = {"word", "duration", "features", *keys}
    extra = {key: value for key, value in data.items() if key not in known}
    return Word(text, duration, rows, _features(data, "features", f"{where}: "), extra)


def _text(data: Mapping[str, Any], key: str, where: str = "") -> str:
    text = data.get(key)
    if not isinstance(text, str):
        raise _wrong(key, text, "a string", where)
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise SpeakerError(
            f"{where}{key!r} is {_short(text)}, which is not valid Unicode: it has half of a character", key=key
        )
    return text


def _codes(codes: Any, version: int, key: str, where: str) -> Iterator[int]:
    if not isinstance(codes, (list, tuple)):
        raise _wrong(key, codes, "a list of codes", where)
    for code in codes:
        if isinstance(code, bool) or not isinstance(code, (int, np.integer)) or not 0 <= code < CODE_LIMIT[version]:
            limit = CODE_LIMIT[version] - 1
            raise SpeakerError(f"{where}{key!r} has the code {_short(code)}, expected 0 to {limit}", key=key)
        yield int(code)


def _features(data: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, int]:
    found = data.get(key)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise _wrong(key, found, "an object", where)
    for name, value in found.items():
        if name in FEATURE_NAMES and (
            isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= FEATURE_LIMIT
        ):
            message = refusal(f"{where}{key!r}: {name}", _short(value), f"an integer 0 to {FEATURE_LIMIT}")
            raise SpeakerError(message, key=key)
    return found


def _wrong(key: str, value: Any, expected: str, where: str = "") -> SpeakerError:
    return SpeakerError(refusal(f"{where}{key!r}", _short(value), expected), key=key)


def _short(value: Any) -> str:
    text = repr(value)
    return "missing" if value is None else text if len(text) <= 40 else text[:37] + "..."
