"""Text as training data: characters become token ids, and the text is cut into windows.

Promises: the vocabulary is the characters that occur, in order of their code points; windows follow each other, each
one beginning with the last character of the one before, so that every character is predicted once in a pass; the test
windows are the end of the text, of which no character is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.errors import UsageError

TEST_SHARE: Final = 10
"""One window in ten, at least one, is held out."""
MAX_VOCABULARY: Final = 4096


@dataclass(frozen=True, slots=True)
class TextWindows:
    """train, test: token ids, [windows, context + 1]: inputs are all but the last of a window, labels all but the
    first. Character i of `vocabulary` is token i.
    """

    train: npt.NDArray[Any]
    test: npt.NDArray[Any]
    vocabulary: str


def cut_text(text: str, context: int, name: str) -> TextWindows:
    """Raises UsageError U-39 if there are fewer than two windows, or more kinds of characters than 4096."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    characters, tokens = np.unique(codes, return_inverse=True)
    if len(characters) > MAX_VOCABULARY:
        raise UsageError(
            f"{name} has {len(characters)} kinds of characters",
            code="U-39",
            hint=f"at most {MAX_VOCABULARY}: is it text in UTF-8?",
        )
    windows = (len(tokens) - 1) // context
    if windows < 2:
        raise UsageError(
            f"{name} has {len(tokens)} characters: too few for a context of {context}",
            code="U-39",
            hint="use a smaller context or a longer text",
        )
    narrow = tokens.astype(np.uint8 if len(characters) <= 256 else np.int16)
    cut = np.stack([narrow[start : start + context + 1] for start in range(0, windows * context, context)])
    held_out = max(1, windows // TEST_SHARE)
    vocabulary = "".join(map(chr, characters))
    return TextWindows(cut[: windows - held_out], cut[windows - held_out :], vocabulary)
