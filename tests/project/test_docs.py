"""What the docs say is so: reference pages match the tables, named commands and targets exist."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from infra.build.reference_pages import EXAMPLES, pages
from infra.cli.main import main
from infra.settings.config import Settings
from streams.core.topics import TOPICS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WRITTEN = [page for page in PAGES if page.parent.name != "reference"]
"""By people; the others are generated from the code."""
LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]*))?\)")
RIDDLES = (
    "says of itself", "what stops whom", "meet the policy when they come", "labels do not go back", "reads no more", "weights are pulled",
    "two minds", "nobody is asked", "is not waited for", "bear company", "and is not yet", "its arrows", "starts again what dies",
    "it well?", "crowd that is not what", "balance the books", "the books are", "what people say of it", "turned round", "thumbs meet",
    "is good at", "let in to", "come round", "broken off", "in good order", "made anew", "told on", "what became of", "as the log tells",
    "has never heard of", "speaks and stands on", "whoever does not", "erases nobody", "nobody needs", "knows nothing of them", "wrong way round",
    "every arrow carried", "not far enough", "made do with", "a lesser one", "what a run came to", "mends it", "mend it",
    "goes on all the same", "worth a line", "dealt out", "gives its core away", "whatever the batch", "looks into", "by what it is proved",
    "what is left of a", "answers in the making", "frozen texts",
)  # fmt: skip
"""Phrases that readers stumbled over, in pages, docstrings, comments and messages. Use the field's words: docs/concepts/design.md has a glossary."""
CODE = sorted(path for layer in ("streams", "reward", "learner", "actor", "infra", "dashboards") for path in (ROOT / layer).rglob("*.py"))


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
    for link, anchor in LINK.findall(page.read_text()):
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor:
            assert anchor in headings(target), f"{link}#{anchor}"


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_index_reaches_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    reached = {(index.parent / link).resolve() for link, _ in LINK.findall(index.read_text()) if link}
    assert [page.relative_to(ROOT).as_posix() for page in PAGES if page.parent != ROOT and page not in reached | {index}] == []


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_riddle_comes_back(page: Path) -> None:
    prose = " ".join(page.read_text().lower().split())
    assert [riddle for riddle in RIDDLES if riddle in prose] == []


@pytest.mark.parametrize("module", CODE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_riddle_comes_back_in_code(module: Path) -> None:
    prose = " ".join(module.read_text().replace("#", " ").lower().split())
    assert [riddle for riddle in RIDDLES if riddle in prose] == []


def commands(page: Path) -> Iterator[str]:
    """Lines of code blocks that run ``tidemill``."""
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.S | re.M):
        yield from (line for line in block.splitlines() if re.match(r"(\.venv/bin/)?tidemill [a-z]", line))


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_option_of_a_command_exists(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFANA_TOKEN", "a token")
    for line in commands(page):
        command: click.Command = main
        words = shlex.split(line, comments=True)[1:]
        while isinstance(command, click.Group) and ((words[:1] and words[0] in command.commands) or not command.invoke_without_command):
            command = command.commands[words.pop(0)]
        try:
            command.make_context(command.name, words, resilient_parsing=False)
        except click.BadParameter as error:
            if "does not exist" not in str(error):  # a folder of the reader's does not
                raise


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_setting_named_exists(page: Path) -> None:
    named = re.findall(r"`([a-z]+)\.([a-z][a-z0-9_]*)(?=[` ])", page.read_text())
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    known = {(section, key) for section, kind in sections.items() for key in getattr(kind, "model_fields", ())}
    assert [f"{section}.{key}" for section, key in named if section in sections and (section, key) not in known and key not in ("md", "py")] == []


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_block_of_settings_loads(page: Path) -> None:
    for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.S | re.M):
        Settings(**tomllib.loads(block))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_module_named_exists(page: Path) -> None:
    named = re.findall(r"(?<![\w/.-])((?:streams|reward|learner|actor|infra|dashboards|tests|benchmarks)/[\w/]+\.py)\b", page.read_text())
    assert [module for module in named if not (ROOT / module).exists()] == []


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_table_named_is_in_its_module(page: Path) -> None:
    named = re.findall(r"`([A-Z][A-Z_]+)` in `([\w/]+\.py)`", page.read_text())
    assert [f"{name} in {module}" for name, module in named if not re.search(rf"^{name}\b", (ROOT / module).read_text(), re.M)] == []


def test_every_make_target_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.M))
    assert targets - set(re.findall(r"^([a-z][\w-]*):.*##", makefile, re.M)) == set()
