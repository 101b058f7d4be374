"""What clients of OpenAI's chat completions send, as far as a multimodal model of this kind can honour it; answers are `completions`."""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from anymal.errors import AnymalError
from anymal.model.decoding import Sampling
from anymal.serving.answer import Content
from anymal.serving.base64_media import decode_medium
from anymal.serving.conversation import MediumPart, Role

MAX_MESSAGES, MAX_PARTS, MAX_STOPS, MAX_STOP = 64, 32, 4, 100


class BadRequest(AnymalError):
    """A request that is answered with 400: what is wrong, and the parameter."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Text(_Strict):
    type: Literal["text"]
    text: str


class _Address(_Strict):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class _Image(_Strict):
    type: Literal["image_url"]
    image_url: _Address


class _Sound(_Strict):
    data: str
    format: str = Field(pattern=r"^[a-z0-9]{1,8}$")


class _Audio(_Strict):
    type: Literal["input_audio"]
    input_audio: _Sound


class _Video(_Strict):
    type: Literal["video_url"]
    video_url: _Address


class _Recording(_Strict):
    data: str
    format: Literal["csv", "npy"]


class _Motion(_Strict):
    type: Literal["imu"]
    imu: _Recording


Part = _Text | _Image | _Audio | _Video | _Motion


class Message(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[Part, ...] | None = None
    name: str | None = None
    refusal: str | None = None


class StreamOptions(_Strict):
    """What a stream ends with."""

    include_usage: bool = False


class ChatRequest(_Strict):
    """The body of `POST /v1/chat/completions`. Parameters that cannot be honoured are taken with their neutral value only."""

    model: str | None = None
    messages: tuple[Message, ...] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | tuple[str, ...] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, body: Any) -> Any:
        """Empty tools and the plain answer format ask for nothing; clients send them all the same."""
        if not isinstance(body, Mapping):
            return body
        kept = dict(body)
        for name, neutral in (("tools", ([], None)), ("response_format", ({"type": "text"}, None)), ("logit_bias", ({}, None)),
                              ("top_logprobs", (None,)), ("modalities", (["text"], None))):
            if name in kept and kept[name] in neutral:
                del kept[name]
        for name in ("frequency_penalty", "presence_penalty"):
            if kept.get(name) == 0:
                kept[name] = 0
        return kept

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else self.stop

    @property
    def limit(self) -> int | None:
        """The greatest number of new tokens that the caller wants."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def sampling(self) -> Sampling:
        """How tokens are chosen: greedily unless a temperature is given, as all measurements are."""
        return Sampling(self.temperature or 0.0, 1.0 if self.top_p is None else self.top_p, (self.seed or 0) % 2**63)


def parse(body: object) -> ChatRequest:
    """Check a request's body.

    Raises:
        BadRequest: naming the first parameter that is wrong.
    """
    try:
        request = ChatRequest.model_validate(body)
    except ValidationError as error:
        raise _explained(error) from None
    stops = request.stops
    if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP for stop in stops):
        raise BadRequest(f"stop: give at most {MAX_STOPS} texts of 1 to {MAX_STOP} characters", "stop")
    return request


def _explained(error: ValidationError) -> BadRequest:
    """The most telling problem: an unknown name of a part rather than what it lacks to be another kind of part."""
    found = sorted(error.errors(include_url=False, include_input=False),
                   key=lambda item: (item["type"] != "extra_forbidden" or len(item["loc"]) > 1, -len(item["loc"])))
    item = found[0]
    path = ""
    for step in item["loc"]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith(("_", "str", "tuple", "function-")):
            path += f".{step}" if path else step
    if item["type"] == "extra_forbidden":
        return BadRequest(f"{path}: is not supported; leave it out", path)
    if len(item["loc"]) > 3 and item["loc"][0] == "messages":
        path = f"messages[{item['loc'][1]}].content"
        return BadRequest(f"{path}: must be a text, or a list of parts of the types text, image_url, input_audio, video_url and imu "
                          f"({item['msg'][0].lower()}{item['msg'][1:]}, at {'.'.join(str(step) for step in item['loc'][2:])})", path)
    return BadRequest(f"{path or 'body'}: {item['msg'][0].lower()}{item['msg'][1:]}", path or None)


@dataclass(frozen=True)
class Remote:
    """A medium that lies at an address, to be fetched before it is read."""

    modality: str
    url: str
    name: str


def to_turns(messages: Sequence[Message]) -> list[tuple[Role, list[str | MediumPart | Remote]]]:
    """Roles and parts of the messages, media decoded from base64; those at addresses are left to be fetched.

    Raises:
        BadRequest: naming the part that cannot be decoded.
    """
    turns: list[tuple[Role, list[str | MediumPart | Remote]]] = []
    for number, message in enumerate(messages):
        name = f"messages[{number}].content"
        content = message.content
        if content is None or (isinstance(content, tuple) and not content):
            if message.role != "assistant":
                raise BadRequest(f"{name}: is empty; give a text or a list of parts", name)
            content = message.refusal or ""
        if not isinstance(content, str) and len(content) > MAX_PARTS:
            raise BadRequest(f"{name}: has {len(content)} parts; send at most {MAX_PARTS}", name)
        parts: list[str | MediumPart | Remote] = [content] if isinstance(content, str) else [
            _part(part, f"{name}[{place}]") for place, part in enumerate(content)]
        turns.append(("system" if message.role == "developer" else message.role, parts))
    return turns


def _part(part: Part, name: str) -> str | MediumPart | Remote:
    if isinstance(part, _Text):
        return part.text
    if isinstance(part, _Image | _Video):
        modality, url = ("image", part.image_url.url) if isinstance(part, _Image) else ("video", part.video_url.url)
        if not url.startswith("data:"):
            return Remote(modality, url, name)
        return MediumPart(modality, Content(name, _data_uri(url, name)))
    modality, data = ("audio", part.input_audio.data) if isinstance(part, _Audio) else ("imu", part.imu.data)
    return MediumPart(modality, Content(name, _decoded(data, name)))


def _data_uri(url: str, name: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise BadRequest(f"{name}: is no data URI: it has no comma; send data:TYPE;base64,CONTENT", name)
    if head.endswith(";base64"):
        return _decoded(body, name)
    try:
        return unquote_to_bytes(body)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise BadRequest(f"{name}: its data URI cannot be decoded ({error})", name) from error


def _decoded(text: str, name: str) -> bytes:
    try:
        return decode_medium(re.sub(r"\s+", "", text), name)
    except AnymalError as error:
        raise BadRequest(str(error), name) from error


def error_body(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
