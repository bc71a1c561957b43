"""What the command makes of Serve's tracebacks."""

from raystyle.serving.app import _reason

TRACE = """Traceback (most recent call last):
  File "models.py", line 1, in identity
raystyle.errors.ModelError: its header cannot be understood: line 1

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "replica.py", line 2, in start
raystyle.errors.ModelError: `model.safetensors` is not safetensors: its header cannot be understood
hint: download the base model again
"""


def test_the_last_of_our_errors_is_the_reason_with_its_hint():
    assert _reason(TRACE) == (
        "`model.safetensors` is not safetensors: its header cannot be understood\nhint: download the base model again"
    )


def test_what_is_no_error_of_ours_is_shown_by_its_end():
    assert _reason("Traceback:\n  File x\nValueError: something else").endswith("ValueError: something else")
    assert _reason("") == ""
