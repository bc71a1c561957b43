"""The OpenAPI document: routes, what they take and what they answer. Bodies come from `protocol`, so that what is documented
is what is checked; the tests hold real answers against the shapes here."""

import functools
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter
from typing_extensions import TypedDict

from raystyle import __version__
from raystyle.serving.errors import CODES
from raystyle.serving.protocol import IGNORED, NO_EFFECT, ChatRequest, CompareRequest, CompletionRequest

Reason = Literal["stop", "length"]
REF = "#/components/schemas/{model}"


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str


class Error(TypedDict):
    error: ErrorDetail


class Status(TypedDict):
    status: str


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TextLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(TypedDict):
    index: int
    seed: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Reason


class Completion(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    adapter_digest: str | None
    choices: list[TextChoice]
    usage: Usage


class ChatToken(TypedDict):
    token: str
    logprob: float | None
    bytes: list[int]


class ChatTokenTop(ChatToken):
    top_logprobs: list[ChatToken]


class ChatLogprobs(TypedDict):
    content: list[ChatTokenTop]
    refusal: None


class ChatAnswer(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    index: int
    seed: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Reason


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    adapter_digest: str | None
    choices: list[ChatChoice]
    usage: Usage


class CellStart(TypedDict):
    cell: int
    model: str
    adapter_digest: str | None
    seed: int
    temperature: float
    lora_scale: float


class CellText(CellStart):
    text: str
    finish_reason: Reason | None
    tokens: int


class Cell(CellText, total=False):
    error: ErrorDetail


class Comparison(TypedDict):
    object: Literal["compare"]
    id: str
    created: int
    prompt: str
    cells: list[Cell]
    usage: Usage


class Model(TypedDict):
    """`effect` is the largest difference that an adapter makes to a prompt's log-probabilities, in nats."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["raystyle"]
    parent: str | None
    kind: Literal["base", "adapter", "checkpoint"]
    digest: str | None
    step: int | None
    effect: float | None
    base_verified: bool
    markers: list[str]


class RefusedModel(TypedDict):
    id: str
    reason: str


class Models(TypedDict):
    object: Literal["list"]
    data: list[Model]
    refused: list[RefusedModel]
    engine: str
    max_length: int
    can_scale: bool
    has_chat_template: bool


ANSWERS: dict[str, Any] = {
    shape.__name__: shape for shape in (Error, Status, Completion, ChatCompletion, Comparison, Model, Models)
}
REQUESTS: tuple[type[BaseModel], ...] = (CompletionRequest, ChatRequest, CompareRequest)


@functools.cache
def document() -> dict[str, Any]:
    """The whole document; not to be changed."""
    schemas = _schemas()
    in_path = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    paths: dict[str, Any] = {
        "/healthz": {"get": _route("Whether the server runs; open to all", "Status")},
        "/readyz": {"get": _route("Whether the model answers", "Status")},
        "/metrics": {"get": _route("Metrics for Prometheus", media="text/plain")},
        "/openapi.json": {"get": _route("This document", media="application/json")},
        "/": {"get": _route("The page", media="text/html")},
        "/v1/models": {"get": _route("The base, adapters and checkpoints", "Models")},
        "/v1/models/{model}": {"get": _route("One of them", "Model") | {"parameters": [in_path]}},
        "/v1/completions": {"post": _route("Continue a text", "Completion", CompletionRequest)},
        "/v1/chat/completions": {"post": _route("Answer a chat", "ChatCompletion", ChatRequest)},
        "/v1/compare": {"post": _route("Continue a text by several models side by side", "Comparison", CompareRequest)},
        "/admin/refresh": {"post": _route("Look for adapters now; needs an admin key", "Models")},
    }
    schemes = {"bearer": {"type": "http", "scheme": "bearer"}, "basic": {"type": "http", "scheme": "basic"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "raystyle", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": schemes},
        "security": [{}, {"bearer": []}, {"basic": []}],
    }


def _route(
    summary: str, answer: str | None = None, request: type[BaseModel] | None = None, media: str = "application/json"
) -> dict[str, Any]:
    content: dict[str, Any] = {media: {"schema": {"$ref": REF.format(model=answer)} if answer else {}}}
    if request is not None:
        content["text/event-stream"] = {}  # a schema here would speak of each event, as OpenAPI 3.2 reads it
    error = {"description": "Error", "content": {"application/json": {"schema": {"$ref": REF.format(model="Error")}}}}
    responses = {"200": {"description": "As asked", "content": content}}
    responses |= {str(status): error for status in sorted({status for status, _ in CODES.values()})}
    route: dict[str, Any] = {"summary": summary, "responses": responses}
    if request is not None:
        body = {"application/json": {"schema": {"$ref": REF.format(model=request.__name__)}}}
        route["requestBody"] = {"required": True, "content": body}
    return route


def _schemas() -> dict[str, Any]:
    Mode = Literal["validation", "serialization"]
    answers: list[tuple[str, Mode, TypeAdapter[Any]]] = [
        (name, "serialization", TypeAdapter(shape)) for name, shape in ANSWERS.items()
    ]
    _, defined = TypeAdapter.json_schemas(answers, ref_template=REF)
    found: dict[str, Any] = dict(defined["$defs"])
    for request in REQUESTS:
        schema = request.model_json_schema(ref_template=REF)
        parts = schema.pop("$defs", {})
        schema["properties"] |= {name: {"enum": [*values, None]} for name, values in NO_EFFECT.items()}
        schema["properties"] |= {name: {} for name in IGNORED}
        for name, part in [*parts.items(), (request.__name__, schema)]:
            found[name] = _with_nulls(part)
    return found


def _with_nulls(schema: dict[str, Any]) -> dict[str, Any]:
    """A null is no value, for what need not be there and for what is not known."""
    null = {"type": "null"}
    properties = {
        name: own if name in schema.get("required", ()) or not own or "enum" in own else {"anyOf": [own, null]}
        for name, own in schema["properties"].items()
    }
    return schema | {"properties": properties, "additionalProperties": null}
