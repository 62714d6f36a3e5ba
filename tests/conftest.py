"""What every suite shares: examples that are new each time, no settings of the user's shell, and a real broker for the integration tests."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: two threads beside another busy process come to a crawl

from infra.local.embedded_broker import Broker, BrokerSettings
from learner.models.base_cache import prepare_base
from streams.kafka import KafkaSettings, create_topics
from tests.support import processors
from tests.support.processors import claim, pytest_addoption, pytest_generate_tests, torch_threads  # noqa: F401
from tests.support.topics import delete_topics

ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # what a test starts is of this checkout
for name in [name for name in os.environ if name.startswith("TIDEMILL_") and name not in ("TIDEMILL_CACHE", "TIDEMILL_TEST_KAFKA")]:
    del os.environ[name]  # settings of a ring that the user runs would reach every part that a test starts

LONGEST_FIRST = ("simulation", "e2e", "integration", "fuzz", "contracts")

# A run takes as many seconds as it takes on a busy machine, and what a strategy draws seldom is no fault of the code.
PHASES = [phase for phase in Phase if phase is not Phase.explain]  # explaining a failure may take minutes
settings.register_profile("everyday", max_examples=25, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck), phases=PHASES)
settings.register_profile("long", settings.get_profile("everyday"), max_examples=500)
settings.load_profile(os.environ.get("FUZZ_PROFILE", "everyday"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Every run draws other examples; the seed is told, and given again (``--hypothesis-seed``) it draws the same ones."""
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = secrets.randbelow(2**32)
    processors.pytest_configure(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes `make test` takes: each may hold a Kafka, a vLLM and a learner (8 GiB). 0: this one alone."""
    cores, gib = len(os.sched_getaffinity(0)), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    workers = min(cores, 4, int(gib // 8))
    return workers if workers > 1 else 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes the suites with long files come first, so that none of them is left to run alone at the end."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        order = {suite: n for n, suite in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: order.get(item.path.relative_to(ROOT / "tests").parts[0], len(order)))


def pytest_report_header(config: pytest.Config) -> str:
    return f"hypothesis: the same examples again with --hypothesis-seed={config.option.hypothesis_seed}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    if exitstatus == pytest.ExitCode.TESTS_FAILED:  # with -q there is no header
        terminalreporter.write_line(str(pytest_report_header(config)))
    processors.pytest_terminal_summary(terminalreporter, config)


@pytest.fixture(scope="session")
def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The session's one Kafka, for whoever does not stop it."""
    with Broker(BrokerSettings(), tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(scope="module")
def kafka_settings(request: pytest.FixtureRequest) -> KafkaSettings:
    """A running Kafka with Tidemill's topics, empty at a module's start: the session's own, or the server that TIDEMILL_TEST_KAFKA names
    (as it is: give it one that holds nothing else)."""
    if named := os.environ.get("TIDEMILL_TEST_KAFKA"):
        settings = KafkaSettings(bootstrap_servers=named)
    else:
        settings = KafkaSettings(bootstrap_servers=request.getfixturevalue("shared_broker").bootstrap_servers)
        delete_topics(settings)
    create_topics(settings)
    return settings


@pytest.fixture
def empty_kafka(shared_broker: Broker) -> Iterator[KafkaSettings]:
    """The session's own Kafka without a topic; topics are the test's to create, in their number of partitions. Afterwards it has the usual ones."""
    settings = KafkaSettings(bootstrap_servers=shared_broker.bootstrap_servers)
    delete_topics(settings)
    yield settings
    delete_topics(settings)
    create_topics(settings)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base's folder, built once a session."""
    return prepare_base("tiny", tmp_path_factory.mktemp("bases"))


@pytest.fixture
def fresh_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker of the test's own, to kill or to fill; topics are the test's to create."""
    with Broker(BrokerSettings(), tmp_path / "broker") as broker:
        yield broker
