"""The only room that knows huggingface_hub: what a repository holds, who may read it, and its bytes."""

from llamachat.models.hub.client import HubAccess, RemoteFile, Repository, check_access, find_repository, hub_access
from llamachat.models.hub.download import Cancelled, Watch, download, drop_contents, is_complete, n_missing

__all__ = [
    "Cancelled",
    "HubAccess",
    "RemoteFile",
    "Repository",
    "Watch",
    "check_access",
    "download",
    "drop_contents",
    "find_repository",
    "hub_access",
    "is_complete",
    "n_missing",
]
