"""What a terminal shows while a model is played: a progress bar, text as it comes, a conversation, tables."""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from .generate import Model, PromptError, Stream

Message = dict[str, str]


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error while it is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("opening", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def show_table(table: Table) -> None:
    from rich.console import Console
    from rich.table import Table as Grid
    title, columns, rows = table
    grid = Grid(title=title or None, title_justify="left", title_style="bold", box=None, show_header=any(columns), pad_edge=False, padding=(0, 3, 0, 0))
    for i, column in enumerate(columns):
        grid.add_column(column, justify="right" if i and any(columns) and all(isinstance(row[i], int) for row in rows) else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(str(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False).print(grid, "")


def play(stream: Stream, also: Callable[[str], Any] = len) -> tuple[int, float, float]:
    """Print a stream as it comes; the tokens, the seconds to the first one, and those after it."""
    start = first = time.perf_counter()
    count = 0
    for token, piece in stream:
        first = first if count else time.perf_counter()
        count += token >= 0     # text that was held back to the end comes without a token
        also(piece)
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    return count, first - start, time.perf_counter() - first


def rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:,.1f} tokens/s" if tokens > 0 and seconds > 0 else "no rate"


def questions() -> Iterator[str]:
    """Lines from the user until /quit or the end."""
    if sys.stdin.isatty():
        import contextlib
        with contextlib.suppress(ImportError):
            import readline     # noqa: F401  (gives input() a history and editing)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        yield line


def answer(model: Model, messages: list[dict[str, str]], options: dict[str, Any]) -> list[dict[str, str]]:
    """Print the answer to the last message; the messages with it. A conversation that is too long loses its last question."""
    from .runtime.generate import PromptError
    said: list[str] = []
    try:
        stream = model.stream(model.tokenizer.encode(model.tokenizer.chat(messages), add_special_tokens=False), **options)
    except PromptError as error:
        typer.echo(f"tilewright: {error} (/new starts over)", err=True)
        return messages[:-1]
    try:
        play(stream, said.append)
        full = stream.finish_reason == "context"
    except KeyboardInterrupt:
        stream.close()
        full = False
    typer.echo("\n(the context is full: /new starts over)" if full else "")
    return [*messages, {"role": "assistant", "content": "".join(said)}]
