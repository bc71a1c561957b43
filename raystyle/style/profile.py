"""How a text is built: lengths of sentences and paragraphs, how much is spoken, which marks it uses.

For a person to read beside the distances of `stylometry`, which say how near but not in what. Rates are per thousand
characters, counted without whitespace; a text of none has 0 everywhere.
"""

import re
from collections.abc import Sequence

import numpy as np

# Marks that mean the same in Chinese and Western print.
_MARKS = {
    "comma": "，,", "enumeration_comma": "、", "full_stop": "。", "period": ".", "semicolon": "；;", "colon": "：:",
    "question": "？?", "exclamation": "！!", "quote": "“”「」『』\"", "dash": "—", "ellipsis": "…", "parenthesis": "（）()",
    "title_mark": "《》〈〉",
}  # fmt: skip
_SENTENCE = re.compile(r"[^。！？!?…\n]+(?:[。！？!?…]+[”’」』）)\"]*|\n|$)|[。！？!?…]+")
_PERIOD = re.compile(r"(?<=[.])\s+(?=[\"“A-Z])")
# A quotation ends in its own paragraph.
_SPOKEN = re.compile(r"“[^“”\n]*”|「[^「」\n]*」|\"[^\"\n]*\"")
_SPACE, _LATIN, _DIGIT = re.compile(r"\s"), re.compile(r"[A-Za-zＡ-Ｚａ-ｚ]"), re.compile(r"[0-9０-９]")

LABELS: dict[str, str] = {
    "sentence_chars": "characters in a sentence",
    "sentence_chars_sd": "standard deviation of characters in a sentence",
    "paragraph_chars": "characters in a paragraph",
    "dialogue_share": "share of characters in quotation marks",
    "latin_share": "share of Latin letters",
    "digit_share": "share of digits",
    **{f"{name}_rate": f"{' '.join(marks)} per 1,000 characters" for name, marks in _MARKS.items()},
}


def profile(texts: Sequence[str]) -> dict[str, float]:
    """The measures that `LABELS` names, over all texts together; their order does not matter."""
    solid = [_SPACE.sub("", text) for text in texts]
    total = max(1, sum(map(len, solid)))
    sentences = np.array(sorted(n for text in texts for n in _sentences(text)) or [0])
    paragraphs = [n for text in texts for line in text.split("\n") if (n := len(_SPACE.sub("", line)))]
    spoken = sum(len(_SPACE.sub("", found)) for text in texts for found in _SPOKEN.findall(text))
    values = {
        "sentence_chars": float(sentences.mean()),
        "sentence_chars_sd": float(sentences.std()),
        "paragraph_chars": sum(paragraphs) / max(1, len(paragraphs)),
        "dialogue_share": spoken / total,
        "latin_share": sum(len(_LATIN.findall(text)) for text in solid) / total,
        "digit_share": sum(len(_DIGIT.findall(text)) for text in solid) / total,
    }
    for name, marks in _MARKS.items():
        values[f"{name}_rate"] = 1000 * sum(text.count(mark) for text in solid for mark in marks) / total
    return values


def _sentences(text: str) -> list[int]:
    """Characters of each sentence; a line break ends one."""
    found = [part for sentence in _SENTENCE.findall(text) for part in _PERIOD.split(sentence)]
    return [length for sentence in found if (length := len(_SPACE.sub("", sentence)))]
