"""What may be asked: the bodies of OpenAI's completions and chat, and of our comparison.

Nothing is guessed and nothing is dropped: a key that is not known, or that asks for what cannot be done, is refused by
name. A null is the same as leaving the key out, as with OpenAI. Only beside a part's text may stand anything: notes of clients.
"""

import difflib
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from raystyle.serving.errors import refuse
from raystyle.serving.strict_json import SHOWN_CHARS, load_json

MAX_PROMPTS, MAX_MESSAGES = 2048, 1024
MAX_STOPS, MAX_STOP_CHARS = 16, 256  # OpenAI takes 4
MAX_SEED = 2**63 - 1
LEAST_TOP_P = 1e-9  # leaves the likeliest token alone, in 32 bits too, of any vocabulary
MAX_TOP_K = 1_000_000  # more than any vocabulary
MAX_TOKEN_ID = 2**31 - 1

# What OpenAI has and this server has not, with the values that ask for nothing.
NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "web_search_options": (),
}
# What says something about the caller, and nothing about the answer.
IGNORED = ("metadata", "prompt_cache_key", "safety_identifier", "service_tier", "user")

Body = TypeVar("Body", bound="Request")


def shown(value: Any) -> str:
    """A value as a message shows it: short, and on one line."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"


def parse(model: type[Body], raw: bytes, content_type: str) -> Body:
    """A request's body. Raises `RequestError` `invalid_value` with the parameter, for the first thing that is wrong."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        refuse(f"the content type is {shown(content_type)}; send application/json")
    value = load_json(raw)
    if not isinstance(value, dict):
        refuse("the body is no JSON object")
    for key, item in value.items():
        if key not in model.model_fields:
            _check_foreign(model, key, item)
    try:
        return model.model_validate({key: item for key, item in value.items() if key in model.model_fields})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in first["loc"])[:100]
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        refuse(f"`{param}` is missing", param)
    refuse(f"`{param}` is {shown(first['input'])}: {reason[:1].lower()}{reason[1:]}", param)


def _check_foreign(model: type["Request"], key: str, value: Any) -> None:
    """A key that the body has no field for: ignored, without effect, or refused."""
    if key in IGNORED or value is None:
        return
    if key in NO_EFFECT:
        # JSON knows false from 0, Python does not.
        if not any(value == none and isinstance(value, bool) == isinstance(none, bool) for none in NO_EFFECT[key]):
            refuse(f"`{key}` is {shown(value)}, and this server has no {key}; leave it out", key)
        return
    near = difflib.get_close_matches(key[:64], model.model_fields, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else f"; there are {', '.join(model.model_fields)}"
    refuse(f"there is no `{key[:64]}`{hint}", key[:64])


# ── values that may be written in several ways ──


def _prompts(value: Any) -> Any:
    """A prompt, or several; each is text or token ids."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise ValueError("a prompt is text, a list of texts, a list of token ids, or a list of such lists")
    if not isinstance(value[0], int) and len(value) > MAX_PROMPTS:
        raise ValueError(f"{len(value)} prompts, where {MAX_PROMPTS} are taken")
    if all(isinstance(item, str) for item in value):
        return tuple(value)
    if all(isinstance(item, list) and item for item in value):
        return tuple(_token_ids(item) for item in value)
    return (_token_ids(value),)


def _token_ids(value: list[Any]) -> tuple[int, ...]:
    if not all(type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in value):
        raise ValueError("a prompt is text, a list of texts, a list of token ids, or a list of such lists")
    return tuple(value)


def _stops(value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if not (
        isinstance(texts, list)
        and len(texts) <= MAX_STOPS
        and all(isinstance(text, str) and 0 < len(text) <= MAX_STOP_CHARS for text in texts)
    ):
        raise ValueError(f"up to {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters, or one")
    return tuple(texts)


def _content(value: Any) -> Any:
    """A message's text, which may come in parts."""
    if isinstance(value, list) and value:
        if not all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in value
        ):
            raise ValueError('a content is text, or parts as {"type": "text", "text": "…"}')
        return "".join(part["text"] for part in value)
    return value


_TOKEN_IDS_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID},
}
_STOP_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
_PART_SCHEMA = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}

