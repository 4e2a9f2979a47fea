"""`dworker`: reads the command line and the configuration, then runs the daemon in the foreground."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from districomp import __version__, program
from districomp import config as configuration
from districomp import log as logging_form
from districomp.errors import ConfigError
from districomp.secrecy import hide_memory

log = logging.getLogger("dworker")


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: ends by SystemExit with 0, 1 (cannot run), 2 (the command line) or 78 (configuration)."""
    parsed = _parser().parse_args(arguments)
    logging_form.setup("dworker", "debug" if parsed.verbose else "info")
    hide_memory()
    with program.exits(log):
        paths = configuration.Paths.from_environment()
        config = _configure(parsed, paths)
        if parsed.check_config:
            sys.stderr.write("the configuration is good\n")
            return
        program.run(_serve(config, paths))
    log.info("stopped")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dworker", description="A worker: finds the coordinator, joins, runs tasks.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="instead of CONFIG_DIR/dworker.yaml")
    parser.add_argument("--check-config", action="store_true", help="check it, then end")
    parser.add_argument("--version", action="version", version=f"dworker {__version__}")
    parser.add_argument("--slots", type=int, metavar="N", help="tasks at once (default: one a CPU)")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where it is (default: found by mDNS)")
    parser.add_argument("--token-file", type=Path, metavar="F", help="a file with the join token")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    return parser


def _configure(parsed: argparse.Namespace, paths: configuration.Paths) -> configuration.WorkerConfig:
    """The file, and above it the command line. ConfigError."""
    config = configuration.load_worker(parsed.config, paths)
    if parsed.slots is not None:
        if not 1 <= parsed.slots <= configuration.SLOTS_MAX:
            raise ConfigError(f"--slots {parsed.slots}: from 1 to {configuration.SLOTS_MAX} are possible")
        config = replace(config, slots=parsed.slots)
    if parsed.coordinator is not None:
        try:
            configuration.parse_coordinator(parsed.coordinator)
        except ConfigError as error:
            raise ConfigError(f"--coordinator: {error}") from None
        config = replace(config, coordinator=parsed.coordinator)
    configuration.check_insecure(config)
    if parsed.token_file is not None:
        config = replace(config, token_file=parsed.token_file.absolute())
    return config


async def _serve(config: configuration.WorkerConfig, paths: configuration.Paths) -> None:
    from dworker.daemon import Daemon
    from dworker.folder import StateFolder

    folder = StateFolder(paths.worker_state)
    try:
        await Daemon(config, folder, paths).run()
    finally:
        folder.close()


if __name__ == "__main__":
    main()
