"""Settings of the console."""

from pydantic import Field, SecretStr

from streams.core.settings_section import SettingsSection


class ConsoleSettings(SettingsSection):
    """The operator's page (``tidemill console``)."""

    host: str = "127.0.0.1"
    """Address to listen on. It shows what people said: anything but loopback needs a front that checks who asks."""
    port: int = Field(default=8090, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    """Names by which browsers may ask for it; another name is refused, so that no web page can read it through a name of its own."""
    operator_key: SecretStr | None = Field(default=None, min_length=12)
    """Who knows it may replay, promote and roll back; best given as TIDEMILL_CONSOLE__OPERATOR_KEY. None: nobody may. Never printed or logged."""
    episodes_kept: int = Field(default=20_000, ge=1, le=1_000_000)
    """Newest episodes, labels and dead letters that can be searched; bounds the memory."""
