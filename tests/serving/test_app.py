"""What the command makes of Serve's tracebacks, and what the application logs."""

import json
import logging

import pytest

from raystyle.config import ServeConfig
from raystyle.flags import to_dict
from raystyle.serving.access import REQUESTS
from raystyle.serving.app import Ingress, _log, _reason
from raystyle.serving.limits import limits

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


@pytest.fixture
def unchanged_logging():
    logger = logging.getLogger("raystyle")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.level, logger.propagate = before


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_line_of_the_log_is_an_object(tmp_path, unchanged_logging):
    _log(str(tmp_path / "log"))
    REQUESTS.info("%s", json.dumps({"id": "req-1"}))
    logging.getLogger("raystyle.serving.registry").warning("the adapter `%s` is refused:\nno", "甲")
    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("raystyle.serving.replica").exception("looking failed")
    request, warning, fault = lines(tmp_path / "log")
    assert request == {"id": "req-1"}
    assert warning == {
        "level": "WARNING",
        "logger": "raystyle.serving.registry",
        "message": "the adapter `甲` is refused:\nno",
    }
    assert fault.pop("exc").endswith("ValueError: inside")
    assert fault == {"level": "ERROR", "logger": "raystyle.serving.replica", "message": "looking failed"}


def test_limits_are_logged_by_whatever_started_it(tmp_path, unchanged_logging):
    class Handle:
        def options(self, **_):
            return self

    config = ServeConfig(model_name_or_path="base", log_file=str(tmp_path / "log"), max_queue=7)
    Ingress(to_dict(config), Handle())
    assert [line["message"].removeprefix("limit: ") for line in lines(tmp_path / "log")] == limits(config)
    assert any("7 waiting" in line for line in limits(config)) and any("800; 15 s" in line for line in limits(config))
