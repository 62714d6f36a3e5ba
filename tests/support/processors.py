"""What is learned differs from processor to processor in every digit, so a claim about learning is tried with many seeds, precisions and kernels.

A pytest plug-in. Tests that are marked ``learning`` take ``seed`` and ``precision`` and tell their figures to ``claim``. An everyday run tries each
once; ``make test-processors`` tries each with ten seeds, in float32 and bfloat16, and tells how near to its limit each figure came.
"""

from collections.abc import Callable, Iterator

import pytest
import torch

Claim = Callable[[str, float, float], None]
TOLD = pytest.StashKey[dict[str, list[tuple[float, float]]]]()
"""Figures and their limits, by claim."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("processors", "claims about learning")
    group.addoption("--seeds", type=int, default=1, help="seeds with which each claim about learning is tried")
    group.addoption("--precisions", default="float32", help="precisions, with commas between them")
    group.addoption("--threads", type=int, default=1, help="threads of torch in tests about learning")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TOLD] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("learning") is None:
        return
    if "precision" in metafunc.fixturenames:
        metafunc.parametrize("precision", metafunc.config.getoption("--precisions").split(","))
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(metafunc.config.getoption("--seeds")))


@pytest.fixture
def torch_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """As few threads as ``--threads`` says, so that a test neither starves others nor differs with the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def claim(request: pytest.FixtureRequest) -> Claim:
    """``claim(what, figure, least)``: the figure is at least so high. Told at the end of a run with several seeds."""
    told = request.config.stash[TOLD]

    def claimed(what: str, figure: float, least: float) -> None:
        told.setdefault(what, []).append((figure, least))
        assert figure >= least, f"{what}: {figure:.4g}, should be at least {least:.4g}"

    return claimed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--seeds") == 1:
        return
    terminalreporter.section("claims about learning: lowest, median, limit, runs")
    for what, figures in sorted(config.stash[TOLD].items()):
        found = sorted(figure for figure, _ in figures)
        terminalreporter.write_line(f"{found[0]:9.4g} {found[len(found) // 2]:9.4g} {figures[0][1]:9.4g} {len(found):5}  {what}")
