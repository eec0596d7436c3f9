"""Write tests/golden/mistral.json: prompts as mistral-common makes them, with its own vocabularies.

Run where mistral-common is installed: `PYTHONPATH=.:tests python tests/support/write_mistral_golden.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

_TOKENIZERS = {
    "mistral-instruct-v0.1": ("tokenizer.model.v1", MistralTokenizer.v1),
    "mistral-instruct-v0.3": ("mistral_instruct_tokenizer_240323.model.v3", MistralTokenizer.v3),
}
_ROLES = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
_CODE = 'def f(x):\n    return {"a": x ** 2}  # squared\n'
_TALKS = [
    [("user", "Hello")],
    [("system", "Answer briefly."), ("user", "Hello")],
    [("system", "简短回答。"), ("user", "  你好，世界 "), ("assistant", " 好  "), ("user", "🙂 👨\u200d👩\u200d👧\n")],
    [("user", ""), ("assistant", "?"), ("user", " ")],
    [("system", " S \n"), ("user", _CODE), ("assistant", f"```\n{_CODE}```"), ("user", "\n\tthen\r\n")],
    [("system", "Be kind."), *[("assistant" if i % 2 else "user", f"Turn {i}, they're 3.14") for i in range(11)]],
]


def main() -> None:
    """Write the file beside this package."""
    written = []
    for template, (file_name, make) in _TOKENIZERS.items():
        tokenizer = make()
        for talk in _TALKS:
            request = ChatCompletionRequest(messages=[_ROLES[role](content=content) for role, content in talk])
            messages = [{"role": role, "content": content} for role, content in talk]
            ids = tokenizer.encode_chat_completion(request).tokens
            written.append({"template": template, "vocabulary": file_name, "messages": messages, "ids": ids})
    path = Path(__file__).parents[1] / "golden" / "mistral.json"
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in written)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
