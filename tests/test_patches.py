"""The patch applier on hand-made trees, the series as it is, and the functions that it adds to llama_cpp."""

from __future__ import annotations

import ctypes
import importlib.util
import inspect
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from vocoder_plugin.errors import BuildError
from vocoder_plugin.patches import applier

PATCHES = Path(applier.__file__).parent
SONG = [f"line {n}" for n in range(1, 21)]
EDIT = """\
--- a/song.txt
+++ b/song.txt
@@ -3,3 +3,4 @@ after the title
 line 3
-line 4
+LINE 4
+line 4 and a half
 line 5
@@ -18,3 +19,3 @@
 line 18
-line 19
+LINE 19
 line 20
"""
EDITED = [*SONG[:3], "LINE 4", "line 4 and a half", *SONG[4:18], "LINE 19", "line 20"]
CREATE = """\
--- /dev/null
+++ b/new/verse.txt
@@ -0,0 +1,2 @@
+first
+second
"""


@pytest.fixture
def tree(tmp_path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    write(folder / "song.txt", SONG)
    return folder


def write(path: Path, lines: list[str], end: str = "\n") -> None:
    path.write_bytes("".join(line + end for line in lines).encode())


def patch_file(folder: Path, text: str, name: str = "0001-a.patch") -> Path:
    path = folder.parent / name
    path.write_bytes(text.encode())
    return path


def song(tree: Path) -> list[str]:
    return (tree / "song.txt").read_text().splitlines()


def test_a_patch_is_applied_once(tree):
    patch = patch_file(tree, EDIT)
    assert applier.apply([patch], tree) == [True]
    assert song(tree) == EDITED
    assert applier.apply([patch], tree) == [False]
    assert song(tree) == EDITED


def test_hunks_are_found_where_they_moved_to(tree):
    write(tree / "song.txt", ["a title", "", *SONG[:8], "a refrain", *SONG[8:]])
    applier.apply([patch_file(tree, EDIT)], tree)
    assert song(tree) == ["a title", "", *EDITED[:9], "a refrain", *EDITED[9:]]


def test_the_nearest_of_several_places_is_taken(tree):
    verse = ["again", "old", "again"]
    write(tree / "song.txt", [*verse, *SONG, *verse, *SONG, *verse])
    hunk = "@@ -25,3 +25,3 @@\n again\n-old\n+new\n again\n"
    applier.apply([patch_file(tree, f"--- a/song.txt\n+++ b/song.txt\n{hunk}")], tree)
    assert song(tree) == [*verse, *SONG, "again", "new", "again", *SONG, *verse]


def test_the_same_change_elsewhere_is_not_mistaken_for_this_one(tree):
    write(tree / "song.txt", [*SONG, "line 3", "LINE 4", "line 4 and a half", "line 5"])
    applier.apply([patch_file(tree, EDIT)], tree)
    assert song(tree) == [*EDITED, "line 3", "LINE 4", "line 4 and a half", "line 5"]


def test_a_half_applied_patch_is_completed(tree):
    write(tree / "song.txt", EDITED)
    lines = song(tree)
    lines[lines.index("LINE 19")] = "line 19"
    write(tree / "song.txt", lines)
    assert applier.apply([patch_file(tree, EDIT)], tree) == [True]
    assert song(tree) == EDITED


@pytest.mark.parametrize("sign", "+-")
def test_the_end_of_a_file_grows_and_shrinks_once(tree, sign):
    counts = "-19,2 +19,3" if sign == "+" else "-18,3 +18,2"
    body = " line 19\n line 20\n+line 21\n" if sign == "+" else " line 18\n line 19\n-line 20\n"
    patch = patch_file(tree, f"--- a/song.txt\n+++ b/song.txt\n@@ {counts} @@\n{body}")
    assert [applier.apply([patch], tree), applier.apply([patch], tree)] == [[True], [False]]
    assert song(tree) == ([*SONG, "line 21"] if sign == "+" else SONG[:-1])


def test_line_ends_stay_as_they_are(tree):
    write(tree / "song.txt", SONG, end="\r\n")
    patch = patch_file(tree, EDIT.replace("\n", "\r\n"))
    applier.apply([patch], tree)
    assert (tree / "song.txt").read_bytes() == "".join(line + "\r\n" for line in EDITED).encode()
    assert applier.apply([patch], tree) == [False]


def test_lines_after_an_unended_last_line(tree):
    (tree / "song.txt").write_bytes("\n".join(SONG).encode())
    patch = patch_file(tree, "--- a/song.txt\n+++ b/song.txt\n@@ -19,2 +19,3 @@\n line 19\n line 20\n+line 21\n")
    applier.apply([patch], tree)
    assert (tree / "song.txt").read_bytes().endswith(b"line 19\nline 20\nline 21\n")


def test_bytes_that_are_no_text_survive(tree):
    (tree / "song.txt").write_bytes(b"\xff\xfe\x0c\n" + (tree / "song.txt").read_bytes())
    applier.apply([patch_file(tree, EDIT)], tree)
    assert (tree / "song.txt").read_bytes().startswith(b"\xff\xfe\x0c\nline 1\n")


def test_a_file_is_created_once(tree):
    patch = patch_file(tree, CREATE)
    assert [applier.apply([patch], tree), applier.apply([patch], tree)] == [[True], [False]]
    assert (tree / "new/verse.txt").read_bytes() == b"first\nsecond\n"


def test_a_later_patch_sees_what_an_earlier_one_made(tree):
    edit = "--- a/new/verse.txt\n+++ b/new/verse.txt\n@@ -1,2 +1,2 @@\n first\n-second\n+third\n"
    assert applier.apply([patch_file(tree, CREATE), patch_file(tree, edit, "0002-b.patch")], tree) == [True, True]
    assert (tree / "new/verse.txt").read_text() == "first\nthird\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (EDIT.replace("-line 19", "-line nineteen"), r"0002-b.patch does not fit: song.txt, hunk 2 \(@@ -18,3"),
        (EDIT.replace("song.txt", "poem.txt"), "0002-b.patch does not fit: there is no poem.txt"),
        (CREATE.replace("new/verse", "song"), "song.txt exists already, with other content"),
        (CREATE.replace("b/new", "b/../new"), "no path inside the tree"),
        (CREATE.replace("b/new", "/new"), "no path inside the tree"),
        (CREATE.replace("b/new/verse.txt", "b/link/verse.txt"), "link/verse.txt leads out of"),
        (CREATE.replace("b/new/verse.txt", "C:\\verse.txt"), "no path inside the tree"),
        (EDIT.replace("+++ b/song.txt", "+++ /dev/null"), "deletes a file"),
        (EDIT.replace("+++ b/song.txt\n", ""), r"line 1: a \+\+\+ line is missing"),
        (EDIT.replace("-3,3 +3,4", "-3,9 +3,9"), r"@@ -3,9 \+3,9 @@ after the title: ends early"),
        (EDIT.replace("-3,3 +3,4", "-3,3 +3,2"), "the counts do not fit"),
        (EDIT.replace("@@ -3,3 +3,4 @@", "@@ three @@"), "is no hunk header"),
        ("--- a/song.txt\n+++ b/song.txt\n@@ -3,0 +4,1 @@\n+lost\n", "has no lines of context"),
        (EDIT + "\\ No newline at end of file\n", "without a newline at the end"),
        ("--- a/song.txt\n+++ b/song.txt\n", "no hunks for song.txt"),
        ("a letter\n", "not a unified diff"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_nothing_is_touched(tree, text, message):
    (tree / "link").symlink_to(tree.parent)
    first = patch_file(tree, "--- a/song.txt\n+++ b/song.txt\n@@ -9,2 +9,2 @@\n line 9\n-line 10\n+LINE 10\n")
    before = {path: path.read_bytes() for path in tree.iterdir() if path.is_file()}
    with pytest.raises(BuildError, match=message):
        applier.apply([first, patch_file(tree, text, "0002-b.patch")], tree)
    assert {path: path.read_bytes() for path in tree.iterdir() if path.is_file()} == before
    assert not (tree / "new").exists()


def test_the_series_is_complete_and_documented():
    series = [path.name for path in applier.read_series(PATCHES)]
    assert series == sorted(path.name for path in PATCHES.glob("*.patch"))
    table = (PATCHES / "README.md").read_text(encoding="utf-8")
    assert [name for name in series if f"`{name}`" not in table] == []


def test_the_series_applies_to_the_lines_it_expects_and_only_once(tmp_path):
    series = applier.read_series(PATCHES)
    for file in (file for patch in series for file in applier.parse(patch) if not file.creates):
        lines: list[str] = []
        for hunk in file.hunks:
            lines += [f"line {n}" for n in range(len(lines) + 1, hunk.start)] + list(hunk.old)
        (tmp_path / file.path).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / file.path, lines)
    assert applier.apply(series, tmp_path) == [True] * len(series)
    assert applier.apply(series, tmp_path) == [False] * len(series)


def test_a_missing_symbol_is_named(tmp_path):
    (patch,) = (path for path in applier.read_series(PATCHES) if "missing-symbol" in path.name)
    (file,) = applier.parse(patch)
    source = ["def for_library(lib):", "    def ctypes_function(", "        name, argtypes, restype, enabled=True"]
    (tmp_path / "llama_cpp").mkdir()
    write(tmp_path / file.path, [*source, *file.hunks[0].old, "                return func"])
    applier.apply([patch], tmp_path)
    scope: dict = {"F": None}
    code = (tmp_path / file.path).read_text() + "        return decorator\n    return ctypes_function\n"
    exec("from __future__ import annotations\n" + code, scope)
    declare = scope["for_library"](ctypes.CDLL(None))
    assert declare("abs", [ctypes.c_int], ctypes.c_int)(None)(-3) == 3
    with pytest.raises(RuntimeError, match="has no function llama_lost, which these bindings declare"):
        declare("llama_lost", [], None)(None)


OLDER_NAMES = {  # functions of llama_cpp 0.3.9 and 0.3.16 that 0.3.36 lacks
    "llama_clear_adapter_lora", "llama_get_kv_cache_token_count", "llama_get_kv_cache_used_cells", "llama_get_kv_self",
    "llama_kv_cache_can_shift", "llama_kv_cache_clear", "llama_kv_cache_defrag", "llama_kv_cache_seq_add",
    "llama_kv_cache_seq_cp", "llama_kv_cache_seq_div", "llama_kv_cache_seq_keep", "llama_kv_cache_seq_rm",
    "llama_kv_cache_update", "llama_kv_cache_view_free", "llama_kv_cache_view_init", "llama_kv_cache_view_update",
    "llama_kv_self_can_shift", "llama_kv_self_clear", "llama_kv_self_defrag", "llama_kv_self_n_tokens",
    "llama_kv_self_seq_add", "llama_kv_self_seq_cp", "llama_kv_self_seq_div", "llama_kv_self_seq_keep",
    "llama_kv_self_seq_pos_max", "llama_kv_self_seq_pos_min", "llama_kv_self_seq_rm", "llama_kv_self_update",
    "llama_kv_self_used_cells", "llama_rm_adapter_lora", "llama_sampler_init_softmax",
}  # fmt: skip


class StandIn(SimpleNamespace):
    """Records the calls of libllama's present API; two sequences hold 5 and 3 tokens."""

    def __init__(self) -> None:
        super().__init__(calls=[])

    def __getattr__(self, name: str):
        if not name.startswith("llama_"):
            raise AttributeError(name)
        answers = {"llama_get_memory": "memory", "llama_n_seq_max": 4}
        bounds = {"llama_memory_seq_pos_min": {0: 2, 1: 0}, "llama_memory_seq_pos_max": {0: 6, 1: 2}}

        def call(*args):
            self.calls.append((name, *args))
            return bounds[name].get(args[1], -1) if name in bounds else answers.get(name, f"{name} returned")

        return call


def load_older_names(tmp_path: Path, api: object | None) -> ModuleType:
    """The module that the patch creates, beside a stand-in for llama_cpp.llama_cpp or (None) the real one."""
    (patch,) = (path for path in applier.read_series(PATCHES) if "names-of-older" in path.name)
    created, appended = applier.parse(patch)
    (tmp_path / "llama_cpp").mkdir()
    write(tmp_path / appended.path, [*SONG, *appended.hunks[0].old])
    applier.apply([patch], tmp_path)
    spec = importlib.util.spec_from_file_location("llama_cpp._older_names", tmp_path / created.path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if api is not None:
        module.api = api
    return module


@pytest.fixture
def older(tmp_path) -> ModuleType:
    return load_older_names(tmp_path, StandIn())


def test_every_older_name_is_there_and_none_hides_a_present_one(older):
    from llama_cpp import llama_cpp

    present = {name for name, value in vars(llama_cpp).items() if getattr(value, "__module__", None) != older.__name__}
    assert set(older.__all__) == OLDER_NAMES
    assert present & OLDER_NAMES == set()


def test_none_is_an_alias_of_another_function(older):
    assert all(getattr(older, name).__name__ == name for name in older.__all__)
    documented = [inspect.getdoc(getattr(older, name)) for name in older.__all__]
    assert all(documented)


@pytest.mark.parametrize(
    ("name", "args", "calls", "result"),
    [
        ("llama_kv_self_clear", (), [("llama_memory_clear", "memory", True)], None),
        ("llama_clear_adapter_lora", (), [("llama_set_adapters_lora", "ctx", None, 0, None)], None),
        ("llama_kv_self_update", (), [], None),
        ("llama_get_kv_self", (), [], "memory"),
        ("llama_kv_self_n_tokens", (), None, 8),
        ("llama_get_kv_cache_token_count", (), None, 8),
    ],
)
def test_older_functions_over_the_present_api(older, name, args, calls, result):
    with pytest.warns(DeprecationWarning, match=f"{name} is gone from libllama"):
        assert getattr(older, name)("ctx", *args) == result
    if calls is not None:
        assert [call for call in older.api.calls if call[0] != "llama_get_memory"] == calls


@pytest.mark.parametrize("name", ["llama_kv_cache_view_init", "llama_rm_adapter_lora", "llama_sampler_init_softmax"])
def test_what_cannot_be_had_says_what_to_do(older, name):
    with pytest.raises(NotImplementedError, match=f"{name} is gone from libllama .*; (use|remove|libllama)"):
        getattr(older, name)("ctx", "adapter")


def test_cells_that_sequences_may_share_are_not_guessed(older):
    with pytest.warns(match="is gone"), pytest.raises(NotImplementedError, match="2 sequences hold"):
        older.llama_kv_self_used_cells("ctx")


def test_older_functions_on_a_real_context(tmp_path, llm_file):
    import llama_cpp

    older = load_older_names(tmp_path, None)
    llm = llama_cpp.Llama(str(llm_file), n_ctx=64, verbose=False)
    ctx = llm._ctx.ctx
    llm.eval([1, 2, 3, 4, 5, 6, 7])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert older.llama_kv_self_n_tokens(ctx) == older.llama_kv_self_used_cells(ctx) == 7
        assert older.llama_kv_self_can_shift(ctx) is True
        assert older.llama_kv_self_seq_rm(ctx, 0, 5, -1) is True
        older.llama_kv_self_seq_add(ctx, 0, 2, -1, 10)
        assert [older.llama_kv_self_seq_pos_min(ctx, 0), older.llama_kv_self_seq_pos_max(ctx, 0)] == [0, 14]
        older.llama_kv_self_update(ctx)
        older.llama_clear_adapter_lora(ctx)
        assert older.llama_get_kv_self(ctx) == llama_cpp.llama_get_memory(ctx)
        older.llama_kv_cache_clear(ctx)
        assert older.llama_kv_self_n_tokens(ctx) == 0
    llm.close()
