"""The base of every section of settings: frozen, and a misspelled key fails."""

from pydantic import BaseModel, ConfigDict


class SettingsSection(BaseModel):
    """A group of settings that belong to one part.

    A field's docstring is its documentation (``docs/reference/settings.md`` is generated from it). Its name ends in its unit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
