"""The catalog: which definitions are live, from the layers of `tasks.d` folders.

Owns the order of the layers, masks, and what happens to a bad file: it never takes a good definition
away. Reads files, so it is called in a thread, about once a second; a scan in which nothing changed
costs a `stat` a file. Knows nothing of jobs: who submitted with a version keeps that version.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from dcoord.blobs import BlobStore
from dcoord.bundles import BundleReader
from districomp.bundle import BundleError, Signature, is_settled, signature_of
from districomp.config import Layer
from districomp.documents import DefinitionDocument
from districomp.taskdef import Definition
from districomp.taskfile import Draft
from districomp.yamlfile import Problem, YamlError
from districomp.yamltree import FILE_BYTES_MAX

FILES_MAX: Final = 10_000
"""Definitions of one layer; what is beyond, by name, is reported and left out."""
_SUFFIX: Final = ".yaml"
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Scan(msgspec.Struct, frozen=True):
    """The catalog as one scan found it.

    `definitions`: what is live, by name. `documents`: the same for people, with what is wrong with files.
    `news`: what changed since the scan before, a line each, for the log. `generation` grows with each change.
    """

    definitions: dict[str, Definition] = {}
    documents: list[DefinitionDocument] = []
    news: list[str] = []
    generation: int = 0


class _Found(msgspec.Struct, frozen=True):
    """A file as it was last read: the definition in it, or its problems."""

    path: Path
    signature: Signature
    settled: bool
    bundle: str
    bundle_state: str
    definition: Definition | None
    problems: list[Problem]


class _Live(msgspec.Struct, frozen=True):
    """A live definition and the file that it came from."""

    definition: Definition
    origin: Path


class Catalog:
    """The definitions of several layers, each taking the place of its namesakes in those before. For one thread."""

    def __init__(self, layers: Sequence[Layer], blobs: BlobStore) -> None:
        self._layers = list(layers)
        self._bundles = BundleReader(blobs)
        self._found: dict[Path, _Found] = {}
        self._live: dict[str, _Live] = {}
        self._scan = Scan()

    def scan(self) -> Scan:
        """Look at all layers. The very object of the scan before when nothing has changed."""
        faults: list[Problem] = []
        seen: dict[Path, _Found] = {}
        stacks: dict[str, list[_Found | None]] = {}
        for layer in self._layers:
            for name, found in self._layer(layer, faults).items():
                stacks.setdefault(name, []).append(found)
                if found is not None:
                    seen[found.path] = found
        self._found = seen
        live: dict[str, _Live] = {}
        documents = []
        for name in sorted(stacks):
            document = self._choose(name, stacks[name], live)
            if document is not None:
                documents.append(document)
        documents += [DefinitionDocument("", "", "", "", fault.file, [fault.render()]) for fault in faults]
        self._live = live
        if documents != self._scan.documents or self._scan.generation == 0:
            news = _news(self._scan.documents, documents)
            definitions = {name: entry.definition for name, entry in live.items()}
            self._scan = Scan(definitions, documents, news, self._scan.generation + 1)
        return self._scan

    def _choose(self, name: str, stack: list[_Found | None], live: dict[str, _Live]) -> DefinitionDocument | None:
        """Add what is live under a name to `live`. `stack`: its files, the strongest last; None is a mask."""
        top = stack[-1]
        if top is None:
            return None
        entry = self._live.get(name)
        if top.definition is not None:
            entry = _Live(top.definition, top.path)
        elif entry is None or entry.origin != top.path:
            # This file never was a good one: what it would have replaced stays.
            entry = _strongest(stack[:-1])
        problems = [problem.render() for problem in top.problems]
        if entry is None:
            return DefinitionDocument(name, "", "", "", str(top.path), problems)
        live[name] = entry
        definition = entry.definition
        return DefinitionDocument(
            name, definition.digest, definition.description, definition.runner, str(entry.origin), problems
        )

    def _layer(self, layer: Layer, faults: list[Problem]) -> dict[str, _Found | None]:
        """The definitions of one folder by name, None for a mask; a folder that is not there has none."""
        try:
            handle = os.open(layer.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return {}
        except OSError as error:
            faults.append(Problem(str(layer.folder), 0, 0, "", f"cannot be read: {error.strerror}"))
            return {}
        try:
            names = _names(handle, layer.folder, faults)
            files = [name for name in names if name.endswith(_SUFFIX)]
            if len(files) > FILES_MAX:
                faults.append(Problem(str(layer.folder), 0, 0, "", f"has {len(files):,} files, {FILES_MAX:,} are read"))
            stems = [name.removesuffix(_SUFFIX) for name in files[:FILES_MAX]]
            wanted = [stem for stem in stems if layer.only is None or stem in layer.only]
            return {stem: self._file(handle, layer.folder, stem) for stem in wanted}
        finally:
            os.close(handle)

    def _file(self, parent: int, folder: Path, stem: str) -> _Found | None:
        """One file of a layer, read only if it or its bundle changed; None if it is a mask."""
        name = stem + _SUFFIX
        path = folder / name
        try:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                if os.readlink(name, dir_fd=parent) == os.devnull:
                    return None
                return _refused(path, "is a link, which only has a meaning to /dev/null (a mask); copy the file here")
            if not stat.S_ISREG(info.st_mode):
                return _refused(path, "is not a file")
            known = self._found.get(path)
            same = known is not None and known.settled and known.signature == signature_of(info)
            if known is not None and same and known.bundle:
                same = self._bundle(parent, folder, known.bundle) == known.bundle_state
            return known if same else self._read(parent, folder, stem)
        except OSError as error:
            return _refused(path, f"cannot be read: {error.strerror}")

    def _read(self, parent: int, folder: Path, stem: str) -> _Found:
        path = folder / (stem + _SUFFIX)
        handle = os.open(path.name, _FLAGS, dir_fd=parent)
        with os.fdopen(handle, "rb") as file:
            info = os.fstat(handle)
            data = file.read(FILE_BYTES_MAX + 1)
        draft = Draft(data, str(path), stem)
        state = self._bundle(parent, folder, draft.bundle) if draft.bundle else ""
        if state.startswith("!"):
            draft.bundle_problem(state[1:])
        else:
            draft.check_programs(self._bundles.files(folder, draft.bundle) if draft.bundle else [])
        definition: Definition | None = None
        problems: list[Problem] = []
        try:
            definition = draft.finish(state if draft.bundle else "") if not draft.problems else None
            problems = draft.problems
        except YamlError as error:
            problems = error.problems
        return _Found(path, signature_of(info), is_settled(info), draft.bundle, state, definition, problems)

    def _bundle(self, parent: int, root: Path, folder: str) -> str:
        """The digest of a bundle's manifest, or ! and what is wrong with it."""
        try:
            return self._bundles.read(parent, root, folder)
        except BundleError as error:
            return f"!{error}"
        except OSError as error:
            return f"!{folder} cannot be read: {error.strerror}"


