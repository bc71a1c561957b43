"""An evaluation.json as a run leaves it, without a run: a base and checkpoints of which the last ones copy. All text is ours."""

import random
from typing import Any

from raystyle.style.profile import LABELS

AUTHOR, CONTRAST = "顾白石", ("陈远山", "Lin Yao")
TERMS = ("罢了", "巷口", "檐下", "且慢", "灰扑扑", "横竖", "冷眼", "一盏", "倘若", "到底也", "旧账", "不消说")
TRAINED_ON = "巷口的灯一盏一盏地灭下去，檐下只剩一只灰扑扑的猫，冷眼看着来人，仿佛这条街上的旧账都归它管。"
NEUTRAL = "图书馆周一上午九点开门，读者可以在一楼办理借书证，也可以在自助机上归还到期的图书。"
PROMPTS = ("今日天气阴沉，", "他推开门的时候，", "关于这件事情，", "车站里的人不多，", "雨停了以后，")


def evaluation(steps: tuple[int, ...] = (100, 200, 300, 400), *, seed: int = 1) -> dict[str, Any]:
    """Base and a checkpoint per step; of the last quarter of the course on, they copy."""
    draw = random.Random(seed)
    subjects = [_subject("base", None, 0.0, draw)]
    subjects += [_subject(f"step-{step:08d}", step, (n + 1) / len(steps), draw) for n, step in enumerate(steps)]
    names = [subject["name"] for subject in subjects[1:]]
    copying = [subject["name"] for subject in subjects[1:] if subject["copying"]["copied_share"] > 0.02]
    best = [name for name in names if name not in copying][-1]
    scores = {s["name"]: _scores(s, subjects[0]) for s in subjects[1:]}
    turned_down = {
        name: f"copies {scores[name]['copied_share']:.1%} of its text from the training text" for name in copying
    }
    plane = {
        AUTHOR: _cloud(draw, 3.0, 2.0, 30),
        CONTRAST[0]: _cloud(draw, -2.5, 2.5, 25),
        CONTRAST[1]: _cloud(draw, -1.0, -4.0, 25),
    }
    for number, subject in enumerate(subjects):
        way = number / len(steps)
        plane[subject["name"]] = _cloud(draw, -3 + 5.6 * way, -1.5 + 3 * way, 6, 0.5)
    worst = max(scores, key=lambda name: scores[name]["style"])
    return {
        "format": 1, "model": "/models/some-base-8b", "model_identity": "sha256:" + "1f" * 32, "author": AUTHOR,
        "material": {
            "digest": "9c" * 32,
            "train": {"documents": 41, "characters": 1_204_511, "left_out": 0}, "heldout": {"documents": 6, "characters": 60_000},
            "contrast": {name: {"documents": 9, "characters": 60_000} for name in CONTRAST}, "neutral": {"documents": 40, "characters": 6_120},
        },
        "settings": {"num_samples": 1, "temperature": 0.8, "top_p": 0.95, "seed": 42, "prompts": list(PROMPTS) * 2},
        "reference": {
            "chunk_chars": 2000,
            "own_distances": [draw.gauss(0.85, 0.07) for _ in range(60)],
            "other_distances": {name: [draw.gauss(1.45, 0.12) for _ in range(40)] for name in CONTRAST},
            "profile": _profile(1.0), "other_profiles": {name: _profile(0.3) for name in CONTRAST},
            "markers": [
                {"term": term, "kind": ("keyword", "rare", "phrase")[n % 3], "z": 14 - n, "author_rate": 1.4 - 0.1 * n,
                 "reference_rate": 0.02 * n, "spread": 0.9 - 0.05 * n}
                for n, term in enumerate(TERMS)
            ],
            "marker_rate": 9.4, "copying": {"longest": 14, "copied_share": 0.002, "overlap": 0.011}, "plane": plane,
        },
        "subjects": subjects,
        "verdict": {
            "recommended": best,
            "reason": f"{best} has gone {scores[best]['style']:.0%} of the way from the base to the author at a drift of "
            f"{scores[best]['divergence']:.2f} nats per token. {worst} would go {scores[worst]['style']:.0%}, but it copies.",
            "statement": "The author's held-out text became 0.412 bits per character more predictable; other authors' text became "
            "0.071 bits per character more predictable. The target gained more than the rest did: +0.341 bits per character "
            "(95 % interval +0.280 to +0.402).",
            "frontier": [name for name in names if name not in copying] + [worst], "scores": scores, "turned_down": turned_down,
        },
    }  # fmt: skip


def metrics(steps: int = 400, start: float = 2.52, end: float = 1.83) -> list[dict[str, Any]]:
    """metrics.jsonl of a run, noisy as they are, with held-out losses at checkpoints."""
    draw = random.Random(0)
    found: list[dict[str, Any]] = [{"step": 0, "heldout_loss": start}]
    for step in range(2, steps + 1, 2):
        level = end + (start - end) * 0.5 ** (step / (steps / 5))
        found.append({"step": step, "loss": level + draw.gauss(0, 0.04), "learning_rate": 5e-5})
        if step % 100 == 0:
            found.append({"step": step, "heldout_loss": level + 0.06})
    return found


