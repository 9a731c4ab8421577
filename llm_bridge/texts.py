"""Text as the model reads it: documents in a seeded order, cut into contexts of tokens, batched by length."""

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from simulator.checks import whole
from simulator.errors import RequestError
from simulator.rng import stream

STANDARD_LIBRARY = "stdlib"
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}
_WINDOW = 64
"""Batches within which contexts are sorted by length."""


@dataclass(frozen=True)
class Text:
    """Documents and how they are cut.

    Attributes:
        files: text files or folders of them; "stdlib" is the source of Python's standard library, without tests.
        context: tokens per context; the last context of a document may be shorter.
        seed: decides the order of the documents (and of the tokens, where they are shuffled).
        shuffled: a control: the tokens of a window of batches change places with each other, lengths stay.
    """

    files: tuple[str, ...]
    context: int = 128
    seed: int = 0
    shuffled: bool = False
    paths: tuple[Path, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        whole("context", self.context, 2)
        if not self.files:
            raise RequestError("no text; name files or folders, or stdlib for Python's own source")
        found: list[Path] = []
        for name in self.files:
            found += _files(name)
        if not found:
            raise RequestError(f"no text file in {', '.join(self.files)}; name files or folders with files")
        object.__setattr__(self, "paths", tuple(dict.fromkeys(found)))

    def fingerprint(self) -> str:
        """SHA-256 of the contents of all files, in the order in which they are named."""
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                with path.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
            except OSError as error:
                raise RequestError(f"cannot read {path}: {error.strerror}") from None
        return digest.hexdigest()

    def contexts(self, tokenizer: Any) -> Iterator[np.ndarray]:
        """Token ids, int32, of one context after the other; those of a single token are left out.

        Without special tokens: a context is exactly a stretch of the text.
        """
        for number in stream(self.seed, "documents").permutation(len(self.paths)):
            path = self.paths[number]
            try:
                text = path.read_text(encoding="utf-8", errors="replace")
            except OSError as error:
                raise RequestError(f"cannot read {path}: {error.strerror}") from None
            tokens = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int32)
            for start in range(0, len(tokens), self.context):
                part = tokens[start : start + self.context]
                if len(part) > 1:
                    yield part

    def batches(self, tokenizer: Any, size: int) -> Iterator[list[np.ndarray]]:
        """Lists of at most `size` contexts of similar length; the same lists however far they are read."""
        window: list[np.ndarray] = []
        number = 0
        for context in self.contexts(tokenizer):
            window.append(context)
            if len(window) == size * _WINDOW:
                yield from self._sorted(window, number, size)
                window, number = [], number + 1
        yield from self._sorted(window, number, size)

    def _sorted(self, window: list[np.ndarray], number: int, size: int) -> Iterator[list[np.ndarray]]:
        if self.shuffled and window:
            mixed = stream(self.seed, "shuffled tokens", number).permutation(np.concatenate(window))
            window = np.split(mixed, np.cumsum([len(part) for part in window])[:-1])
        # Full contexts keep their places, so that only the last batches of a window need padding.
        window = sorted(window, key=len, reverse=True)
        for start in range(0, len(window), size):
            yield window[start : start + size]

    def config(self) -> dict[str, Any]:
        """What identifies the text and its cut, JSON-able; says nothing of where the files are."""
        return {
            "sha256": self.fingerprint(), "files": len(self.paths), "context": self.context, "seed": self.seed,
            "shuffled": self.shuffled,
        }  # fmt: skip


def pad(contexts: Sequence[np.ndarray], filler: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Contexts side by side, padded on the right.

    Returns:
        Token ids and mask (1 where there is a token), both (contexts, longest) int64.
    """
    longest = max(len(part) for part in contexts)
    tokens = np.full((len(contexts), longest), filler, np.int64)
    mask = np.zeros((len(contexts), longest), np.int64)
    for row, part in enumerate(contexts):
        tokens[row, : len(part)], mask[row, : len(part)] = part, 1
    return tokens, mask


def _files(name: str) -> list[Path]:
    if name == STANDARD_LIBRARY:
        root = Path(sysconfig.get_path("stdlib"))
        return [p for p in sorted(root.rglob("*.py")) if not _LEFT_OUT & set(p.relative_to(root).parts)]
    path = Path(name).expanduser()
    if path.is_dir():
        return [p for p in sorted(path.rglob("*")) if p.is_file() and not _hidden(p.relative_to(path))]
    if not path.is_file():
        raise RequestError(f"{name} is no file and no folder; name text files, or stdlib for Python's own source")
    return [path]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
