"""Settings of images and sound in messages: where they may be fetched from, and which are kept."""

import re

from pydantic import Field, field_validator

from streams.core.settings_section import SettingsSection

HOST = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]")
"""A fully qualified host name in lower case. It matches no IP address: those end in digits."""
PRIVATE_ZONES = frozenset({"local", "localhost", "internal", "localdomain", "lan", "home", "corp", "intranet", "private"})


class MediaSettings(SettingsSection):
    """Images and sound in messages: where they may be fetched from, and which are kept."""

    media_hosts: tuple[str, ...] = ()
    """Hosts from which images, sound and video may be fetched, at most 20 MB each, without following redirects. Empty: only what the request itself
    carries (``data:`` URLs), since a server that fetches any URL can reach addresses that its clients must not reach."""
    max_media_bytes: int = Field(default=2 << 20, ge=0, le=1 << 30)
    """Largest image or sound in a message that is stored, as an artifact. Of a larger one only the SHA-256 is kept. 0: none is stored."""

    @field_validator("media_hosts")
    @classmethod
    def _hosts_are_names_on_the_internet(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not HOST.fullmatch(host) or host.rpartition(".")[2] in PRIVATE_ZONES:
                raise ValueError(f"actor.media_hosts: {host!r} is not a public host name such as media.example.com")
        return hosts
