"""A model on this machine as a `Source`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamachat.chat.templates import ASKED_FOR, Infill, TemplateChoice, choose_template
from llamachat.cli.format import size
from llamachat.cli.loading import Meanwhile, load_with_adapters
from llamachat.cli.output import out
from llamachat.cli.source import Opened, Source
from llamachat.engine.base import Engine, EngineInfo, EngineOptions, LoraAdapter
from llamachat.engine.sampling import SamplingParams, recommended
from llamachat.errors import LlamachatError, PromptTooLong
from llamachat.models.contexts import model_key
from llamachat.models.memory import kv_bytes_per_token, read_shape
from llamachat.models.resolve import resolve
from llamachat.models.store import StoredModel

if TYPE_CHECKING:
    from llamachat.cli.chat_wishes import ChatOptions

_CTX_STEP = 1024


@dataclass(frozen=True)
class LocalModel:
    """See `Source`."""

    stored: StoredModel
    server: None = None

    @property
    def label(self) -> str:
        """See `Source`."""
        return self.stored.label

    @property
    def sha256(self) -> str | None:
        """See `Source`."""
        return self.stored.manifest.sha256 if self.stored.manifest else None

    @property
    def content_key(self) -> str:
        """See `Source`."""
        return model_key(self.stored)

    def open(self, options: ChatOptions, meanwhile: Meanwhile | None = None) -> Opened:
        """See `Source`."""
        engine, adapters = load_with_adapters(self.stored, options.engine, meanwhile)
        try:
            choice = _choose_template(self.stored, engine, options)
            sampling = _sampling(self.stored, choice, engine.info.metadata, options)
        except LlamachatError:
            engine.close()
            raise
        return Opened(engine, choice, sampling, adapters, self.stored.system or choice.template.system)

    def is_same(self, other: Source) -> bool:
        """See `Source`."""
        return isinstance(other, LocalModel) and other.stored.path == self.stored.path

    def other(self, name: str) -> Source:
        """See `Source`."""
        return LocalModel(resolve(name))

    def names(self) -> Iterable[str]:
        """See `Source`."""
        from llamachat.models import store
        from llamachat.models.catalog import load_catalog
        from llamachat.models.embedded import find_embedded

        embedded = find_embedded(load_catalog())
        return [stored.label for stored in (*store.list_stored(), *([embedded] if embedded else []))]

    def describe(self, info: EngineInfo, adapters: Sequence[LoraAdapter], template: str) -> str:
        """Model with its adapters, context, threads or GPU, template."""
        n_threads = info.n_threads
        where = "GPU" if info.backend == "GPU" else f"{n_threads} thread{'s' * (n_threads > 1)}"
        model = " + ".join([self.label, *(adapter.path.name for adapter in adapters)])
        return f"{model} · {info.n_ctx:,} tokens · {where} · template {template}"

    def room_advice(self, error: PromptTooLong, options: EngineOptions, shorten: str) -> str:
        """A larger window, and what that costs in memory."""
        n_ctx = -(-error.n_needed // _CTX_STEP) * _CTX_STEP
        read = read_shape(self.stored.path)
        if read is None:
            return error.next_step
        shape, n_ctx_train = read
        more_bytes = (n_ctx - error.n_ctx) * kv_bytes_per_token(shape, options.kv_type or "f16")
        beyond = " --rope-scaling yarn, since the model was trained for less" if n_ctx > n_ctx_train else ""
        return f"{shorten}or give a larger window: --ctx {n_ctx}{beyond}, which takes {size(more_bytes)} more memory."


def _choose_template(stored: StoredModel, engine: Engine, options: ChatOptions) -> TemplateChoice:
    if options.infill is not None:
        return TemplateChoice(Infill(*options.infill), ASKED_FOR)
    choice = choose_template(options.template, stored.template, engine.info.metadata)
    if not choice.template.is_chat and choice.reason != ASKED_FOR:
        out.warning(f"{stored.label} is not a chat model ({choice.reason}): it continues the text you type.")
    return choice


def _sampling(
    stored: StoredModel, choice: TemplateChoice, metadata: Mapping[str, str], options: ChatOptions
) -> SamplingParams:
    """General defaults, then what the header, the family and the catalogue recommend, then the user's wish."""
    params = SamplingParams()
    for layer in (recommended(metadata), choice.template.sampling, stored.sampling, options.sampling):
        params = params.override(layer)
    return params
