"""What a terminal shows while a model is played: a progress bar, text as it comes, a conversation, tables."""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from .generate import Model, PromptError, Stream

PIPED = 160     # columns where the output is no terminal

Message = dict[str, str]


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error, as long as that is a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("opening", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def loading(model: Model) -> str:
    """What loading took, in a line."""
    took, size = dict(model.load_seconds), sum(b["size"] for name, b in model.package.manifest["blobs"].items() if name != "tokenizer")
    total, shaders = took.pop("total"), took.pop("shaders", None)
    stages = [f"{name} {seconds:.1f} s" for name, seconds in took.items() if seconds >= 0.05]
    beside = [f"shaders {shaders:.1f} s beside"] if shaders else []
    return f"loaded {size / 1e9:.2f} GB in {total:.1f} s ({', '.join([f'{size / 1e9 / total:.1f} GB/s', *stages, *beside])})"


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; columns of whole numbers stand on the right, and a table without column names has no head."""
    head = any(columns)
    table = Table(title=title or None, title_justify="left", title_style="bold", box=None, show_header=head, pad_edge=False)
    table.padding = (0, 3, 0, 0)
    for i, column in enumerate(columns):
        number = head and all(isinstance(row[i], int) for row in rows)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else PIPED, highlight=False, markup=False).print(table, "")


def play(stream: Stream, also: Callable[[str], Any] = len) -> tuple[int, float, float]:
    """Print a stream as it comes, and hand its pieces to `also`. Its tokens, the seconds to the first one, and those after it."""
    start = first = time.perf_counter()
    count = 0
    with closing(stream):       # an interrupted one shall leave nothing on the GPU
        for token, piece in stream:
            first = first if count else time.perf_counter()
            count += token >= 0     # text that was held back to the end comes without a token
            also(piece)
            print(piece, end="", flush=True)
    return count, first - start, time.perf_counter() - first


def rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:,.1f} tokens/s" if tokens > 0 and seconds > 0 else "too few for a rate"


def converse(model: Model, system: str | None, options: dict[str, Any]) -> None:
    """Answer line after line of standard input. Raises TokenizerError for a model that cannot chat."""
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    model.tokenizer.chat([*messages, {"role": "user", "content": "Hello"}])     # complains now rather than after the first question
    for line in questions():
        if line == "/new":
            messages = list(opening)
        elif line:
            messages = answer(model, [*messages, {"role": "user", "content": line}], options)


def questions() -> Iterator[str]:
    """Lines from the user until /quit or the end."""
    interactive = sys.stdin.isatty()
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401  (gives input() editing and a history)
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        yield line


def answer(model: Model, messages: list[Message], options: dict[str, Any]) -> list[Message]:
    """Print the answer to the last message; the messages with it. A question that is too long is left out again."""
    said: list[str] = []
    try:
        stream = model.stream(model.tokenizer.encode(model.tokenizer.chat(messages), add_special_tokens=False), **options)
    except PromptError as error:
        print(f"tilewright: {error} (/new starts over)", file=sys.stderr)
        return messages[:-1]
    try:
        play(stream, said.append)
        print()
        if stream.finish_reason == "context":
            print("tilewright: the context is full (/new starts over)", file=sys.stderr)
    except KeyboardInterrupt:
        print()
    return [*messages, {"role": "assistant", "content": "".join(said)}]
