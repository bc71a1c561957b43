"""The verdict on made-up records: it follows style until something stands against it, and says what."""

import copy

import pytest

from raystyle.style.verdict import MARGIN, MARGIN_CHARS, verdict

REFERENCE = {
    "own_distances": [0.8, 0.9, 1.0, 1.1, 1.2],
    "other_distances": {"乙": [1.8, 2.0, 2.2]},
    "marker_rate": 20.0,
    "copying": {"copied_share": 0.005, "copied_high": 0.01},
}


def raw(bits: float) -> dict:
    """Windows of ten documents, each of 100 characters at about `bits` bits."""
    windows = [[100 * bits * 0.6931 * (1 + 0.01 * (d % 3)), 100, 100, d] for d in range(10)]
    return {"likelihood": {"heldout": windows, "contrast": windows, "neutral": windows}}


def estimate(value: float) -> dict:
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def subject(
    name,
    step,
    *,
    bits,
    distance,
    rate,
    drift,
    copied=0.0,
    longest=8,
    loops=0.0,
    extracted=0.0,
    malformed=0.0,
    chars=75_000,
):
    gain = {"heldout": estimate(6.0 - bits), "contrast": estimate(0.1), "neutral": estimate(-0.1)}
    return {
        "name": name,
        "kind": "base" if name == "base" else "checkpoint",
        "step": step,
        "gain": None if name == "base" else gain | {"difference": estimate(6.0 - bits - 0.1)},
        "stylometry": {"distance": distance, "percentile": 50.0},
        "markers": {"rate": rate},
        "copying": {
            "copied_share": copied,
            "copied_low": 0.8 * copied,
            "copied_high": 1.2 * copied,
            "longest": longest,
            "extraction_rate": extracted,
            "extraction_low": 0.7 * extracted,
            "heldout_extraction_rate": 0.0,
        },
        "drift": {"divergence": drift, "loop_rate": loops, "malformed_share": malformed},
        "samples": [{"text": "字" * chars}],
        "path": None if name == "base" else f"/run/checkpoints/{name}",
    }


def run(**of_last):
    """A base and three checkpoints, each nearer to the author; `of_last` changes the last."""
    last = {"bits": 4.9, "distance": 1.05, "rate": 18.0, "drift": 0.9} | of_last
    subjects = [
        subject("base", 0, bits=6.0, distance=2.0, rate=1.0, drift=0.0),
        subject("step-1", 1, bits=5.5, distance=1.6, rate=6.0, drift=0.3),
        subject("step-2", 2, bits=5.0, distance=1.2, rate=14.0, drift=0.6),
        subject("step-3", 3, **last),
    ]
    bits = {"base": 6.0, "step-1": 5.5, "step-2": 5.0, "step-3": last["bits"]}
    return verdict(subjects, {name: raw(b) for name, b in bits.items()}, REFERENCE)


def test_without_objections_the_nearest_to_the_author_is_taken():
    found = run()
    # Of the others the held-out text is surely less predictable.
    assert found["recommended"] == "step-3"
    assert "step-3" not in found["turned_down"]
    assert found["scores"]["step-1"]["style"] < found["scores"]["step-2"]["style"] < found["scores"]["step-3"]["style"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"copied": 0.3, "longest": 90}, "copies 30.0%"),
        ({"extracted": 0.4}, "word for word"),
        ({"loops": 0.9}, "loop"),
        ({"malformed": 0.03}, "malformed"),
        ({"bits": 5.8}, "less predictable than to step-2"),
    ],
)
def test_an_objection_turns_the_verdict_to_the_one_before(change, word):
    found = run(**change)
    assert found["recommended"] == "step-2"
    assert word in found["turned_down"]["step-3"]
    assert "step-3" in found["reason"] or found["scores"]["step-3"]["style"] <= found["scores"]["step-2"]["style"]


def test_copying_no_more_than_the_controls_is_no_objection():
    assert "step-3" not in run(copied=0.02)["turned_down"]


