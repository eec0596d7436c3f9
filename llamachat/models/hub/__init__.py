"""The only room that knows huggingface_hub: what a repository holds, who may read it, and its bytes."""

from llamachat.models.hub.cache import cached_commit, cached_file, is_cached
from llamachat.models.hub.client import ONE_TRY, HubAccess, OnNotice, check_access, find_repository, hub_access
from llamachat.models.hub.download import Cancelled, Watch, download, drop_contents, is_complete, n_missing
from llamachat.models.hub.partial import move_arrived
from llamachat.models.hub.repository import RemoteFile, Repository
from llamachat.models.hub.retry import Patience

__all__ = [
    "ONE_TRY",
    "Cancelled",
    "HubAccess",
    "OnNotice",
    "Patience",
    "RemoteFile",
    "Repository",
    "Watch",
    "cached_commit",
    "cached_file",
    "check_access",
    "download",
    "drop_contents",
    "find_repository",
    "hub_access",
    "is_cached",
    "is_complete",
    "move_arrived",
    "n_missing",
]
