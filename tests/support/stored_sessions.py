"""A history with something in it."""

from __future__ import annotations

from pathlib import Path

from llamachat.chat.history import History, SessionFacts
from llamachat.chat.message import Message
from llamachat.engine.base import FinishReason, GenerationStats

FACTS = SessionFacts("tiny:q8_0", "ab" * 32, "chatml", {"temperature": 0.5, "top_k": 40, "seed": None}, 4096)
STATS = GenerationStats(n_prompt=9, n_reused=4, n_generated=7, prefill_s=0.5, ttft_s=0.25, decode_s=1.5)


def say(history: History, session: int, parent: int | None, text: str) -> int:
    """What a user says; returns its key."""
    return history.add_message(session, parent, Message("user", text))


def answer(history: History, session: int, parent: int, text: str, finish_reason: FinishReason | None = "stop") -> int:
    """A whole answer, as a chat stores one; returns its key."""
    key = history.add_message(session, parent, Message("assistant", ""), seed=11)
    history.update_answer(key, text, finish_reason=finish_reason, stats=STATS if finish_reason else None)
    return key


def fill(path: Path, *texts: str) -> list[int]:
    """One session for each text, with a system prompt, an answer and a retried answer; returns their ids."""
    with History(path) as history:
        sessions = []
        for text in texts:
            session = history.start_session(FACTS)
            system = history.add_message(session, None, Message("system", "Be brief."))
            question = say(history, session, system, text)
            answer(history, session, question, f"First answer to {text}")
            answer(history, session, question, f"Second answer to {text}")
            sessions.append(session)
        return sessions
