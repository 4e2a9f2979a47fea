"""Definitions in files, checked where they are: what `dctl def check` finds. Needs no coordinator.

Owns the reading of a file and its bundle as the coordinator's catalog would. Must not print.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Final

from districomp.bundle import BundleError, walk_bundle
from districomp.taskdef import BundleFile
from districomp.taskfile import Draft
from districomp.yamltree import FILE_BYTES_MAX, Problem

_SUFFIX: Final = ".yaml"
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def check_file(path: Path) -> tuple[list[Problem], list[Problem]]:
    """The problems of a file and its bundle, and the warnings, in the order of the file."""
    shown = os.fsencode(path).decode("utf-8", "replace")
    data = _read(path, shown)
    if isinstance(data, Problem):
        return [data], []
    draft = Draft(data, shown, os.fsencode(path.stem).decode("utf-8", "replace"))
    try:
        draft.check_programs(_bundle_files(path.parent, draft.bundle) if draft.bundle else [])
    except BundleError as error:
        draft.bundle_problem(str(error))
    problems = draft.problems
    if path.suffix != _SUFFIX:
        # First, because it concerns the file as a whole.
        problems.insert(0, _whole(shown, f"a definition's file ends in {_SUFFIX}; it would not be looked at"))
    return problems, draft.warnings


def _read(path: Path, shown: str) -> bytes | Problem:
    try:
        # Neither a pipe nor a device may keep us waiting.
        handle = os.open(path, _FLAGS)
    except OSError as error:
        if error.errno == errno.ENOENT and path.is_symlink():
            return _whole(shown, "is a link to nothing")
        return _whole(shown, f"cannot be read: {error.strerror}")
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        is_folder = stat.S_ISDIR(mode)
        text = f"is a folder; name the files in it: {shown.rstrip('/')}/*{_SUFFIX}" if is_folder else "is not a file"
        return _whole(shown, text)
    with os.fdopen(handle, "rb") as file:
        try:
            return file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            return _whole(shown, f"cannot be read: {error.strerror}")


def _bundle_files(root: Path, folder: str) -> list[BundleFile]:
    """The files of a bundle, opened but not read. BundleError says what may not be in it."""
    parent = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        walk = walk_bundle(parent, folder, lambda _file, _size: "")
    finally:
        os.close(parent)
    if walk.faults:
        raise BundleError(f"{folder}: {walk.text}")
    return walk.files


def _whole(file: str, text: str) -> Problem:
    return Problem(file, 0, 0, "", text)
