"""What the docs say is so: reference pages match the tables, named commands and targets exist."""

import re
from pathlib import Path

import pytest

from infra.build.reference_pages import EXAMPLES, pages
from infra.cli.main import main
from streams.core.topics import TOPICS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("name", sorted(pages()))
def test_generated_pages_are_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / "reference" / name).read_text() == pages()[name], "run `make docs`"


def test_every_topic_has_an_example_that_validates() -> None:
    for topic in TOPICS:
        event = topic.event.model_validate(EXAMPLES[topic.short_name])
        assert topic.decode(event.encode()) == event


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_command_and_target_named_exists(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z.][\w.-]*):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|^)make ([a-z][\w-]+)", text, re.M)) - targets == set()
    named = set(re.findall(r"(?:`|^)tidemill ([a-z]+)", text, re.M))
    assert named - set(main.commands) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_module_named_exists(page: Path) -> None:
    named = re.findall(r"(?<![\w/.-])((?:streams|reward|learner|actor|infra|dashboards|tests|benchmarks)/[\w/]+\.py)\b", page.read_text())
    assert [module for module in named if not (ROOT / module).exists()] == []


def test_every_make_target_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.M))
    assert targets - set(re.findall(r"^([a-z][\w-]*):.*##", makefile, re.M)) == set()
