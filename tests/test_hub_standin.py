"""The stand-in Hub is good enough for the real huggingface_hub client, in what works and in what is refused."""

from __future__ import annotations

import hashlib
import http.client
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi, errors

from support.hub import Corrupt, HubStandIn, Status, Truncate

CONFIG = b'{"model_type": "llama"}\n'
WEIGHTS = bytes(range(256)) * 2000


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A Hub with the open `org/tiny` and the gated `org/gated`, which only the token `good` may read."""
    # Else the client first asks huggingface.co (not `endpoint`) for its list of coding agents, for the user agent.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    directory = tmp_path / "repo"
    (directory / "sub folder").mkdir(parents=True)
    (directory / "config.json").write_bytes(CONFIG)
    (directory / "sub folder" / "model.safetensors").write_bytes(WEIGHTS)
    with HubStandIn() as stand_in:
        stand_in.add_repo("org/tiny", directory)
        stand_in.add_repo("org/gated", directory, gated=True)
        stand_in.tokens = {"good": {"org/gated"}, "poor": set()}
        yield stand_in


def api(hub: HubStandIn, token: str | bool = False) -> HfApi:
    """The real client, pointed at the stand-in."""
    return HfApi(endpoint=hub.url, token=token)


def download(hub: HubStandIn, repo_id: str, name: str, cache: Path, token: str | bool = False) -> bytes:
    """The content of a file as the real client downloads it."""
    return Path(api(hub, token).hf_hub_download(repo_id, name, cache_dir=cache)).read_bytes()


@dataclass(frozen=True)
class Answer:
    """What a bare HTTP request got."""

    status: int
    headers: Message
    content: bytes


def ask(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
    """A bare HTTP request, where the client offers none; redirects are followed."""
    request = urllib.request.Request(url, headers=headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return Answer(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


def test_model_info_gives_sizes_and_lfs_digests(hub: HubStandIn) -> None:
    """One request says everything a download plan needs."""
    info = api(hub).model_info("org/tiny", revision="main", files_metadata=True)
    config, weights = info.siblings or []
    assert info.sha is not None
    assert len(info.sha) == 40
    assert (config.rfilename, config.size, config.lfs) == ("config.json", len(CONFIG), None)
    assert config.blob_id == hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
    assert weights.lfs is not None
    assert (weights.size, weights.lfs.sha256) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    assert [request.path for request in hub.requests] == ["/api/models/org/tiny/revision/main"]


def test_the_tree_lists_files_and_folders(hub: HubStandIn) -> None:
    """The root shows its folder; the recursive listing shows all files."""
    client = api(hub)
    assert [entry.path for entry in client.list_repo_tree("org/tiny")] == ["sub folder", "config.json"]
    assert [entry.path for entry in client.list_repo_tree("org/tiny", "sub folder")] == ["sub folder/model.safetensors"]
    assert client.list_repo_files("org/tiny") == ["config.json", "sub folder/model.safetensors"]


def test_a_small_file_comes_from_the_hub(hub: HubStandIn, tmp_path: Path) -> None:
    """Metadata first, then the bytes, from the same address."""
    assert download(hub, "org/tiny", "config.json", tmp_path) == CONFIG
    assert [(request.method, request.status) for request in hub.requests] == [("HEAD", 200), ("GET", 200)]
    assert hub.requests[-1].bytes_sent == len(CONFIG)


def test_an_lfs_file_comes_from_the_cdn_without_the_token(hub: HubStandIn, tmp_path: Path) -> None:
    """The redirect leaves the origin, so the client leaves its token behind."""
    assert download(hub, "org/gated", "sub folder/model.safetensors", tmp_path, "good") == WEIGHTS
    head, get = hub.requests
    assert (head.method, head.status, head.has_token) == ("HEAD", 302, True)
    assert (get.method, get.status, get.has_token) == ("GET", 200, False)
    assert get.path == f"/cdn/{hashlib.sha256(WEIGHTS).hexdigest()}"


def test_a_snapshot_comes_whole(hub: HubStandIn, tmp_path: Path) -> None:
    """Listing and files together."""
    snapshot = Path(api(hub).snapshot_download("org/tiny", cache_dir=tmp_path))
    assert (snapshot / "config.json").read_bytes() == CONFIG
    assert (snapshot / "sub folder" / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(("token", "status"), [(False, 401), ("poor", 403)])
def test_a_gated_repository_refuses_its_files(hub: HubStandIn, tmp_path: Path, token: str | bool, status: int) -> None:
    """A stranger and a user without access both meet the gate; the listing is open to everyone."""
    assert api(hub, token).model_info("org/gated").gated == "manual"
    with pytest.raises(errors.GatedRepoError) as caught:
        download(hub, "org/gated", "config.json", tmp_path, token)
    assert caught.value.response.status_code == status


@pytest.mark.parametrize(("token", "status"), [(False, 401), ("good", 404)])
def test_a_missing_repository_is_not_found(hub: HubStandIn, token: str | bool, status: int) -> None:
    """A stranger is not even told whether it exists."""
    with pytest.raises(errors.RepositoryNotFoundError) as caught:
        api(hub, token).model_info("org/nothing")
    assert caught.value.response.status_code == status
    assert not isinstance(caught.value, errors.GatedRepoError)


def test_a_missing_revision_or_file_is_named(hub: HubStandIn, tmp_path: Path) -> None:
    """Each has its own error."""
    with pytest.raises(errors.RevisionNotFoundError):
        api(hub).model_info("org/tiny", revision="v9")
    with pytest.raises(errors.RemoteEntryNotFoundError):
        download(hub, "org/tiny", "absent.json", tmp_path)


def test_a_token_is_known_or_refused(hub: HubStandIn) -> None:
    """An invalid token is refused everywhere, even where none is needed."""
    assert api(hub, "good").whoami()["name"] == "tester"
    with pytest.raises(errors.HfHubHTTPError, match="Invalid user token"):
        api(hub, "bad").whoami()
    with pytest.raises(errors.HfHubHTTPError, match="Invalid credentials") as caught:
        api(hub, "bad").model_info("org/tiny")
    assert not isinstance(caught.value, errors.RepositoryNotFoundError)


@pytest.mark.parametrize(
    ("asked", "status", "content_range", "expected"),
    [
        ("bytes=1000-1009", 206, f"bytes 1000-1009/{len(WEIGHTS)}", WEIGHTS[1000:1010]),
        ("bytes=511990-", 206, f"bytes 511990-511999/{len(WEIGHTS)}", WEIGHTS[-10:]),
        ("bytes=-10", 206, f"bytes 511990-511999/{len(WEIGHTS)}", WEIGHTS[-10:]),
        ("bytes=512000-", 416, f"bytes */{len(WEIGHTS)}", b""),
    ],
)
def test_ranges_are_answered(hub: HubStandIn, asked: str, status: int, content_range: str, expected: bytes) -> None:
    """The CDN serves any part of a file, through the Hub's redirect."""
    url = f"{hub.url}/org/tiny/resolve/main/sub%20folder/model.safetensors"
    answer = ask(url, {"Range": asked})
    assert (answer.status, answer.headers["Content-Range"], answer.content) == (status, content_range, expected)


