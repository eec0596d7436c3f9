"""Answers as Markdown on a terminal: nothing lost, obeyed or left behind, whatever pieces they come in."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable, Iterable
from itertools import pairwise

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from llamachat.chat.text import TextDecoder
from llamachat.cli.terminal.blocks import LONGEST_BLOCK, Block, BlockSplitter
from llamachat.cli.terminal.code import CodeLines
from llamachat.cli.terminal.escapes import visible
from llamachat.cli.terminal.graphemes import MOST_HELD, held_back
from llamachat.cli.terminal.size import Size
from llamachat.cli.terminal.view import MarkdownView, WholeCharacters

PROPERTY = settings(max_examples=300, deadline=None, database=None)
SLOW_PROPERTY = settings(max_examples=30, deadline=None, database=None)
OURS = re.compile(r"\x1b\[(?:[0-9;]*m|\d+A|K|J|\?7[lh]|\?2026h\r|\?2026l)")

LINES = st.sampled_from([
    "# a b", "word a1 b2", "a **bold b** a", "`a` *b", "- a item", "* b", "  - nested a", "    - deep b", "1. one",
    "12) b", "   more a", "```xyz", "```", "~~~~", "````", "    b = 1", "\ta", "> quote a", ">", "| a | b |",
    "|---|--:|", "| 1 | 2 |", "---", "===", "***", "", "", "  ", "你好，世界 a", "👩‍👩‍👧 b", "[a](b:1)", "<b>a</b>",
    "![a](b)", "&#27;[1m a", "[a]: b", "a\\", "#", "a" * 45,
    "b 法国的首都是巴黎，它有着悠久的历史，可以追溯到两千多年前", "1.", "-", "**", "&lt;a&gt;", "a  ",
    "\x1b[31m\u202e\x07a\r",
])  # fmt: skip
MARKDOWN = st.lists(LINES, max_size=14).map("\n".join) | st.text("a1 \n`*_-#>|~[]()!\\&<:", max_size=60)
PLACES = st.lists(st.integers(0, 500), max_size=12)


def cut(text: str, places: list[int]) -> list[str]:
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(borders)]


def split(pieces: Iterable[str]) -> list[Block]:
    splitter = BlockSplitter()
    blocks = []
    for piece in pieces:
        blocks += splitter.feed(piece)
        splitter.unfinished()
    return blocks + splitter.finish()


class Screen:
    """A terminal emulator with scrollback, a view that draws on it, and the time between pieces."""

    def __init__(self, columns: int = 40, lines: int = 12, *, colour: bool = True) -> None:
        self.size = Size(columns, lines)
        self.now_s = 0.0
        self.raw = ""
        self.emulator = pyte.HistoryScreen(columns, lines, history=10_000)
        self._stream = pyte.Stream(self.emulator)
        console = Console(file=io.StringIO(), force_terminal=True, color_system="256", no_color=not colour)
        self.view = MarkdownView(console, self._write, lambda: self.size, lambda: self.now_s)

    def show(self, pieces: Iterable[str], pause_s: float = 1.0, after: Callable[[], None] = lambda: None) -> Screen:
        for piece in pieces:
            self.view.feed(piece)
            after()
            self.now_s += pause_s
        self.view.close()
        return self

    def resize(self, columns: int, lines: int) -> None:
        self.size = Size(columns, lines)
        self.emulator.resize(lines, columns)

    @property
    def rows(self) -> list[str]:
        """Scrollback and screen, without blanks on the right and empty rows at the end."""
        above = ["".join(row[i].data for i in range(self.emulator.columns)) for row in self.emulator.history.top]
        return "\n".join(row.rstrip() for row in [*above, *self.emulator.display]).rstrip("\n").split("\n")

    @property
    def text(self) -> str:
        return "\n".join(self.rows)

    def _write(self, sequences: str) -> None:
        self.raw += sequences
        self._stream.feed(sequences)


# --- blocks -------------------------------------------------------------------------------------------------


@PROPERTY
@given(text=MARKDOWN, places=PLACES)
def test_blocks_do_not_depend_on_the_pieces(text: str, places: list[int]) -> None:
    assert split(cut(text, places)) == split(text) == split([text])


@PROPERTY
@given(text=MARKDOWN)
def test_no_text_is_lost_between_blocks(text: str) -> None:
    blocks = "".join(block.marker + block.source for block in split([text]))
    assert re.sub(r"[\s`~xyz]", "", blocks) == re.sub(r"[\s`~xyz]", "", text)


def test_what_is_a_block() -> None:
    text = "Hello\nyou.\n# Title\n- one\n  more\n- two\n  - three\n\n    last\n```py\nx\n\n  y\n```\n"
    text += "1. a\n2. b\n> q\n\nend\n"
    assert [(block.kind, block.marker, block.indent, block.source, block.gap) for block in split([text])] == [
        ("text", "", 0, "Hello\nyou.", False),
        ("text", "", 0, "# Title", True),
        ("text", "-", 0, "one\nmore", True),
        ("text", "-", 0, "two", False),
        ("text", "-", 2, "three", False),
        ("text", "", 4, "last", True),
        ("code", "", 0, "x", True),
        ("code", "", 0, "", False),
        ("code", "", 0, "  y", False),
        ("text", "1.", 0, "a", True),
        ("text", "2.", 0, "b", False),
        ("text", "", 0, "> q", False),
        ("text", "", 0, "end", True),
    ]


def test_a_finished_block_is_given_out_at_once() -> None:
    splitter = BlockSplitter()
    assert splitter.feed("Hello\n") == []  # the paragraph may go on
    assert [block.source for block in splitter.feed("- one\n- t")] == ["Hello"]
    assert [block.source for block in splitter.feed("wo\n")] == ["one"]
    assert [block.source for block in splitter.feed("```\n")] == ["two"]
    assert [block.source for block in splitter.feed("code\n")] == ["code"]


def test_a_text_without_an_end_is_cut_into_blocks() -> None:
    for text in ("word " * 20_000, "x" * 100_000, "line\n" * 20_000, "- item " + "line\n" * 20_000):
        blocks = split(text[i : i + 1000] for i in range(0, len(text), 1000))
        assert max(len(block.source) for block in blocks) < 2 * LONGEST_BLOCK
        assert blocks == split([text])


# --- on the screen ------------------------------------------------------------------------------------------


@SLOW_PROPERTY
@given(text=MARKDOWN, places=PLACES, columns=st.sampled_from([12, 40, 80]), lines=st.integers(2, 8))
def test_the_screen_does_not_depend_on_the_pieces(text: str, places: list[int], columns: int, lines: int) -> None:
    whole = Screen(columns, lines).show([text])
    assert Screen(columns, lines).show(cut(text, places)).rows == whole.rows
    assert Screen(columns, lines).show(text[:80]).rows == Screen(columns, lines).show([text[:80]]).rows
    left = OURS.sub("", whole.raw)
    assert not any(unicodedata.category(character) == "Cc" and character not in "\r\n" for character in left)
    assert visible(left.replace("\r\n", "\n")) == left.replace("\r\n", "\n")


HOSTILE = st.sampled_from(
    [
        *map(str.encode, ("\x1b[31m", "\x9b1m", "\u202e", "a", "🏳️‍🌈", "&#8238;", "\r", "\x07", "`", "\n")),
        b"\xff",
        b"\xc2",
    ]
)


@SLOW_PROPERTY
@given(data=st.binary(max_size=60) | st.lists(HOSTILE, max_size=12).map(b"".join))
def test_no_bytes_steer_the_terminal(data: bytes) -> None:
    decoder = TextDecoder()
    pieces = [*(decoder.feed(bytes([byte])) for byte in data), decoder.finish()]
    markdown, plain = Screen().show(pieces), io.StringIO()
    with WholeCharacters(lambda text: plain.write(visible(text)) and None) as view:
        for piece in pieces:
            view.feed(piece)
    for shown in (OURS.sub("", markdown.raw).replace("\r\n", "\n"), plain.getvalue()):
        assert visible(shown) == shown
    assert plain.getvalue().removesuffix("\n") == visible(data.decode("utf-8", "replace")).removesuffix("\n")


WORDS = " ".join(f"word{i}" for i in range(60))


@pytest.mark.parametrize(
    "text",
    [WORDS, WORDS.replace(" ", "\n"), "- " + WORDS, "> " + WORDS, "```python\n" + WORDS.replace(" ", "\n") + "\n```",
     "| a | b |\n|---|---|\n" + "".join(f"| {word} | x |\n" for word in WORDS.split()), WORDS.replace(" ", "\n\n"),
     "".join(f"- {word}\n" for word in WORDS.split()), WORDS.replace("word", "字") + " end"],
)  # fmt: skip
def test_a_text_longer_than_the_screen_is_in_the_scrollback_once(text: str) -> None:
    screen = Screen(40, 6).show(text[i : i + 7] for i in range(0, len(text), 7))
    words = re.findall(r"[^\W_]{2,}", text.removeprefix("```python"))
    assert re.findall(r"[^\W_]{2,}", screen.text) == words
    assert screen.rows == Screen(40, 6).show([text]).rows


def test_a_finished_block_is_never_written_again() -> None:
    text = "".join(f"Paragraph{i} with some words.\n\n- item{i}\n\n```py\ncode{i} = 1\n```\n\n" for i in range(20))
    screen = Screen(60, 10)
    screen.show(text + "The end, " + "and more words " * 20)
    drawings = screen.raw.split("\x1b[?2026h")
    for i in range(20):
        shown = [n for n, drawing in enumerate(drawings) if f"Paragraph{i} " in drawing]
        assert shown[-1] < next(n for n, drawing in enumerate(drawings) if f"• item{i}" in drawing)
    assert (
        max(drawing.count("\n") for drawing in drawings[-100:]) < 2
    )  # of the growing paragraph, only the rows that change


def test_drawing_waits_for_its_time() -> None:
    screen = Screen()
    screen.show("some words " * 50, pause_s=0.001)
    assert screen.raw.count("\x1b[?2026h") < 15  # of 550 pieces in 0.55 s


def test_drawing_keeps_up_however_long_it_takes() -> None:
    shown: list[tuple[float, str]] = []
    now_s = 0.0

    def write(sequences: str) -> None:
        nonlocal now_s
        shown.append((now_s, sequences))
        now_s += sequences.count("line") * 0.01  # a slow terminal

    view = MarkdownView(Console(file=io.StringIO()), write, lambda: Size(40, 12), lambda: now_s)
    for i in range(400):
        view.feed(f"line{i}\n\n")
        now_s += 0.05
    view.close()
    assert "line399" in shown[-1][1]
    assert max(b - a for (a, _), (b, _) in pairwise(shown)) < 5


def test_code_is_lexed_with_little_of_what_was_before_it() -> None:
    code = CodeLines("python")
    lines = ['s = """', "text", *(f"def f{i}(x):\n    return x" for i in range(12)), '"""', "def g():", "    return 1"]
    texts = [code.line(line) for source in lines * 2 for line in source.split("\n")]
    colours = ["/".join(str(span.style) for span in text.spans) for text in texts]
    assert colours[: len(colours) // 2] == colours[len(colours) // 2 :]
    assert len(code._context) <= 10


def test_marks_do_not_appear_for_a_moment() -> None:
    seen = set()
    screen = Screen(80)
    screen.show("Some **bold words** and `code here` and *more*.\n# Title\n- item\n```py\nx\n```\n",
                after=lambda: seen.add(screen.text))  # fmt: skip
    assert len(seen) > 40
    assert not any(mark in text for text in seen for mark in "*`#-")


def test_rendered() -> None:
    text = "# Title\nSome **bold** text with [a link](http://x.yz).\n\n| a | 值 |\n|---|--:|\n| one | 12 |\n"
    text += "- item that is longer than forty columns are\n  2. nested\n\n```python\nx = 1\n```\n> quoted"
    screen = Screen(40, 20).show([text])
    assert screen.text == (
        "Title\n\nSome bold text with a link\n(http://x.yz).\n\n a    值\n ───────\n one  12\n"
        "• item that is longer than forty columns\n  are\n  2. nested\n\n  x = 1\n\n▌ quoted"
    )
    bold = {column: screen.emulator.buffer[2][column].bold for column in range(12)}
    assert [column for column, is_bold in bold.items() if is_bold] == [5, 6, 7, 8]


def test_no_text_of_a_table_is_lost_however_narrow_it_is() -> None:
    cells = ["中文单元格也很长很长", "https://example.org/a/long/path", "some words", "x"]
    for n in (1, 2, 4, 12):
        row = (cells * 3)[:n]
        table = f"|{'名字|' * n}\n|{'--|' * n}\n|{'|'.join(row)}|\n"
        for columns in (100, 40, 20, 7):
            shown = Screen(columns, 400).show([table]).text
            assert sorted(re.sub(r"[\s─|]", "", shown)) == sorted(("名字" * n + "".join(row)).replace(" ", ""))


def test_code_is_coloured_unless_no_color_is_wished() -> None:
    code = '```python\ndef f():\n    """One\n\n    def\n    """\n    return 1\n```\n'
    screen = Screen(40).show(code)
    assert screen.emulator.buffer[0][2].fg != "default"  # def
    assert screen.emulator.buffer[3][6].fg == screen.emulator.buffer[1][6].fg  # in the docstring, after an empty line
    plain = Screen(40, colour=False).show([code + "**bold**"])
    assert not any(
        30 <= int(code) < 50 for codes in re.findall(r"\x1b\[([\d;]+)m", plain.raw) for code in codes.split(";")
    )


def test_a_window_made_narrower_or_wider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTERM_VERSION", "XTerm(1)")  # like this emulator, it does not wrap lines again
    text = "First paragraph that is here to stay.\n\n" + " ".join(f"word{i}" for i in range(60)) + "\n\nend"
    screen = Screen(70, 12)
    sizes = {150: (40, 12), 300: (80, 16), 420: (30, 20)}
    n_fed = 0

    def after() -> None:
        nonlocal n_fed
        n_fed += 1
        if n_fed in sizes:
            screen.resize(*sizes[n_fed])

    screen.show(text, after=after)
    assert re.findall(r"word\d+", screen.text) == [f"word{i}" for i in range(60)]
    assert max(map(len, screen.rows)) <= 70
    assert screen.text.count("First") == screen.text.count("end") == 1


# --- whole characters ---------------------------------------------------------------------------------------

CLUSTERS = ["👩‍👩‍👧‍👦", "🇩🇪", "🇫🇷", "👍🏽", "é", "कि", "ก็", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "❤️", "ä̂", "好", "🙂"]


@PROPERTY
@given(clusters=st.lists(st.sampled_from([*CLUSTERS, " ", "x", "。"]), max_size=12), places=PLACES)
def test_characters_of_several_code_points_appear_whole(clusters: list[str], places: list[int]) -> None:
    text, shown = "".join(clusters), []
    borders = {len("".join(clusters[:i])) for i in range(len(clusters) + 1)}
    with WholeCharacters(shown.append) as view:
        for piece in cut(text, places):
            view.feed(piece)
            n_shown = len("".join(shown))
            after_x = text[:n_shown].endswith("x")  # nothing joins an ASCII letter here
            assert n_shown in borders or after_x
    assert "".join(shown).removesuffix("\n") == text


def test_nothing_is_held_without_need_or_end() -> None:
    for text in ("", "a", "word ", "好", "。", "1", "🇩🇪", "word\n", "が"):
        assert held_back(text) == 0, text
    assert held_back("a🙂") == 1
    assert held_back("🇩🇪🇫") == 1
    assert held_back("👩‍") == 2
    assert held_back("ö" + "\u0301" * (MOST_HELD - 1)) == MOST_HELD
    assert held_back("ö" + "\u0301" * MOST_HELD) == 0


def test_a_row_that_is_wider_on_this_terminal_than_elsewhere_is_whole_once_it_is_final() -> None:
    text = "word " * 6 + "\U0001f44d\U0001f3fd" * 4 + " the end of it"  # four cells each here, two on others
    screen = Screen().show(text[i : i + 3] for i in range(0, len(text), 3))
    assert re.sub(r"\s+", "", screen.text) == re.sub(r"\s+", "", text)
