"""The chat page at ``/chat``, where a person talks to the policy and rates its answers. Plain HTML, CSS and JavaScript."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "page"
CONTENT_POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'self'",
    "frame-ancestors 'none'",
))  # fmt: skip
HEADERS: Sequence[tuple[bytes, bytes]] = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)


@dataclass(frozen=True)
class Page:
    """A file and its content type."""

    content_type: str
    body: bytes


def chat_pages(policy: str) -> dict[str, Page]:
    """The page's files by path. They hold nothing secret: keys are checked when the page asks for answers."""
    page = (FOLDER / "chat.html").read_text().replace("{{policy}}", html.escape(policy))
    return {
        "/chat": Page("text/html; charset=utf-8", page.encode()),
        "/chat/chat.css": Page("text/css; charset=utf-8", (FOLDER / "chat.css").read_bytes()),
        "/chat/chat.js": Page("text/javascript; charset=utf-8", (FOLDER / "chat.js").read_bytes()),
    }