def test_climbing_out_is_refused(hub: HubStandIn) -> None:
    """An encoded `..` is seen through."""
    assert ask(f"{hub.url}/org/tiny/resolve/main/%2e%2e%2fsecret").status == 400


def test_a_truncated_file_makes_the_client_fail(
    hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client asks five times more and gives up; having less than 10 MiB, it starts over every time."""
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda _: None))
    caplog.set_level(logging.CRITICAL, logger="huggingface_hub")
    hub.faults["sub folder/model.safetensors"] = Truncate(100_000)
    with pytest.raises(Exception, match="peer closed connection"):
        download(hub, "org/tiny", "sub folder/model.safetensors", tmp_path)
    asked = [(request.range, request.bytes_sent) for request in hub.requests if request.method == "GET"]
    assert asked == [(None, 100_000)] * 6


def test_a_fault_wears_off(hub: HubStandIn, tmp_path: Path) -> None:
    """After `times` uses a file is served as it is."""
    hub.faults = {"config.json": Corrupt(3, times=1)}
    assert download(hub, "org/tiny", "config.json", tmp_path / "1") == CONFIG.replace(b"o", b"\x90", 1)
    assert download(hub, "org/tiny", "config.json", tmp_path / "2") == CONFIG


def test_a_status_takes_the_place_of_an_answer(hub: HubStandIn, tmp_path: Path) -> None:
    """Bytes, metadata and API requests can each be refused."""
    hub.faults = {
        "config.json": Status(500),
        "sub folder/model.safetensors": Status(503, method="HEAD"),
        "/api/models/org/tiny": Status(429),
    }
    with pytest.raises(errors.HfHubHTTPError, match="500"):
        download(hub, "org/tiny", "config.json", tmp_path)
    # Asked directly, because the client would try again for most of a minute.
    weights_url = f"{hub.url}/org/tiny/resolve/main/sub%20folder/model.safetensors"
    assert ask(weights_url, method="HEAD").status == 503
    with pytest.raises(errors.HfHubHTTPError, match="429"):
        api(hub).model_info("org/tiny")


def test_a_commit_follows_from_the_contents(hub: HubStandIn, tmp_path: Path) -> None:
    """Another content is another commit; the old one can still be read."""
    old = api(hub).model_info("org/tiny").sha
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "config.json").write_bytes(CONFIG * 2)
    new = hub.add_repo("org/tiny", changed)
    assert new == hub.add_repo("org/copy", changed) != old
    assert api(hub).model_info("org/tiny").sha == new
    assert api(hub).model_info("org/tiny", revision=old).sha == old


def test_a_stopped_hub_is_gone() -> None:
    """A connection that the client kept alive does not outlive the stand-in."""
    with HubStandIn() as hub:
        connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=5)
        connection.request("GET", "/api/models/org/tiny")
        assert connection.getresponse().read()
    with closing(connection):
        assert connection.sock.recv(1) == b""
