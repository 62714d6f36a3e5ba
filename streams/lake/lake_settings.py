"""Settings of the lake (``lake.*``)."""

from pydantic import Field

from streams.core.settings_section import SettingsSection
from streams.core.values import Name


class LakeSettings(SettingsSection):
    """The lake: where Parquet files are written, when, and how long they are kept."""

    uri: str | None = None
    """Folder or URI (``file://``, ``s3://``, ``gs://``) of the lake. None: the folder ``lake`` in the part's state folder."""
    flush_rows: int = Field(default=50_000, ge=1, le=10_000_000)
    """A file is written when this many rows of one topic are waiting, over all its partitions."""
    flush_s: float = Field(default=60.0, gt=0, le=86_400)
    """A file is written when its oldest row has waited for this long."""
    flush_bytes: int = Field(default=64 << 20, ge=1 << 16, le=4 << 30)
    """Everything is written when this many bytes are waiting over all topics. Limits the memory."""
    compact_every_s: float | None = Field(default=600.0, gt=0, le=86_400)
    """How often files are looked at for merging: a file each minute is too small for other tools. None: never merged."""
    compact_files: int = Field(default=30, ge=2, le=10_000)
    """So many neighbouring files of a topic, partition and day are merged into one. An hour after a day's end, however few are left."""
    compact_bytes: int = Field(default=64 << 20, ge=1 << 16, le=1 << 30)
    """A merged file has at most about so many bytes; larger files stay as they are. A merge takes so much memory."""
    keep_days: int | None = Field(default=None, ge=7, le=36_500)
    """Episodes, feedback and dead letters older than this many days are deleted. None: kept for ever. Labels, versions and promotions are always
    kept: replaying a version needs them."""
    retry_s: float = Field(default=5.0, gt=0, le=3600)
    """Pause before a failed write (a full disk, an unavailable store) is tried again."""
    name: Name | None = None
    """Names this lake in certificates of erasures. A second lake on the same log needs a name of its own, since each lake answers for itself. None:
    the ring's only lake."""

    @property
    def reports_as(self) -> str:
        """Its name in reports of erasures."""
        return "files" if self.name is None else f"files of {self.name}"
