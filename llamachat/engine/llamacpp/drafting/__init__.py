"""Guesses at the tokens that come next, so that one batch can confirm several: speculative decoding.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding". The engine draws every token as it
would without drafts, and a drafted one counts only where it drew the same: drafts change the speed, not the tokens, but
for what a batch rounds otherwise than a single step.
"""

from __future__ import annotations

from llamachat.engine.llamacpp.drafting.choice import make_drafter
from llamachat.engine.llamacpp.drafting.drafter import Drafter

__all__ = ["Drafter", "make_drafter"]
