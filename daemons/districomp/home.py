"""The user's home folder, which an account of a container may not have. Loaded by every command: imports next to nothing."""

import os
from collections.abc import Mapping
from pathlib import Path

from districomp.errors import ConfigError


def home_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """HOME, else what the system's accounts say. ConfigError, with what to set instead, if there is none."""
    try:
        return Path(environ.get("HOME") or Path.home())
    except RuntimeError:
        raise ConfigError(
            "this user has no home folder: set HOME, or else DISTRICOMP_STATE_DIR, DISTRICOMP_CONFIG_DIR and DISTRICOMP_RUNTIME_DIR"
        ) from None
