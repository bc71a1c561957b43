"""The author's characteristic words, from the evaluation of a run: the page marks them in what a model wrote."""

from raystyle.serving.finding import Found
from raystyle.serving.inspection import parse
from raystyle.serving.snapshot import read

EVALUATION = "evaluation.json"
MAX_BYTES = 64 << 20
MAX_WORDS, MAX_CHARS = 80, 24


def author_words(found: Found) -> tuple[str, ...]:
    """The terms of `reference.markers` in the evaluation.json of the adapter's run, the surest first, as far as they are
    any; none where there is no run or no evaluation.

    Raises `ModelError` for a file that is no JSON object or too large, `StorageError` where it cannot be read.
    """
    if found.run is None or EVALUATION not in found.run_files:
        return ()
    reference = parse(EVALUATION, read(found.run, EVALUATION, found.root, MAX_BYTES)).get("reference")
    markers = reference.get("markers") if isinstance(reference, dict) else None
    terms = [marker.get("term") for marker in markers if isinstance(marker, dict)] if isinstance(markers, list) else []
    good = [term for term in terms if isinstance(term, str) and 0 < len(term) <= MAX_CHARS]
    return tuple(dict.fromkeys(good))[:MAX_WORDS]
