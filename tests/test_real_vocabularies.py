"""Mistral's own tokenizers, which mistral-common ships: ids equal sentencepiece's (`oracle` extra)."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest
import sentencepiece
from test_vocab import TEXTS

from support.vocab import convert_vocab, open_vocab, tokenize

_SPEC = importlib.util.find_spec("mistral_common")
_DATA = Path(_SPEC.submodule_search_locations[0]) / "data" if _SPEC and _SPEC.submodule_search_locations else None
MODELS = sorted(_DATA.glob("*.model.v*")) if _DATA else []
_LETTERS = " \n\t'asdfeiou019.,!?<|▁[]INST/\u00a0\u3000\u200d\u0301éß中文字あいу한م🙂🏽"


@pytest.mark.skipif(not MODELS, reason="mistral-common is not installed")
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_ids_equal_sentencepieces(path: Path, tmp_path: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    (tmp_path / "tokenizer.model").write_bytes(path.read_bytes())
    rng = random.Random(3)
    texts = [*TEXTS, *("".join(rng.choices(_LETTERS, k=rng.randint(1, 40))) for _ in range(2000))]
    control = {processor.id_to_piece(i) for i in range(processor.vocab_size()) if processor.is_control(i)}
    with open_vocab(convert_vocab(tmp_path, processor.vocab_size())) as vocab:
        for text in texts:
            if not any(piece in text for piece in control):
                assert tokenize(vocab, text) == processor.encode(text), ascii(text)
