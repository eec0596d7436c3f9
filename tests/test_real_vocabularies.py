"""Mistral's own tokenizers, from a wheel of mistral-common: ids equal sentencepiece's, and prompts mistral-common's.

The wheel is read, not installed: gguf imports that package where it finds it, and much else with it.
MISTRAL_COMMON_WHEELS names the directory it was downloaded to (`pip download --no-deps -d DIRECTORY mistral-common`).
"""

from __future__ import annotations

import json
import os
import random
import zipfile
from pathlib import Path

import pytest
import sentencepiece
from test_vocab import TEXTS

from llamachat.chat.message import parse_messages
from llamachat.chat.templates import TEMPLATES
from support.prompts import open_vocabulary
from support.vocab import convert_vocab, open_vocab, tokenize

_WHEELS = sorted(Path(os.environ.get("MISTRAL_COMMON_WHEELS", "nowhere")).glob("mistral_common-*.whl"))


def _names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if ".model.v" in name.rpartition("/")[2]]


MODELS = [(wheel, name) for wheel in _WHEELS for name in _names(wheel)]
_LETTERS = " \n\t'asdfeiou019.,!?<|▁[]INST/\u00a0\u3000\u200d\u0301éß中文字あいу한م🙂🏽"


@pytest.mark.skipif(not MODELS, reason="MISTRAL_COMMON_WHEELS names no directory with the wheel")
@pytest.mark.parametrize(("wheel", "name"), MODELS, ids=str)
def test_ids_equal_sentencepieces(wheel: Path, name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        proto = archive.read(name)
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    (tmp_path / "tokenizer.model").write_bytes(proto)
    rng = random.Random(3)
    texts = [*TEXTS, *("".join(rng.choices(_LETTERS, k=rng.randint(1, 40))) for _ in range(2000))]
    control = {processor.id_to_piece(i) for i in range(processor.vocab_size()) if processor.is_control(i)}
    with open_vocab(convert_vocab(tmp_path, processor.vocab_size())) as vocab:
        for text in texts:
            if not any(piece in text for piece in control):
                assert tokenize(vocab, text) == processor.encode(text), ascii(text)


GOLDEN = json.loads((Path(__file__).parent / "golden" / "mistral.json").read_text(encoding="utf-8"))
VOCABULARIES = {name.rpartition("/")[2]: (wheel, name) for wheel, name in MODELS}


@pytest.mark.skipif(not MODELS, reason="MISTRAL_COMMON_WHEELS names no directory with the wheel")
@pytest.mark.parametrize("file_name", sorted({entry["vocabulary"] for entry in GOLDEN}))
def test_prompts_equal_mistral_common_s(file_name: str, tmp_path: Path) -> None:
    wheel, name = VOCABULARIES[file_name]
    with zipfile.ZipFile(wheel) as archive:
        (tmp_path / "own.model").write_bytes(archive.read(name))
    n_vocab = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "own.model")).vocab_size()
    entries = [entry for entry in GOLDEN if entry["vocabulary"] == file_name]
    assert entries
    with open_vocabulary(tmp_path / "checkpoint", n_vocab, tmp_path / "own.model") as vocabulary:
        for entry in entries:
            template = TEMPLATES[entry["template"]]()
            prompt = template.render(parse_messages(entry["messages"]), vocabulary.tokenizer)
            assert list(prompt.ids) == entry["ids"], entry["messages"]
