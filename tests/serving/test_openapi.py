"""Requests made up from our own document, right and wrong ones, and answers held against it: schemathesis as a library, on
the application in this process."""

import dataclasses
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from scripted import Scripted, app_of

from raystyle.serving import openapi
from raystyle.serving.keys import Keys, read_keys

KEY = "k" * 24
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = [(method, path) for path, routes in openapi.document()["paths"].items() for method in routes]
WITH_BODY = [path for path, routes in openapi.document()["paths"].items() if "requestBody" in routes.get("post", {})]


class Short(Scripted):
    """Says little, whatever it is asked: answers of any length have the same shape."""

    def generate(self, generation: Any) -> Any:
        return super().generate(dataclasses.replace(generation, prompt="甲"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Keys:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(KEY)
    path.chmod(0o600)
    return read_keys(str(path))


def statuses(
    keys: Keys, method: str, path: str, mode: GenerationMode, *, examples: int = 25, backend: Any = None
) -> set[int]:
    """The statuses of so many requests, made from the document that the application hands out. Raises `FailureGroup` for
    an answer that is not as the document says."""
    app = app_of(backend or Short(), keys, keys, allowed_hosts=("localhost", "testserver"))
    headers = {"authorization": f"Bearer {KEY}"}
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
    found: set[int] = set()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            _name_a_model_that_is_there(case)
        found.add(case.call_and_validate(checks=CHECKS, headers=headers).status_code)

    ask()
    return found


def _name_a_model_that_is_there(case: Any) -> None:
    """No made-up name would ever be one."""
    for place, names in (("model", "style"), ("models", ["base", "style"])):
        if isinstance(case.body, dict) and place in case.body:
            case.body[place] = names
    if "model" in (case.path_parameters or {}):
        case.path_parameters["model"] = "style@step-20"


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_right_requests_are_answered_as_the_document_says(method, path, keys):
    found = statuses(keys, method, path, GenerationMode.POSITIVE)
    # What no schema says is refused: `best_of` beside another `n`, too many choices.
    assert 200 in found and found <= {200, 400}


@pytest.mark.parametrize("path", WITH_BODY)
def test_wrong_requests_are_refused_as_the_document_says(path, keys):
    assert statuses(keys, "post", path, GenerationMode.NEGATIVE) <= {400, 413, 431}


def test_an_answer_that_the_document_does_not_know_is_found(keys, monkeypatch):
    class Broken(Scripted):
        def generate(self, generation):
            raise RuntimeError

    asked = ("post", "/v1/completions", GenerationMode.POSITIVE)
    with pytest.raises(FailureGroup, match="Server error"):
        statuses(keys, *asked, backend=Broken())
    monkeypatch.setattr("raystyle.serving.completions.usage", lambda record: {"prompt_tokens": 1})
    with pytest.raises(FailureGroup, match="Response violates schema"):
        statuses(keys, *asked)
