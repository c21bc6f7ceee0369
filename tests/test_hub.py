"""Hub files, from a server on this machine that answers as the hub does."""

from __future__ import annotations

import time

import pytest
from hub_server import COMMIT, Hub

from vocoder_plugin import KindError
from vocoder_plugin.hub import HubError, Reference, choose, fetch, local_or_fetch, looks_like_reference

REPO = "OuteAI/OuteTTS-1.0-0.6B-GGUF"
NAMES = [f"OuteTTS-1.0-0.6B-{tag}.gguf" for tag in ("Q4_K_M", "Q8_0", "FP16")]


@pytest.fixture
def hub():
    files = {
        REPO: {"README.md": b"hello", **{name: name.encode() * 1000 for name in NAMES}},
        "me/voices": {"en/anna.json": b'{"text": ""}'},
        "me/one": {"only.gguf": b"only"},
        "me/two": {"a.gguf": b"a", "b.gguf": b"b"},
        "me/none": {"model.safetensors": b"x"},
        "me/split": {"big-Q8_0-00001-of-00002.gguf": b"1", "big-Q8_0-00002-of-00002.gguf": b"2"},
    }
    with Hub(files) as server:
        yield server


@pytest.fixture
def get(hub, tmp_path):
    def call(reference: str, **options):
        return fetch(reference, cache_dir=tmp_path, endpoint=hub.endpoint, **options)

    return call


@pytest.mark.parametrize(("reference", "name"), [
    (REPO, "OuteTTS-1.0-0.6B-Q8_0.gguf"),
    (f"{REPO}:Q4_K_M", "OuteTTS-1.0-0.6B-Q4_K_M.gguf"),
    (f"{REPO}:q4_k_m", "OuteTTS-1.0-0.6B-Q4_K_M.gguf"),
    (f"{REPO}@main:FP16", "OuteTTS-1.0-0.6B-FP16.gguf"),
    (f"{REPO}@{COMMIT}/OuteTTS-1.0-0.6B-FP16.gguf", "OuteTTS-1.0-0.6B-FP16.gguf"),
    ("me/voices/en/anna.json", "anna.json"),
    ("me/one", "only.gguf"),
])  # fmt: skip
def test_fetch(reference, name, get, hub):
    path = get(reference)
    assert path.name == name
    repo = Reference.parse(reference).repo
    assert path.read_bytes() == next(c for n, c in hub.files[repo].items() if n.endswith(name))


@pytest.mark.parametrize("reference", [None, 3, b"me/one"])
def test_what_is_no_text(reference, get):
    with pytest.raises(KindError, match=r"the reference is of type .*, expected str"):
        get(reference)


def test_the_cache_serves_and_offline_needs_no_server(get, hub):
    path = get(f"{REPO}:Q8_0")
    downloads = [path for method, path in hub.requests if method == "GET" and "resolve" in path]
    assert len(downloads) == 1
    assert get(f"{REPO}:Q8_0") == path
    assert [path for method, path in hub.requests if method == "GET" and "resolve" in path] == downloads
    hub.requests.clear()
    assert get(f"{REPO}:Q8_0", offline=True) == get(REPO, offline=True) == path
    assert get(f"{REPO}/{NAMES[1]}", offline=True) == path
    assert hub.requests == []


@pytest.mark.parametrize(("reference", "said"), [
    (f"{REPO}:Q5_K_M", r"has no \.gguf file 'Q5_K_M'; it has .*Q4_K_M\.gguf, .*Q8_0\.gguf"),
    (f"{REPO}/none.gguf", "the repo has no such file"),
    (f"{REPO}@v9/{NAMES[0]}", "the repo has no such revision"),
    ("nobody/nothing", "there is no such repo on the hub, or it is private"),
    ("nobody/nothing/x.gguf", "there is no such repo on the hub, or it is private"),
    ("me/two", r"has several such files: a\.gguf, b\.gguf; name one as me/two/FILE"),
    ("me/none", r"me/none has no \.gguf file"),
    ("me/split", r"only split \.gguf files"),
    ("one-word", r"'one-word' is no hub file; write owner/repo, owner/repo:Q8_0"),
    ("a/../b/c.gguf", "is no hub file"),
])  # fmt: skip
def test_refused(reference, said, get):
    with pytest.raises(HubError, match=said) as caught:
        get(reference)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reference", [f"{REPO}:Q8_0", f"{REPO}/{NAMES[1]}"])
def test_offline_without_a_copy(reference, get, hub):
    with pytest.raises(HubError, match="not in the cache"):
        get(reference, offline=True)
    assert hub.requests == []


def test_gated(get, hub):
    hub.gated.add(REPO)
    with pytest.raises(HubError, match="the repo is gated: accept its terms"):
        get(f"{REPO}/{NAMES[0]}")


def test_a_broken_hub(get, hub):
    hub.broken = True
    with pytest.raises(HubError, match=r"the hub answered with status 500"):
        get("me/one")


def test_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # huggingface_hub waits between its tries
    with Hub({}) as server:
        gone = server.endpoint
    for reference in ("me/one", "me/one/only.gguf"):
        with pytest.raises(HubError, match="the hub cannot be reached"):
            fetch(reference, cache_dir=tmp_path, endpoint=gone)


def test_choice():
    wanted = Reference("a/b", tag="Q8_0")
    names = ["mmproj-Q8_0.gguf", "x-Q8_0.gguf", "x-IQ8_0.gguf", "x-Q8_0_L.gguf"]
    assert choose(names, wanted, ".gguf") == "x-Q8_0.gguf"
    assert choose(["Q4_0/x.gguf", "x.Q8_0.gguf"], wanted, ".gguf") == "x.Q8_0.gguf"


def test_what_looks_like_a_reference():
    assert looks_like_reference("me/voices/en/anna.json")
    assert looks_like_reference("OuteAI/OuteTTS-1.0-0.6B-GGUF:Q8_0")
    for path in ("model.gguf", "folder/model.gguf", "./a/b/c.gguf", "/a/b/c.gguf", "~/a/b.gguf", "../a/b/c.gguf"):
        assert not looks_like_reference(path)


def test_paths_come_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "voices").mkdir(parents=True)
    (tmp_path / "me" / "voices" / "anna.gguf").touch()
    for name in ("me/voices/anna.gguf", "me/voices/ben.gguf", "carl.gguf"):  # the last two: nowhere, and no hub file
        assert str(local_or_fetch(name, offline=True)) == name
    with pytest.raises(
        HubError, match=r"there is no such file here; on the hub, you/voices/ben\.gguf: .*not in the cache"
    ):
        local_or_fetch("you/voices/ben.gguf", offline=True)
