"""Settings of the console (``console.*``)."""

from pydantic import Field, SecretStr

from streams.core.settings_section import SettingsSection


class ConsoleSettings(SettingsSection):
    """The console, a web page for operators (``tidemill console``)."""

    host: str = "127.0.0.1"
    """Address to listen on. The console shows what people said: any address but loopback needs an authenticating proxy in front."""
    port: int = Field(default=8090, ge=0, le=65535)
    """Port to listen on. 0: a free one."""
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    """Host names that browsers may use for the console. Others are refused, so that no web page can read it through a name of its own (DNS
    rebinding)."""
    operator_key: SecretStr | None = Field(default=None, min_length=12)
    """Key that allows to replay, promote and roll back. Best given as TIDEMILL_CONSOLE__OPERATOR_KEY. None: the console only shows. Never printed or
    logged."""
    episodes_kept: int = Field(default=20_000, ge=1, le=1_000_000)
    """Newest episodes, labels and dead letters kept in memory for searches."""