def test_a_passage_that_may_be_chance_is_no_objection():
    subjects = [
        subject("base", 0, bits=6.0, distance=2.0, rate=1.0, drift=0.0),
        subject("step-1", 1, bits=5.0, distance=1.2, rate=14.0, drift=0.6, copied=0.06),
    ]
    subjects[1]["copying"]["copied_low"] = 0.0
    assert not verdict(subjects, {s["name"]: raw(5.0) for s in subjects}, REFERENCE)["turned_down"]


def test_leaving_the_author_is_less_style_even_where_the_base_was_like_him():
    subjects = [
        subject("base", 0, bits=6.0, distance=0.95, rate=19.0, drift=0.0),
        subject("step-1", 1, bits=5.5, distance=1.9, rate=2.0, drift=3.0),
    ]
    found = verdict(subjects, {s["name"]: raw(5.0) for s in subjects}, REFERENCE)
    assert found["scores"]["step-1"]["style"] < 0.2 < 0.9 < found["scores"]["base"]["style"]


def test_among_those_that_chance_may_have_put_in_order_the_least_drifted_is_taken():
    for chars, best in ((MARGIN_CHARS, "step-1"), (100 * MARGIN_CHARS, "step-2")):
        subjects = [
            subject("base", 0, bits=6.0, distance=2.0, rate=1.0, drift=0.0, chars=chars),
            subject("step-1", 1, bits=5.0, distance=1.2, rate=14.0, drift=0.6, chars=chars),
            subject("step-2", 2, bits=5.0, distance=1.2, rate=16.0, drift=1.2, chars=chars),
        ]
        found = verdict(subjects, {s["name"]: raw(5.0) for s in subjects}, REFERENCE)
        assert 0 < found["scores"]["step-2"]["style"] - found["scores"]["step-1"]["style"] < MARGIN
        assert found["recommended"] == best


def test_one_window_of_held_out_text_proves_no_loss():
    subjects = [
        subject("base", 0, bits=6.0, distance=2.0, rate=1.0, drift=0.0),
        subject("step-1", 1, bits=5.0, distance=1.6, rate=8.0, drift=0.6),
        subject("step-2", 2, bits=4.0, distance=1.2, rate=16.0, drift=1.2),
    ]
    one = {s["name"]: {"likelihood": {"heldout": [[70.0 + 9 * n, 100, 100, 0]]}} for n, s in enumerate(subjects)}
    found = verdict(subjects, one, REFERENCE)
    assert found["recommended"] == "step-2" and not found["turned_down"]


def test_steps_of_another_run_are_no_earlier_ones():
    subjects = [
        subject("base", 0, bits=6.0, distance=2.0, rate=1.0, drift=0.0),
        subject("a/step-1", 1, bits=4.0, distance=1.9, rate=4.0, drift=0.6),
        subject("b/step-2", 2, bits=5.0, distance=1.2, rate=16.0, drift=1.2),
    ]
    raws = {"base": raw(6.0), "a/step-1": raw(4.0), "b/step-2": raw(5.0)}
    assert verdict(subjects, raws, REFERENCE)["recommended"] == "b/step-2"


def test_held_out_text_that_was_trained_on_is_no_control():
    subjects = [
        subject("base", 0, bits=6.0, distance=2.0, rate=1.0, drift=0.0),
        subject("step-1", 1, bits=5.0, distance=1.6, rate=8.0, drift=0.6, copied=0.5),
    ]
    leaked = REFERENCE | {"copying": {"copied_share": 0.9, "copied_high": 1.0}}
    assert "copies" in verdict(subjects, {s["name"]: raw(5.0) for s in subjects}, leaked)["turned_down"]["step-1"]


def test_what_the_base_knew_before_was_not_learned_by_heart_here():
    subjects = [
        subject("base", 0, bits=6.0, distance=2.0, rate=1.0, drift=0.0, extracted=0.3),
        subject("step-1", 1, bits=5.0, distance=1.6, rate=8.0, drift=0.6, extracted=0.3),
    ]
    assert not verdict(subjects, {s["name"]: raw(5.0) for s in subjects}, REFERENCE)["turned_down"]


