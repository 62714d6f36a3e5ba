"""Settings by their dotted path: the field behind ``learner.rank``, and what a misspelt path may have meant."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from infra.settings.text_values import section_of


def paths_in(settings: type[BaseModel], before: str = "") -> Iterator[str]:
    """Every setting's path."""
    for name, field in settings.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            yield before + name
        else:
            yield from paths_in(section, f"{before}{name}.")


def field_at(settings: type[BaseModel], path: str) -> FieldInfo | None:
    """The field of a path; None where there is none."""
    first, _, rest = path.partition(".")
    field = settings.model_fields.get(first)
    if field is None or not rest:
        return field
    section = section_of(field.annotation)
    return None if section is None else field_at(section, rest)


def meant(settings: type[BaseModel], path: str) -> str:
    """What a misspelt path may have meant, as the end of a sentence: `` (did you mean learner.rank?)``. Empty when nothing is near."""
    known = [*paths_in(settings), *(name for name, field in settings.model_fields.items() if section_of(field.annotation) and "." not in path)]
    near = _in_its_section(path, known) or get_close_matches(path, known, n=1, cutoff=0.75) or _elsewhere(path, known)
    return f" (did you mean {near[0]}?)" if near else ""


def _in_its_section(path: str, known: Sequence[str]) -> list[str]:
    """A name that is nearly the same in the section that was named."""
    section, _, name = path.rpartition(".")
    within = {each.rpartition(".")[2]: each for each in known if each.rpartition(".")[0] == section}
    return [within[near] for near in get_close_matches(name, within, n=1, cutoff=0.6)] if section else []


def _elsewhere(path: str, known: Sequence[str]) -> list[str]:
    """The same name in another section."""
    name = path.rpartition(".")[2]
    return [each for each in known if each.rpartition(".")[2] == name][:1]
