"""Where things live on disk. Looking a path up creates nothing.

`LLAMACHAT_HOME` holds everything the program keeps; without it, the platform's own place for user data.
"""

from __future__ import annotations

import os
from pathlib import Path


def expand_user(path: str) -> Path:
    """The path with a leading ~ or ~user replaced. One of nobody stays as it is, where `Path.expanduser` raises."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def home_dir() -> Path:
    """The directory everything is under."""
    override = os.environ.get("LLAMACHAT_HOME")
    if override:
        return expand_user(override).absolute()
    from platformdirs import user_data_path  # slower to import than all the rest of this module's users need

    return user_data_path("llamachat", appauthor=False)


def models_dir() -> Path:
    """One directory a stored model."""
    return home_dir() / "models"


def staging_dir() -> Path:
    """Downloads and models in the making; on the same file system as `models_dir`, so that publishing is a rename."""
    return home_dir() / "staging"


def locks_dir() -> Path:
    """One lock file a model."""
    return home_dir() / "locks"


def user_catalog_path() -> Path:
    """The user's own additions to models.toml."""
    return home_dir() / "models.toml"


def input_history_path() -> Path:
    """What was typed at the chat prompt."""
    return home_dir() / "input_history"


def history_path() -> Path:
    """What was said in conversations."""
    return home_dir() / "history.db"


def contexts_dir() -> Path:
    """What was in the context window of conversations, one file a session."""
    return home_dir() / "contexts"