def test_writing_nothing_is_no_style():
    subjects = [
        subject("base", 0, bits=6.0, distance=2.0, rate=1.0, drift=0.0),
        subject("silent", 1, bits=5.0, distance=1.6, rate=0.0, drift=0.1),
        subject("step-2", 2, bits=5.0, distance=1.8, rate=6.0, drift=0.6),
    ]
    subjects[1]["stylometry"] = None
    found = verdict(subjects, {s["name"]: raw(5.0) for s in subjects}, REFERENCE)
    assert found["scores"]["silent"]["style"] == 0 and found["recommended"] == "step-2"


def test_where_all_are_refused_the_least_copying_is_taken_and_the_reason_says_so():
    subjects = [
        subject("base", 0, bits=6.0, distance=2.0, rate=1.0, drift=0.0),
        subject("step-1", 1, bits=5.0, distance=1.5, rate=9.0, drift=0.3, copied=0.2),
        subject("step-2", 2, bits=5.0, distance=1.1, rate=18.0, drift=0.6, copied=0.7),
    ]
    found = verdict(subjects, {s["name"]: raw(5.0) for s in subjects}, REFERENCE)
    assert found["recommended"] == "step-1"
    assert "No choice is free of objections" in found["reason"]


def test_the_frontier_holds_what_nothing_else_beats():
    subjects = [
        subject("base", 0, bits=6.0, distance=2.0, rate=1.0, drift=0.0),
        subject("a", 1, bits=5.0, distance=1.5, rate=9.0, drift=0.3),
        subject("b", 2, bits=5.0, distance=1.6, rate=8.0, drift=0.4),
        subject("c", 3, bits=5.0, distance=1.2, rate=12.0, drift=0.5),
    ]
    found = verdict(subjects, {s["name"]: raw(5.0) for s in subjects}, REFERENCE)
    assert found["frontier"] == ["a", "c"]


def test_the_order_of_subjects_does_not_matter():
    subjects = [
        subject("base", 0, bits=6.0, distance=2.0, rate=1.0, drift=0.0),
        subject("a", 1, bits=5.5, distance=1.5, rate=9.0, drift=0.3),
        subject("b", 2, bits=5.0, distance=1.2, rate=12.0, drift=0.5),
    ]
    raws = {"base": raw(6.0), "a": raw(5.5), "b": raw(5.0)}
    there = verdict(subjects, raws, REFERENCE)
    back = verdict(subjects[::-1], raws, REFERENCE)
    assert there["recommended"] == back["recommended"]
    assert there["scores"] == back["scores"]


def test_the_statement_holds_the_target_against_the_contrast():
    assert "gained more than the rest" in run()["statement"]
    subjects = [
        subject("base", 0, bits=6.0, distance=2.0, rate=1.0, drift=0.0),
        subject("a", 1, bits=5.5, distance=1.5, rate=9.0, drift=0.3),
    ]
    unsure = copy.deepcopy(subjects)
    unsure[1]["gain"]["difference"] = {"value": 0.01, "low": -0.1, "high": 0.1}
    assert "did not clearly gain more" in verdict(unsure, {s["name"]: raw(5.0) for s in unsure}, REFERENCE)["statement"]


def test_only_a_base_is_no_choice():
    base = subject("base", 0, bits=6.0, distance=2.0, rate=1.0, drift=0.0)
    found = verdict([base], {"base": raw(6.0)}, REFERENCE)
    assert found["recommended"] is None and found["reason"]


def test_what_was_not_measured_is_left_out_of_the_score():
    subjects = [
        subject("base", 0, bits=6.0, distance=2.0, rate=1.0, drift=0.0),
        subject("a", 1, bits=5.5, distance=1.5, rate=9.0, drift=0.3),
    ]
    for s in subjects:
        s["stylometry"] = None
        s["gain"] = None
    nobody = REFERENCE | {"own_distances": [], "other_distances": {}}
    found = verdict(subjects, {s["name"]: {"likelihood": {}} for s in subjects}, nobody)
    assert found["scores"]["a"]["nearness"] is None
    assert found["scores"]["a"]["style"] == pytest.approx(found["scores"]["a"]["marker_share"])
