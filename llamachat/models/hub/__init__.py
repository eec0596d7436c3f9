"""The only room that knows huggingface_hub: what a repository holds, who may read it, and its bytes."""

from llamachat.models.hub.client import (
    HubAccess,
    RemoteFile,
    Repository,
    check_access,
    download,
    find_repository,
    hub_access,
)

__all__ = ["HubAccess", "RemoteFile", "Repository", "check_access", "download", "find_repository", "hub_access"]
