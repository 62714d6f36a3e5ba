"""Whether a web page of somebody else's makes a browser send this request. Pure."""

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit


def foreign_origin(headers: Mapping[str, str], allowed: Collection[str]) -> str | None:
    """The origin of a page that may not send this; None where it may, or where no browser sends it.

    Browsers tell the origin of every POST, and whether it is the server's own (``sec-fetch-site``) where they trust the address. ``null`` is what
    sandboxed pages and local files have; it is nobody's own.
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
    """Host and port, the scheme's own port where none is written. None where there is no host."""
    try:
        parts = urlsplit(origin)
        return (parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)) if parts.hostname else None
    except ValueError:
        return None
