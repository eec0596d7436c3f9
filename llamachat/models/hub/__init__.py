"""The only room that knows huggingface_hub: what a repository holds, who may read it, and its bytes."""

from llamachat.models.hub.client import RemoteFile, Repository, download, find_repository

__all__ = ["RemoteFile", "Repository", "download", "find_repository"]