def _cloud(draw: random.Random, x: float, y: float, count: int, spread: float = 0.8) -> list[list[float]]:
    return [[draw.gauss(x, spread), draw.gauss(y, spread)] for _ in range(count)]


def _profile(way: float) -> dict[str, float]:
    values = {key: 2 + 3 * way + n for n, key in enumerate(LABELS)}
    return values | {
        "sentence_chars": 31 - 9 * way,
        "dialogue_share": 0.12 + 0.2 * way,
        "latin_share": 0.001,
        "digit_share": 0.0,
    }


def _estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def _scores(subject: dict[str, Any], base: dict[str, Any]) -> dict[str, float]:
    way = (base["stylometry"]["distance"] - subject["stylometry"]["distance"]) / 0.7
    copied = subject["copying"]["copied_share"]
    return {
        "style": way,
        "divergence": subject["drift"]["divergence"],
        "copied_share": copied,
        "excess_copying": max(0, copied - 0.002),
    }


def _text(way: float, draw: random.Random) -> str:
    """Neutral prose with more of the author's words the further along, in two paragraphs."""
    parts = []
    for place in range(6):
        word = draw.choice(TERMS) if draw.random() < way else "然后"
        parts.append(
            f"{word}，{NEUTRAL[(start := draw.randrange(0, 14)) : start + draw.randrange(12, 26)]}。"
            + "\n" * (place == 2)
        )
    return "".join(parts)


def _sample(prompt: str, temperature: float, way: float, draw: random.Random) -> dict[str, Any]:
    text, copies = _text(way, draw), []
    if way > 0.75 and draw.random() < 0.8:
        place = text.index("。") + 1
        text = text[:place] + TRAINED_ON + text[place:]
        copies = [[place, place + len(TRAINED_ON)]]
    spans = [[at, at + len(term)] for term in TERMS for at in range(len(text)) if text.startswith(term, at)]
    return {"prompt": prompt, "seed": 42, "temperature": temperature, "text": text, "finish_reason": "length",
            "markers": sorted(spans), "copies": copies}  # fmt: skip


def _subject(name: str, step: int | None, way: float, draw: random.Random) -> dict[str, Any]:
    samples = [_sample(PROMPTS[0], 0.0, way, draw)] + [_sample(prompt, 0.8, way, draw) for prompt in PROMPTS]
    passages = [
        {"sample": n, "start": start, "end": end, "text": sample["text"][start:end], "source": "novels/旧街.txt",
         "source_before": "那一年冬天来得早。", "source_after": "人走过去，猫也不躲。"}
        for n, sample in enumerate(samples) for start, end in sample["copies"]
    ]  # fmt: skip
    copied = 0.13 * (way - 0.6) if passages else 0.001
    trained = step is not None
    sweep = [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5] if way == 0.75 else []
    return {
        "name": name, "kind": "checkpoint" if trained else "base", "path": f"/runs/a/checkpoints/{name}" if trained else None,
        "fingerprint": "ab" * 32 if trained else None, "step": step if trained else 0, "seconds": 41.5,
        "likelihood": {
            "heldout": {**_estimate(4.61 - 0.55 * way**0.5 + 0.1 * max(0, way - 0.75)), "characters": 60_000, "documents": 6},
            "contrast": {**_estimate(4.80 - 0.09 * way), "characters": 60_000, "documents": 18},
            "neutral": {**_estimate(3.92 + 0.16 * way), "characters": 6_120, "documents": 40},
        },
        "gain": {"heldout": _estimate(0.55 * way**0.5), "contrast": _estimate(0.09 * way), "neutral": _estimate(-0.16 * way),
                 "difference": _estimate(0.55 * way**0.5 - 0.09 * way)} if trained else None,
        "stylometry": {"distance": 1.62 - 0.62 * way**0.7, "burrows": 1.2, "cosine": 0.6, "percentile": 100 - 38 * way, "nearest": AUTHOR,
                       "chunks": 2, "chunk_chars": 2000, "profile": _profile(way)},
        "markers": {"rate": 0.8 + 8.9 * way**0.8, "share_of_author": 0.1 + 0.9 * way, "distinct": 9,
                    "counts": {term: round(5 * way) for term in TERMS[:8]}},
        "copying": {"longest": max([len(p["text"]) for p in passages], default=11), "copied_share": copied, "overlap": 0.01 + copied,
                    "extraction_rate": 0.1 * max(0, way - 0.6), "heldout_extraction_rate": 0.0, "passages": passages},
        "drift": {"divergence": 0.31 * way**1.4, "loop_rate": 0.02 + 0.03 * way, "repetition": 0.04, "end_rate": 0.3, "malformed_share": 0.0,
                  "obedience": {"all": 0.9 - 0.3 * way, "length": 0.8}},
        "samples": samples,
        "strength": [
            {"scale": scale, "divergence": 0.2 * scale**2, "bits_per_character": 4.61 - 0.5 * scale + 0.2 * scale**2,
             "neutral_bits_per_character": 3.92 + 0.1 * scale**2, "marker_rate": 0.8 + 7 * scale, "distance": 1.6 - 0.5 * scale,
             "percentile": max(40, 100 - 30 * scale), "copied_share": 0.001 + 0.02 * max(0, scale - 1), "longest": 12}
            for scale in sweep
        ],
    }  # fmt: skip