Prompts = Annotated[
    tuple[str | tuple[int, ...], ...],
    BeforeValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "minItems": 1, "items": {"type": "string"}},
                _TOKEN_IDS_SCHEMA,
                {"type": "array", "minItems": 1, "items": _TOKEN_IDS_SCHEMA},
            ]
        }
    ),
]
Stops = Annotated[
    tuple[str, ...],
    BeforeValidator(_stops),
    WithJsonSchema({"anyOf": [_STOP_SCHEMA, {"type": "array", "maxItems": MAX_STOPS, "items": _STOP_SCHEMA}]}),
]
Content = Annotated[
    str,
    BeforeValidator(_content),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": _PART_SCHEMA}]}),
]
Name = Annotated[str, Field(min_length=1, max_length=256)]
# Any 64 bits are a seed, as with OpenAI; what answers are told is never negative.
Seed = Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED), AfterValidator(lambda seed: seed % (MAX_SEED + 1))]
TopP = Annotated[float, Field(ge=0, le=1), AfterValidator(lambda top_p: max(top_p, LEAST_TOP_P))]
Temperature = Annotated[float, Field(ge=0, le=2)]
Scale = Annotated[float, Field(ge=0, le=1.5)]


# ── bodies ──

# What is said of a body is its first mistake; without `FailFast` a list would be gone through for all of them.


class Strict(BaseModel):
    """No key that is not known, no value of another type; a null is no value."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


class Request(Strict):
    """What all three bodies have. Ours are `top_k`, `repetition_penalty` and the scale."""

    stop: Stops = ()
    top_p: TopP = 1.0
    top_k: int = Field(0, ge=0, le=MAX_TOP_K, description="draw from so many of the likeliest tokens; 0: from all")
    repetition_penalty: float = Field(1.0, ge=0.1, le=10)


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ModelRequest(Request):
    """What completions and chat have both."""

    model: Name
    n: int = Field(1, ge=1, le=128, description="choices of each prompt")
    seed: Seed | None = Field(
        None, description="choice i of prompt p draws by seed + 1000 p + i; default: a random one"
    )
    temperature: Temperature = 1.0
    stream: bool = False
    stream_options: StreamOptions | None = None
    lora_scale: Scale = Field(1.0, description="multiplies the adapter's update, where the engine can")

    @model_validator(mode="after")
    def _stream_options_with_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            refuse("`stream_options` goes with `stream`: true", "stream_options")
        return self


class CompletionRequest(ModelRequest):
    """Legacy completions: raw continuation of text or of token ids."""

    prompt: Prompts
    max_tokens: int = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = False
    best_of: int | None = None

    @model_validator(mode="after")
    def _together(self) -> "CompletionRequest":
        if self.best_of not in (None, self.n):
            refuse(
                f"`best_of` is {self.best_of} and `n` is {self.n}: all choices are returned, none is picked", "best_of"
            )
        if self.max_tokens == 0 and not self.echo:
            refuse("`max_tokens` is 0, which only goes with `echo`", "max_tokens")
        return self


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = Field(None, max_length=256, description="not shown to the model")
    # What an answer of OpenAI's has beside its text, when it comes back as a message: nothing.
    annotations: list[Any] = Field([], max_length=0)
    tool_calls: list[Any] = Field([], max_length=0)
    refusal: Literal[""] = ""


class ChatRequest(ModelRequest):
    """Chat, by the tokenizer's own template."""

    messages: Annotated[list[ChatMessage], FailFast()] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _together(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            refuse("`top_logprobs` goes with `logprobs`: true", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            refuse("`max_tokens` and `max_completion_tokens` differ; the latter is enough", "max_completion_tokens")
        return self


class CompareRequest(Request):
    """One prompt, continued by every model at every scale, temperature and seed."""

    prompt: str
    models: Annotated[list[Name], FailFast()] = Field(min_length=1, max_length=256)
    lora_scales: Annotated[list[Scale], FailFast()] = Field([1.0], min_length=1, max_length=16)
    temperatures: Annotated[list[Temperature], FailFast()] = Field([0.8], min_length=1, max_length=64)
    seeds: Annotated[list[Seed], FailFast()] = Field(
        default_factory=list, min_length=1, max_length=64, description="default: a random one"
    )
    max_tokens: int = Field(200, ge=1)
    top_p: TopP = 0.95
    stream: bool = True

    @model_validator(mode="after")
    def _together(self) -> "CompareRequest":
        for name in ("models", "lora_scales", "temperatures", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                refuse(f"`{name}` has a value twice", name)
        return self