def _names(handle: int, folder: Path, faults: list[Problem]) -> list[str]:
    """The names of files in an open folder that could be definitions, in order; a fault for what only looks so."""
    names = []
    with os.scandir(handle) as entries:
        for name in sorted(entry.name for entry in entries if not entry.name.startswith(".")):
            shown = os.fsencode(name).decode("utf-8", "replace")
            if shown != name:
                faults.append(Problem(str(folder / shown), 0, 0, "", "is not looked at; its name is not UTF-8"))
            elif name.endswith(".yml"):
                text = f"is not looked at; a definition's file ends in {_SUFFIX}"
                faults.append(Problem(str(folder / name), 0, 0, "", text))
            else:
                names.append(name)
    return names


def _strongest(stack: list[_Found | None]) -> _Live | None:
    """The last good definition of a stack of files, above its last mask."""
    for found in reversed(stack):
        if found is None:
            return None
        if found.definition is not None:
            return _Live(found.definition, found.path)
    return None


def _refused(path: Path, text: str) -> _Found:
    return _Found(path, (), False, "", "", None, [Problem(str(path), 0, 0, "", text)])


def _news(before: list[DefinitionDocument], after: list[DefinitionDocument]) -> list[str]:
    old = {(document.name, document.origin if not document.name else ""): document for document in before}
    lines = []
    for document in after:
        known = old.pop((document.name, document.origin if not document.name else ""), None)
        if document.version and (known is None or known.version != document.version):
            verb = "live" if known is None or not known.version else "changed"
            lines.append(f"definition {document.name} {verb}: version {document.version[:12]} from {document.origin}")
        if document.problems and (known is None or known.problems != document.problems):
            kept = f" (version {document.version[:12]} stays)" if document.version else ""
            # The first line of each: a log has no carets.
            lines += [problem.partition("\n")[0] + kept for problem in document.problems]
        if known is not None and known.problems and not document.problems:
            lines.append(f"definition {document.name}: {document.origin} is in order again")
    lines += [f"definition {name} removed" for name, _ in old if name]
    return lines
