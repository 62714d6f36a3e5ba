"""Detects requests that a browser sends for a page of another site (cross-site request forgery). Pure."""

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit


def foreign_origin(headers: Mapping[str, str], allowed: Collection[str]) -> str | None:
    """The origin of the page, if it is another site's; None if the request is allowed, or not from a browser.

    Browsers send the origin with every POST and, for trusted addresses, whether it is the server's own (``sec-fetch-site``). Sandboxed pages and
    local files have the origin ``null``, which is never allowed.
    """
    origin = headers.get("origin", "").strip().lower()
    if origin and origin != "null" and origin in allowed:
        return None
    site = headers.get("sec-fetch-site", "").strip().lower()
    if site in ("same-origin", "none"):
        return None
    if not origin:
        return "another site" if site in ("cross-site", "same-site") else None
    scheme, own = origin.partition("://")[0], headers.get("host", "").strip().lower()
    asked_at = _authority(f"{scheme}://{own}")
    return None if site == "" and asked_at is not None and _authority(origin) == asked_at else origin


def _authority(origin: str) -> tuple[str, int] | None:
    """Host and port; without a port, the scheme's default. None without a host."""
    try:
        parts = urlsplit(origin)
        return (parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)) if parts.hostname else None
    except ValueError:
        return None
