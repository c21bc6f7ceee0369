"""The house as docs/architecture.md describes it: no circle, no arrow that runs up, no codec named outside its room."""

from __future__ import annotations

from pathlib import Path

import pytest
import rooms

HOUSE = Path(__file__).parents[1]


@pytest.mark.parametrize("rule", rooms.RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule):
    violations = rule(HOUSE)
    assert not violations, "\n".join([f"{rule.__doc__.splitlines()[0]} {len(violations)} found:", *violations])


def test_the_whole_house_is_walked():
    modules = rooms.python_modules(HOUSE)
    walked = {module.room for module in modules.values()}
    assert {"", "commands", "codecs", "converters", "patches", "errors"} <= walked
    arrows = [target for module in modules.values() for target, _ in rooms.imports(module, modules)]
    assert len(arrows) > 2 * len(modules)
    defined = {name for path in rooms.c_files(HOUSE) for name in c_functions(path)}
    assert len(defined) > 15


def c_functions(path: Path) -> set[str]:
    return rooms.definitions_and_bodies(rooms.without_comments(path.read_text(encoding="utf-8")))[0]


@pytest.fixture
def house(tmp_path):
    """Writes a made-up house: ``house({"net/ops.py": "import os"})``; paths without a folder lie in the package."""

    def build(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / (name if name.startswith(("converters/", "patches/")) else f"vocoder_plugin/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path

    return build


CLEAN = {
    "__init__.py": '"""Decodes DAC."""\nfrom .codec import Codec',
    "__main__.py": "from .commands.cli import main",
    "commands/cli.py": "from .. import codec\ndef main():\n    from vocoder_plugin.converters import checkpoint",
    "families/talk.py": 'from ..errors import Wrong\nclass Talk:\n    codec = "snac"  # Mimi would do',
    "codec.py": "import typing\nif typing.TYPE_CHECKING:\n    from .streams.exact import Stream\nclass Codec: ...",
    "streams/__init__.py": "from .exact import Stream",
    "streams/exact.py": "from ..net import ops\nfrom .format import Format\nclass Stream: ...\nisinstance(1, int)",
    "streams/format.py": "class Format: ...\nminimised = 'a minimisation'",
    "net/__init__.py": "",
    "net/ops.py": "from ..runtime import prototypes\nlib.ggml_add\nisinstance(x, Native)",
    "runtime/prototypes.py": 'P = """\nggml_tensor* ggml_add(ggml_context* c)\n"""',
    "codecs/mimi.py": "class Mimi: ...",
    "errors.py": "class Wrong(Exception): ...",
    "converters/snac.py": "from vocoder_plugin.codecs.mimi import Mimi\nfrom .. import errors\nfrom .parts import x",
    "converters/parts.py": "x = 1",
    "patches/build.py": "from vocoder_plugin.errors import Wrong",
    "kernels/tile.h": "void tile(int);\nstatic inline int two(void) { return 2; }",
    "kernels/tile.c": '#include "tile.h"\nvoid tile(int x) { two(); } // conv()',
    "kernels/conv.c": '#include "tile.h"\nvoid conv(void) { tile(1); }',
}


@pytest.mark.parametrize("rule", rooms.RULES, ids=lambda rule: rule.__name__)
def test_clean_house(house, rule):
    assert rule(house(CLEAN)) == []


@pytest.mark.parametrize(
    "files",
    [
        {"net/a.py": "from .b import x", "net/b.py": "def f():\n    from .a import y"},
        {"net/a.py": "from . import b", "net/b.py": "import typing\nif typing.TYPE_CHECKING:\n    from .a import y"},
        {"net/a.py": "import vocoder_plugin.net.b", "net/b.py": "import_module('vocoder_plugin.net.a')"},
    ],
    ids=["in a function", "for types", "by name"],
)  # fmt: skip
def test_circle(house, files):
    assert rooms.import_circles(house({**CLEAN, **files})) == ["a circle: vocoder_plugin.net.a, vocoder_plugin.net.b"]


def test_circle_by_way_of_a_package(house):
    tree = house({"families/a/__init__.py": "from .x import x", "families/a/x.py": "from ..b.y import y",
                  "families/b/__init__.py": "from ..a import x", "families/b/y.py": "y = 1"})  # fmt: skip
    assert rooms.import_circles(tree) == [
        "a circle: vocoder_plugin.families.a, vocoder_plugin.families.a.x, vocoder_plugin.families.b"
    ]


def test_package_that_a_module_takes_itself_from(house):
    tree = house({"llm/__init__.py": "from .speech import a", "llm/speech.py": "from . import b"})
    assert rooms.import_circles(tree) == ["a circle: vocoder_plugin.llm, vocoder_plugin.llm.speech"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("net/ops.py", "\n\nfrom ..streams.exact import Stream", "3: net imports vocoder_plugin.streams.exact"),
        ("net/ops.py", "from .. import codec", "1: net imports vocoder_plugin.codec"),
        ("net/ops.py", "from vocoder_plugin import Codec", "1: net imports vocoder_plugin"),
        ("codecs/mimi.py", "from ..converters import snac", "1: codecs imports vocoder_plugin.converters.snac"),
        ("converters/snac.py", "from ..net import ops", "1: converters imports vocoder_plugin.net.ops"),
        ("patches/build.py", "from ..codec import Codec", "1: patches imports vocoder_plugin.codec"),
        ("errors.py", "from . import files", "1: errors imports vocoder_plugin.files"),
        ("shed.py", "", " in no room"),
    ],
)
def test_arrow_up(house, name, text, said):
    found = rooms.arrows_up(house({**CLEAN, "files.py": "", name: text}))
    assert [violation.split(f"{name}:")[1] for violation in found] == [said]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("llm/tokens.py", "class MimiTokens: ...", "1: 'MimiTokens'"),
        ("llm/tokens.py", "\nis_mimi = 1", "2: 'is_mimi'"),
        ("llm/tokens.py", "x = f'{1} of DAC\\'s'", '1: "of DAC\'s"'),
        ("llm/tokens.py", "f(wav_tokenizer=1)", "1: 'wav_tokenizer'"),
        ("families/talk.py", "if codec == 'snac': x", "1: 'snac'"),
        ("streams/format.py", "codec = 'snac'", "1: 'snac'"),
        ("net/dac_ops.py", "", " its name"),
        ("kernels/conv.c", "int mimi_size; // DAC", "1: 'int mimi_size;'"),
    ],
)
def test_codec_named(house, name, text, said):
    found = rooms.codecs_named(house({**CLEAN, name: text}))
    assert [violation.split(f"{name}:")[1] for violation in found] == [said]


def test_lowering_asked(house):
    tree = house({**CLEAN, "streams/exact.py": "x = 1 if isinstance(self._ops, (A, net.ClipNative)) else 2"})
    said = "vocoder_plugin/streams/exact.py:1: isinstance(self._ops, (A, net.ClipNative))"
    assert rooms.lowerings_asked(tree) == [said]


def test_function_that_nothing_calls(house):
    tree = house({**CLEAN, "net/ops.py": ""})
    assert rooms.uncalled_functions(tree) == ["ggml_add is declared and never called"]


def test_circle_in_c(house):
    tree = house({**CLEAN, "kernels/tile.h": "void tile(int);\nstatic inline void both(void) {\n    tile(1);\n}"})
    assert rooms.c_circles(tree) == ["a circle: tile.c, tile.h"]
