"""The rooms of the house and the rules between them, checked on the source without importing it.

Each rule is a function from the repository's root to a list of sentences, one for each violation.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = "vocoder_plugin"
ROOMS = (  # top to bottom: a room imports itself and rooms below it
    ("commands",),
    ("server",),
    ("families",),
    ("llm",),
    ("codec",),
    ("codecs",),
    ("streams",),
    ("net",),
    ("kernels",),
    ("runtime",),
    ("audio",),
    ("gguf_file", "hub", "files"),
    ("errors",),
)
BESIDE = {  # folders of the repository that are installed in the package: what they import besides themselves
    "converters": {"", "codecs", "gguf_file", "files", "errors"},
    "patches": {"files", "errors"},
}
CODECS = {"dac", "mimi", "snac", "neucodec", "wavtokenizer"}


@dataclass(frozen=True)
class Module:
    """A Python file.

    Attributes
    ----------
    name : str
        As it is imported.
    path : str
        In the repository.
    package : str
        What relative imports start from.
    """

    name: str
    path: str
    package: str
    tree: ast.Module

    @cached_property
    def room(self) -> str:
        """The first part of the name after the package's; empty for the package and ``__main__``."""
        room = self.name.removeprefix(ROOT).lstrip(".").split(".")[0]
        return "" if room == "__main__" else room


def python_modules(root: Path) -> dict[str, Module]:
    """Modules of the package and of the folders that are installed in it, by name."""
    modules = {}
    for folder, package in {ROOT: ROOT, **{name: f"{ROOT}.{name}" for name in BESIDE}}.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = [package, *path.relative_to(root / folder).with_suffix("").parts]
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
            parent = name if is_package else name.rpartition(".")[0]
            modules[name] = Module(name, path.relative_to(root).as_posix(), parent, tree)
    return modules


