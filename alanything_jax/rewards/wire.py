"""OpenAI's chat completions interface on the wire: addresses, parts, replies, errors.

Media travel inside the request, as base64; no file is read and no address of a row is
fetched from here.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import json
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from alanything_jax.data import media
from alanything_jax.schema import Part

MAX_REPLY_BYTES = 16 << 20
HOPELESS = {
    401: "the key is refused",
    403: "access is refused",
    404: "there is no such address or model",
    405: "the address does not take chat completions",
}


class EndpointError(ValueError):
    """The endpoint cannot be used as configured; waiting would not help."""


class Answer(NamedTuple):
    """What one request brought.

    Attributes:
      text: the answer, None where there is none.
      failure: why there is none, the key blotted out.
      hopeless: no retry and no other question can do better.
      unknown_host: the name did not resolve: misspelt, or the network is down.
      final: this question is refused; others may do.
      limited: told to wait; not the question's fault.
      wait_secs: how long, where the server said.
    """

    text: str | None = None
    failure: str = ""
    hopeless: bool = False
    unknown_host: bool = False
    final: bool = False
    limited: bool = False
    wait_secs: float = 0.0


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A redirect would drop the question, and carry the key to another host."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return None


def shown(url: str) -> str:
    """An address without what may be secret in it: user, password, query."""
    parsed = urllib.parse.urlsplit(url)
    host = parsed.netloc.rpartition("@")[2]
    return parsed._replace(netloc=host, query="", fragment="").geturl()


def opener(url: str, key: str) -> Callable[[bytes, float], Answer]:
    """post(body, timeout in seconds) -> Answer, to `<url>/chat/completions`.

    Raises EndpointError: the address or the key cannot be sent.
    """
    try:
        parsed = urllib.parse.urlsplit(url)
        web = parsed.scheme in ("http", "https") and parsed.hostname
        sound = web and not (parsed.port == 0 or parsed.username or parsed.password)
    except ValueError:
        why = "the url is malformed: write http(s)://host[:port]/v1."
        raise EndpointError(why) from None
    if not sound:
        raise EndpointError(
            f"{shown(url)!r} cannot be asked: write http(s)://host[:port]/v1; a key "
            "belongs in the variable that api_key_env names."
        )
    if not (key.isascii() and (key + "x").isprintable()):
        raise EndpointError("the key holds characters that no header may hold.")
    path = parsed.path.rstrip("/").removesuffix("/chat/completions")
    target = parsed._replace(path=path + "/chat/completions", fragment="").geturl()
    near = parsed.hostname in ("localhost", "127.0.0.1", "::1")
    proxies = urllib.request.ProxyHandler({} if near else None)
    web = urllib.request.build_opener(_StayHere, proxies)
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}

    def post(body, timeout):
        request = urllib.request.Request(target, body, headers)
        try:
            with web.open(request, timeout=timeout) as page:
                answer = _parse(page.read(MAX_REPLY_BYTES))
        except urllib.error.HTTPError as error:
            answer = _refusal(error)
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            unknown = isinstance(reason, socket.gaierror)
            unknown = unknown and reason.errno == socket.EAI_NONAME
            failure = f"{type(reason).__name__}: {reason}"
            answer = Answer(failure=failure, unknown_host=unknown)
        failure = answer.failure.replace(key, "[key]") if key else answer.failure
        return answer._replace(failure=" ".join(failure.split())[:300])

    return post


def _refusal(error):
    """What an HTTP status other than success means for the question."""
    code, hint = error.code, HOPELESS.get(error.code, error.reason)
    told = _retry_after(error.headers.get("Retry-After"))
    if redirect := 300 <= code < 400:
        hint = "it redirects elsewhere; give the final address"
    try:
        said = error.read(2000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as broken:
        said = f"(its body broke off: {broken})"
    finally:
        error.close()
    return Answer(
        failure=f"HTTP {code}, {hint}: {said}",
        hopeless=redirect or code in HOPELESS,
        final=code in (400, 413, 422),
        limited=code == 429 or (code == 503 and told is not None),
        wait_secs=told or 0.0,
    )


def _parse(raw):
    """The answer in a chat completion."""
    try:
        choice = json.loads(raw)["choices"][0]
        content = choice["message"]["content"]
        if isinstance(content, list):
            content = "".join(part.get("text") or "" for part in content)
    except (ValueError, LookupError, TypeError, AttributeError):
        said = raw[:80].decode("utf-8", "replace")
        return Answer(failure=f"not a chat completion: {said!r}")
    if not isinstance(content, str) or not content.strip():
        why = choice.get("finish_reason")
        return Answer(failure=f"empty answer (finish_reason {why!r})")
    return Answer(content)


def _retry_after(value):
    """Seconds of a Retry-After header, given as a number or as a date."""
    if not value:
        return None
    try:
        if value.strip().isdigit():
            return float(value)
        until = email.utils.parsedate_to_datetime(value).timestamp()
        return max(0.0, until - time.time())
    except ValueError:
        return None


def content(parts: Sequence[Part]) -> str | list[dict[str, Any]]:
    """A message's parts as the interface takes them; media as data: URLs.

    Example: text and an image array -> `[{"type": "text", "text": "What is it?"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}]`. Frames of
    a clip given as an array or GIF are images; another file is a `video_url`, as vLLM has.

    Raises ValueError: a part without data, or in no known format.
    """
    if all(part.kind == "text" for part in parts):
        return "".join(part.text or "" for part in parts)
    return [item for part in parts for item in _items(part)]


def _items(part: Part):
    data = part.data
    if part.kind == "text":
        return [{"type": "text", "text": part.text or ""}]
    if data is None and part.uri and part.uri.startswith(("https://", "data:")):
        if part.kind in ("image", "video"):
            return [_link(part.kind, part.uri)]
    if data is None:
        raise ValueError(f"a part of kind {part.kind} has no data: read its file.")
    if part.kind == "image":
        raw = data if isinstance(data, bytes) else _png(data)
        return [_link("image", _data_url(_type(raw, "image"), raw))]
    if part.kind == "audio":
        if not isinstance(data, bytes):
            data = _wav(data, part.meta)
        form = _type(data, "audio").removeprefix("audio/").replace("mpeg", "mp3")
        known = {"data": base64.b64encode(data).decode(), "format": form}
        return [{"type": "input_audio", "input_audio": known}]
    if isinstance(data, bytes) and not data.startswith(b"GIF8"):
        return [_link("video", _data_url("video/mp4", data))]
    frames, _ = media.load(part)
    if not len(frames):
        raise ValueError("a clip with no frames.")
    return [_link("image", _data_url("image/png", _png(frame))) for frame in frames]


def _png(image):
    shape = image.shape
    if image.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or not image.size:
        raise ValueError(f"an image is uint8 [H, W, 3], not {image.dtype}{shape}.")
    return media.dump("image", image)


def _wav(samples, meta):
    if samples.ndim != 1 or "rate" not in meta:
        raise ValueError(
            f"audio is [samples], mono, with meta['rate'] in Hz, not {samples.shape} with "
            f"meta {sorted(meta)}."
        )
    return media.dump("audio", samples, rate=meta["rate"])


def _link(kind, url):
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def _data_url(mime, raw):
    return f"data:{mime};base64,{base64.b64encode(raw).decode()}"


def _type(raw, kind):
    """The media type of a file's bytes, which must be of a kind."""
    mime = media.mime_of(raw) or ""
    if not mime.startswith(kind):
        raise ValueError(f"{kind} bytes of no known format, starting {raw[:8]!r}.")
    return mime
