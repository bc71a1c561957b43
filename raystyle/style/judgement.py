"""What a model's record says beside the author: likelihood gained, nearness of style, markers, copies, drift.

A `Yardstick` is made once of an evaluation's texts; every subject is then held against it. Needs no model, so that what
was measured on a GPU can be judged again anywhere.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raystyle.style import copying, drift, likelihood, markers, profile, stylometry
from raystyle.style.likelihood import Scored
from raystyle.style.material import Document, Material, counts, limited, pieces

# Stylometry compares pieces of one length: the longest of these of which the author has enough to know his own spread.
CHUNK_CHARS, MIN_OWN_CHUNKS = (2000, 1000, 500), 20
# Profiles, keywords and distances are as good from two million characters as from a library.
MAX_AUTHOR_CHARS = 2_000_000
NEUTRAL = "neutral prose"
CONTEXT_CHARS = 60
MAX_PASSAGES = 20
RESAMPLES = 1000
# Held-out text of which so much stands in the training text is no test.
LEAK_SHARE = 0.2
PROBE_CHARS = 600
CONTROL_PIECE_CHARS, CONTROL_CHARS = 2000, 200_000


class Yardstick:
    """The author's own spread, the other authors, the markers, and where copies are looked for."""

    def __init__(self, material: Material, sample_chars: int = CHUNK_CHARS[0]) -> None:
        """`sample_chars`: what the subject that wrote least has written; all are compared at one size of chunk."""
        self.material, self.sample_chars = material, sample_chars
        self.train = [document.text for document in material.train]
        self.heldout = [document.text for document in material.heldout]
        self.index = copying.Index(self.train)
        self.warnings: list[str] = []
        self.others = {
            name: found
            for name, texts in material.by_author().items()
            if (found := self._untrained(name, _some(texts)))
        }
        neutral = [document.text for document in material.neutral]
        # Someone must stand beside the author; where nobody is given, neutral prose does.
        self.beside = self.others or {NEUTRAL: neutral}
        self.own = _some(self.train + self.heldout)
        self.chunk_chars = self._chunk_chars()
        self.reference = self._reference() if self.chunk_chars else None
        rest = [text for texts in self.beside.values() for text in texts]
        self.markers = markers.find_markers(_some(self.train or self.heldout), rest)
        self.marker_rate = markers.marker_rate(self.heldout or self.own, self.markers)
        self.common = copying.Index([*rest, *(neutral if self.others else [])])

    def _untrained(self, name: str, texts: list[str]) -> list[str]:
        """Another author's texts without those that were trained on: every copy would be a common phrase."""
        probes = [text[len(text) // 2 :][:PROBE_CHARS] for text in texts]
        kept = [
            text
            for text, probe in zip(texts, probes, strict=True)
            if copying.copied(self.index, [probe], None).copied_share < LEAK_SHARE
        ]
        if len(kept) < len(texts):
            self.warnings.append(
                f"{len(texts) - len(kept)} of {len(texts)} texts by {name} stand in the training text, and are left out of "
                "what is compared"
            )
        return kept

    def _chunk_chars(self) -> int:
        """The size of chunks that texts are compared at, 0 where nobody can be; what that leaves out is warned of."""
        own, sizes = sum(map(stylometry.size, self.own)), CHUNK_CHARS
        beside = {name: sum(map(stylometry.size, texts)) for name, texts in self.beside.items()}
        least = stylometry.MIN_CHUNKS * sizes[-1]
        short = {name: size for name, size in {self.material.author: own, **beside}.items() if size < least}
        self.warnings += [
            f"{size:,} characters by {name} are too few to know a style by: {least:,} are the least"
            for name, size in short.items()
        ]
        there = [size for name, size in beside.items() if name not in short]
        if self.material.author in short or not there:
            return 0
        most = min(
            own / MIN_OWN_CHUNKS, min(there) / stylometry.MIN_CHUNKS, self.sample_chars / (1 - stylometry.TOLERANCE)
        )
        chosen = next((size for size in sizes if size <= most), sizes[-1])
        if own < MIN_OWN_CHUNKS * chosen:
            self.warnings.append(
                f"{own:,} characters by {self.material.author} make {own // chosen} chunks of {chosen}: distances and "
                "percentiles from so few are rough"
            )
        return chosen

    def _reference(self) -> stylometry.Reference:
        least = stylometry.MIN_CHUNKS * self.chunk_chars
        self.beside = {name: texts for name, texts in self.beside.items() if sum(map(stylometry.size, texts)) >= least}
        found = stylometry.fit({self.material.author: self.own, **self.beside}, chunk_chars=self.chunk_chars)
        if self.sample_chars < (1 - stylometry.TOLERANCE) * self.chunk_chars:
            found = stylometry.resized(found, self.sample_chars)
            self.chunk_chars = found.chunk_chars
        return found

    def describe(self) -> dict[str, Any]:
        """The part of evaluation.json that is about texts alone, but for the plane, which the subjects belong to."""
        return {
            "chunk_chars": self.chunk_chars,
            **self._distances(),
            "profile": profile.profile(self.own),
            "other_profiles": {name: profile.profile(texts) for name, texts in self.beside.items()},
            "markers": [marker._asdict() for marker in self.markers],
            "marker_rate": self.marker_rate,
            "copying": self.heldout_copying,
        }

    def _distances(self) -> dict[str, Any]:
        """Distances to the author, of his own chunks and of every other author's."""
        if not self.reference:
            return {"own_distances": [], "other_distances": {}}
        author = self.material.author
        return {
            "own_distances": _rounded(stylometry.own_distances(self.reference, author, self.chunk_chars)),
            "other_distances": {
                name: _rounded(found)
                for name, found in stylometry.others_distances(self.reference, author).items()
                if name != author
            },
        }

    def plane(self, subjects: Mapping[str, Sequence[str]]) -> dict[str, list[list[float]]]:
        """Name -> points in the plane in which the authors differ most, of the authors and of each subject's samples."""
        if not self.reference:
            return {}
        placed = stylometry.plane(self.reference, subjects)
        return {name: [[round(x, 4), round(y, 4)] for x, y in points] for name, points in placed.items()}

    def _copying(self, texts: Sequence[str]) -> dict[str, Any]:
        found = copying.copied(self.index, texts, self.common)
        return {
            "longest": found.longest,
            "copied_share": found.copied_share,
            **_copied_interval(texts, found.passages),
            "overlap": found.overlap,
        }

    @functools.cached_property
    def heldout_copying(self) -> dict[str, Any]:
        """What unseen text of the author shares with the training text anyway, on some of it."""
        return self._copying([text for _, text in pieces(self.material.heldout, CONTROL_PIECE_CHARS, CONTROL_CHARS)])

    def doubts(self) -> list[str]:
        """What a reader of the evaluation should know of its texts."""
        found = list(self.warnings)
        share = self.heldout_copying["copied_share"]
        if share >= LEAK_SHARE:
            found.append(
                f"{share:.0%} of the held-out text stands in the training text too: what is measured on it says little; "
                "hold out other documents"
            )
        if not self.train:
            found.append("no training text: copies were not looked for")
        if not self.heldout:
            found.append("no held-out text: how predictable the author became was not measured")
        if self.material.left_out:
            found.append(
                f"copies were looked for in {sum(map(len, self.train)):,} characters of training text; {self.material.left_out:,} "
                "more were left out"
            )
        return found

    def judge(self, raw: Mapping[str, Any], base: Mapping[str, Any] | None) -> dict[str, Any]:
        """A subject's part of evaluation.json, from its record and the base's (None: it is the base, or not known)."""
        drawn = [sample for sample in raw["samples"] if sample["temperature"] > 0] or raw["samples"]
        texts = [sample["text"] for sample in drawn]
        copied = copying.copied(self.index, [sample["text"] for sample in raw["samples"]], self.common)
        return {
            "likelihood": {role: self._likelihood(raw, role) for role in ("heldout", "contrast", "neutral")},
            "gain": _gain(base, raw) if base is not None else None,
            "stylometry": self._stylometry(texts),
            "markers": self._markers(texts),
            "copying": {
                "longest": copied.longest,
                "copied_share": copied.copied_share,
                **_copied_interval([sample["text"] for sample in raw["samples"]], copied.passages),
                "overlap": copied.overlap,
                "extraction_rate": _extracted(raw["extraction"]["train"]),
                "extraction_low": _wilson_low(raw["extraction"]["train"]),
                "heldout_extraction_rate": _extracted(raw["extraction"]["heldout"]),
                "passages": self._passages(raw["samples"], copied.passages),
            },
            "drift": {
                "divergence": raw["divergence"],
                "loop_rate": drift.loop_rate(texts),
                "repetition": drift.repetition(texts),
                "end_rate": drift.end_rate([sample["finish_reason"] for sample in drawn]),
                "malformed_share": drift.malformed_share(texts),
                "obedience": raw["obedience"],
            },
            "samples": [
                dict(sample)
                | {
                    "markers": [list(span) for span in markers.marker_spans(sample["text"], self.markers)],
                    "copies": [[passage.start, passage.end] for passage in passages],
                }
                for sample, passages in zip(raw["samples"], copied.passages, strict=True)
            ],
        }

    def strength(self, swept: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The sweep's part: each scale with the measures that one chooses a strength by."""
        found = []
        for raw in swept:
            texts = [sample["text"] for sample in raw["samples"] if sample["temperature"] > 0]
            placed, copied = self._stylometry(texts), self._copying(texts)
            heldout, neutral = (self._likelihood(raw, role) for role in ("heldout", "neutral"))
            found.append(
                {
                    "scale": raw["scale"],
                    "divergence": raw["divergence"],
                    "bits_per_character": heldout["value"] if heldout else None,
                    "neutral_bits_per_character": neutral["value"] if neutral else None,
                    "marker_rate": markers.marker_rate(texts, self.markers),
                    "distance": placed["distance"] if placed else None,
                    "percentile": placed["percentile"] if placed else None,
                    "copied_share": copied["copied_share"],
                    "longest": copied["longest"],
                }
            )
        return found

    def _likelihood(self, raw: Mapping[str, Any], role: str) -> dict[str, Any] | None:
        scored = windows(raw, role)
        if not scored:
            return None
        characters = sum(window.characters for window in scored)
        return _estimate(likelihood.estimate(scored)) | {
            "characters": characters,
            "documents": len({window.document for window in scored}),
        }

    def _stylometry(self, texts: Sequence[str]) -> dict[str, Any] | None:
        """None where nothing was written at all, or nobody's style is known."""
        if not self.reference or not any(text.strip() for text in texts):
            return None
        placed = stylometry.placed(self.reference, self.material.author, texts)
        return placed._asdict() | {"profile": profile.profile(texts)}

    def _markers(self, texts: Sequence[str]) -> dict[str, Any]:
        found = markers.marker_counts(texts, self.markers)
        rate = markers.marker_rate(texts, self.markers)
        return {
            "rate": rate,
            "share_of_author": rate / self.marker_rate if self.marker_rate else None,
            "distinct": sum(count > 0 for count in found.values()),
            "counts": {term: count for term, count in found.items() if count},
        }

    def _passages(
        self, samples: Sequence[Mapping[str, Any]], found: Sequence[Sequence[copying.Passage]]
    ) -> list[dict[str, Any]]:
        """The longest copied passages, each with what stands around it where it comes from."""
        passages = []
        for number, (sample, of_sample) in enumerate(zip(samples, found, strict=True)):
            for passage in of_sample:
                text = sample["text"][passage.start : passage.end]
                source = self.material.train[passage.source_no]
                # White space may differ, so the passage's end in its source is only about here.
                start, end = passage.source_start, passage.source_start + len(text)
                passages.append(
                    {
                        "sample": number,
                        "start": passage.start,
                        "end": passage.end,
                        "text": text,
                        "source": source.source,
                        "source_before": source.text[max(0, start - CONTEXT_CHARS) : start],
                        "source_after": source.text[end : end + CONTEXT_CHARS],
                    }
                )
        return sorted(passages, key=lambda passage: passage["start"] - passage["end"])[:MAX_PASSAGES]


def windows(raw: Mapping[str, Any], role: str) -> list[Scored]:
    """The windows of a role's text as `likelihood` takes them."""
    return [
        Scored(nats, int(characters), int(tokens), int(document))
        for nats, characters, tokens, document in raw["likelihood"].get(role, [])
    ]


def _gain(base: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    before = {role: windows(base, role) for role in ("heldout", "contrast", "neutral")}
    after = {role: windows(raw, role) for role in before}
    found: dict[str, Any] = {
        role: _estimate(likelihood.gain(before[role], after[role])) if before[role] and after[role] else None
        for role in before
    }
    other = "contrast" if found["contrast"] else "neutral"
    both = found["heldout"] and found[other]
    difference = (
        likelihood.gain_difference(before["heldout"], after["heldout"], before[other], after[other]) if both else None
    )
    return found | {"difference": _estimate(difference) if difference else None}


def _estimate(found: likelihood.Estimate) -> dict[str, float | None]:
    """As JSON has it: no interval where there is one unit only to draw from."""
    return {name: None if math.isnan(value) else value for name, value in found._asdict().items()}


def _copied_interval(texts: Sequence[str], passages: Sequence[Sequence[copying.Passage]]) -> dict[str, float]:
    """A 95% bootstrap interval over texts for the share of their characters in copied passages (Efron & Tibshirani 1993)."""
    if not texts:
        return {"copied_low": 0.0, "copied_high": 0.0}
    characters_T = np.array([stylometry.size(text) for text in texts])
    copied_T = np.array(
        [
            sum(stylometry.size(text[passage.start : passage.end]) for passage in found)
            for text, found in zip(texts, passages, strict=True)
        ]
    )
    drawn_RT = np.random.default_rng(0).integers(0, len(texts), (RESAMPLES, len(texts)))
    shares_R = copied_T[drawn_RT].sum(1) / np.maximum(1, characters_T[drawn_RT].sum(1))
    low, high = np.quantile(shares_R, (0.025, 0.975))
    return {"copied_low": float(low), "copied_high": float(high)}


def _extracted(pairs: Sequence[Sequence[str]]) -> float | None:
    """Share of prefixes whose continuation is the text's own; None where there were none."""
    if not pairs:
        return None
    return sum(copying.is_extracted(continuation, truth) for continuation, truth in pairs) / len(pairs)


def _wilson_low(pairs: Sequence[Sequence[str]]) -> float:
    """The lower end of the share's 95% interval (Wilson 1927): one lucky prefix of a few says little."""
    n, share, z = len(pairs), _extracted(pairs), 1.96
    if not n or share is None:
        return 0.0
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n))


def _some(texts: Sequence[str]) -> list[str]:
    kept, _ = limited([Document("", "", text) for text in texts], MAX_AUTHOR_CHARS)
    return [document.text for document in kept]


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in np.asarray(values).ravel()]


def material_counts(material: Material) -> dict[str, Any]:
    """The part of evaluation.json that says what was compared."""
    contrast: dict[str, list[Document]] = {}
    for document in material.contrast:
        contrast.setdefault(document.author, []).append(document)
    return {
        "train": counts(material.train) | {"left_out": material.left_out},
        "heldout": counts(material.heldout),
        "contrast": {name: counts(documents) for name, documents in sorted(contrast.items())},
        "neutral": counts(material.neutral),
    }