def imports(module: Module, modules: dict[str, Module]) -> Iterator[tuple[str, int]]:
    """Modules of ours that it imports anywhere, functions and ``TYPE_CHECKING`` included, with the line."""
    for node in ast.walk(module.tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = module.package.split(".")
            start = parents[: len(parents) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and re.search(r"\b(import_module|__import__)$", ast.unparse(node.func)):
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        for name in names:
            target = name if name in modules else name.rpartition(".")[0]  # a module, or a name in one
            if target in modules:
                yield target, node.lineno


def executed(target: str, by: str) -> set[str]:
    """The module and the packages around it that importing it runs; those around the importer have begun before."""
    parts = target.split(".")
    names = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return {name for name in names if name == target or not f"{by}.".startswith(f"{name}.")} - {ROOT} | {target}


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """Sets of names that reach each other, one sentence each."""
    reached: dict[str, set[str]] = {}
    for name in arrows:
        reached[name], waiting = set(), [name]
        while waiting:
            new = arrows.get(waiting.pop(), set()) - reached[name]
            reached[name] |= new
            waiting += new
    groups = {tuple(sorted(m for m in reached[n] if n in reached.get(m, ()))) for n in arrows if n in reached[n]}
    return [f"a circle: {', '.join(group)}" for group in sorted(groups)]


def import_circles(root: Path) -> list[str]:
    """Modules that import each other, directly or by way of others."""
    modules = python_modules(root)
    arrows: dict[str, set[str]] = {name: set() for name in modules}
    for module in modules.values():
        for target, _ in imports(module, modules):
            arrows[module.name] |= executed(target, module.name) & set(modules)
    return circles(arrows)


def arrows_up(root: Path) -> list[str]:
    """Imports of a room above, of a room that is not theirs to use, and modules in no room."""
    floors = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
    modules = python_modules(root)
    found = []
    for module in modules.values():
        room = module.room
        if room and room not in floors and room not in BESIDE:
            found.append(f"{module.path}: in no room")
        for target, line in sorted(imports(module, modules), key=lambda found: found[1]):
            other = modules[target].room
            if room in ("", other):
                continue
            if room in BESIDE:
                right = other in BESIDE[room]
            elif other in BESIDE:
                right = room == "commands"
            else:
                right = bool(other) and floors.get(room, -1) <= floors.get(other, -1)
            if not right:
                found.append(f"{module.path}:{line}: {room} imports {target}")
    return found


def codecs_named(root: Path) -> list[str]:
    """Identifiers and strings that name a codec, outside ``codecs`` and ``converters``.

    Docstrings and comments may. A family may declare the codec that it needs: a string that is the name and no
    more, given to an attribute or a keyword.
    """
    found = []
    for module in python_modules(root).values():
        if module.room in ("codecs", "converters"):
            continue
        if names_codec(module.name):
            found.append(f"{module.path}: its name")
        for text, line, declares in sorted(code_texts(module.tree), key=lambda found: found[1]):
            if names_codec(text) and not (declares and text in CODECS and module.room == "families"):
                found.append(f"{module.path}:{line}: {text.strip()[:80]!r}")
    for path in c_files(root):
        for line, text in enumerate(without_comments(path.read_text(encoding="utf-8")).splitlines(), 1):
            if names_codec(text):
                found.append(f"{path.relative_to(root).as_posix()}:{line}: {text.strip()[:80]!r}")
    return found


def names_codec(text: str) -> bool:
    """Whether a codec is among the words of a text or of an identifier: ``is_mimi``, ``MimiCodec``, ``DAC's``."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)
    lower = text.lower()
    return any(word.lower() in CODECS for word in words) or bool(re.search(r"wav_?tokenizer|neu_?codec", lower))


def code_texts(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """Identifiers and strings, docstrings left out: the text, its line, whether an attribute or keyword is given it."""
    docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    givers = (ast.Assign, ast.AnnAssign, ast.keyword)
    values = [node.value for node in ast.walk(tree) if isinstance(node, givers)]
    values += [entry for value in values if isinstance(value, ast.Dict) for entry in value.values]
    given = {id(value) for value in values}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in docstrings:
                yield node.value, line, id(node) in given
            continue
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            text = getattr(node, field, None)
            if isinstance(text, str):
                yield text, line, False


def lowerings_asked(root: Path) -> list[str]:
    """``isinstance`` of a lowering outside ``net``, which alone may know that there are two."""
    found = []
    for module in python_modules(root).values():
        for node in ast.walk(module.tree):
            if module.room != "net" and isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                asked = ast.unparse(node)
                if re.search(r"Native|Portable|[Ll]owering", asked):
                    found.append(f"{module.path}:{node.lineno}: {asked}")
    return found


def uncalled_functions(root: Path) -> list[str]:
    """Functions of ggml that ``prototypes`` declares, and so demands of every library, though nothing calls them."""
    declared: set[str] = set()
    mentioned: set[str] = set()
    for module in python_modules(root).values():
        if module.name == f"{ROOT}.runtime.prototypes":
            tables = [text for text, _, given in code_texts(module.tree) if given]
            declared = set(re.findall(r"\b(\w+)\(", "\n".join(tables)))
        else:
            mentioned |= {text for text, _, _ in code_texts(module.tree)}
    return [f"{name} is declared and never called" for name in sorted(declared - mentioned)]


def c_files(root: Path) -> list[Path]:
    folder = root / ROOT / "kernels"
    return sorted([*folder.glob("*.c"), *folder.glob("*.h")])


def without_comments(text: str) -> str:
    """C with blanks for comments, line by line as it was."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.DOTALL)


def c_circles(root: Path) -> list[str]:
    """C files that need each other: by ``#include``, or by calling what another defines for all."""
    texts = {path.name: without_comments(path.read_text(encoding="utf-8")) for path in c_files(root)}
    files = {name: definitions_and_bodies(text) for name, text in texts.items()}
    home = {function: name for name, (defined, _) in files.items() for function in defined if name.endswith(".c")}
    arrows = {}
    for name, (_, bodies) in files.items():
        included = set(re.findall(r'^\s*#\s*include\s*"([^"]+)"', texts[name], re.MULTILINE))
        called = {home[word] for word in re.findall(r"\b\w+(?=\s*\()", bodies) if word in home}
        arrows[name] = (included | called) & set(files) - {name}
    return circles(arrows)


def definitions_and_bodies(text: str) -> tuple[set[str], str]:
    """Functions that C code defines for other files, and all that stands in braces or in a macro."""
    macros = re.findall(r"^[ \t]*#[ \t]*define(?:[^\n]*\\\n)*[^\n]*", text, re.MULTILINE)
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", "", text, flags=re.MULTILINE)
    defined, bodies, head, depth = set(), "", "", 0
    for part in re.split(r"([{};])", text):
        if depth or part == "}":
            bodies += part
        if part == "{" and not depth:
            name = re.search(r"(\w+)\s*\([^()]*\)\s*$", head)
            if name and not re.search(r"\bstatic\b|\bVP_INLINE\b", head):
                defined.add(name[1])
        depth += {"{": 1, "}": -1}.get(part, 0)
        head = "" if part in ("{", "}", ";") else part
    return defined, "\n".join([*macros, bodies])


RULES = (import_circles, arrows_up, codecs_named, lowerings_asked, uncalled_functions, c_circles)
