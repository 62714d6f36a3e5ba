"""Settings of the lake; apart from it, so that reading settings loads no pyarrow."""

from pydantic import Field

from streams.core.settings_section import SettingsSection


class LakeSettings(SettingsSection):
    """Where everything is kept, and in how large pieces."""

    uri: str | None = None
    """Folder or URI (``file://``, ``s3://``, ``gs://``) of the lake. None: the folder ``lake`` in the part's state."""
    flush_rows: int = Field(default=50_000, ge=1, le=10_000_000)
    """A file is written when this many rows of one topic wait, over its partitions."""
    flush_s: float = Field(default=60.0, gt=0, le=86_400)
    """A file is written when its oldest row has waited this long."""
    flush_bytes: int = Field(default=64 << 20, ge=1 << 16, le=4 << 30)
    """Everything is written when this many bytes wait over all topics; bounds the memory."""
    keep_days: int | None = Field(default=None, ge=7, le=36_500)
    """Episodes, feedback and dead letters of days longer ago than this are deleted. None: kept for ever. Labels, versions and promotions always stay:
    with them versions are made again."""
    retry_s: float = Field(default=5.0, gt=0, le=3600)
    """Pause after a write that failed (a full disk, a store that is away) before it is tried again."""
