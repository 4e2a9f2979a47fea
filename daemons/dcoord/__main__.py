"""`dcoord`: reads the command line and the configuration, then runs the daemon in the foreground."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from districomp import __version__, openfiles, program
from districomp import config as configuration
from districomp import log as logging_form
from districomp.errors import ConfigError
from districomp.secrecy import hide_memory

log = logging.getLogger("dcoord")

OPEN_FILES = 65536
"""A connection a worker and a client, with room for files and the journal."""
SWITCH_S = 0.001
"""How long the busy loop may keep the interpreter's lock from the journal's thread: with Python's 5 ms a commit of
256 tasks beside it takes 6.1 ms instead of 1.8 (docs/decisions/002-journal.md)."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: ends by SystemExit with 0, 1 (cannot run) or 78 (configuration)."""
    parsed = _parser().parse_args(arguments)
    logging_form.setup("dcoord", "debug" if parsed.verbose else "info")
    hide_memory()
    with program.exits(log):
        paths = configuration.Paths.from_environment()
        settings = configuration.load_coordinator(parsed.config, paths)
        if parsed.check_config:
            sys.exit(_check_definitions(paths))
        from dcoord.daemon import Daemon

        sys.setswitchinterval(SWITCH_S)
        openfiles.allow(OPEN_FILES)
        program.run(Daemon(settings, paths, parsed.config).run())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dcoord", description="The coordinator of a districomp cluster.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="instead of CONFIG_DIR/dcoord.yaml")
    parser.add_argument("--check-config", action="store_true", help="check it and all definitions, then end")
    parser.add_argument("--version", action="version", version=f"dcoord {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    return parser


def _check_definitions(paths: configuration.Paths) -> int:
    """Check every definition that would be live; the exit code."""
    import tempfile

    from dcoord.blobs import BlobStore
    from dcoord.catalog import Catalog

    with tempfile.TemporaryDirectory() as folder:
        documents = Catalog(paths.tasks_layers, BlobStore(Path(folder))).scan().documents
    problems = [problem for document in documents for problem in document.problems]
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    if problems:
        return ConfigError.exit_code
    sys.stderr.write(f"the configuration and {len(documents)} definitions are good\n")
    return 0


if __name__ == "__main__":
    main()
