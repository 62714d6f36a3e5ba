"""Imports point down, each framework has one home, loops stay short: the structure, held."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = {"streams": 0, "reward": 1, "learner": 2, "actor": 2, "infra": 3, "dashboards": 3}
HOMES = {
    "kafka": ("streams/kafka/",),
    "aiokafka": ("streams/kafka/",),
    "faust": ("reward/updater/faust_app.py", "reward/updater/faust_fixes.py"),
    "ray": ("learner/distributed/ray_cluster.py",),
    "peft": ("learner/models/lora_policy.py", "reward/features/backbone_tuning.py"),
    "prometheus_client": ("streams/core/metrics.py",),
    "grafana_api": ("dashboards/grafana/grafana_push.py",),
    "opentelemetry": ("actor/otlp/otlp_wire.py", "streams/core/traces.py"),
    "google": ("actor/otlp/otlp_wire.py",),
    "vllm": (
        "actor/vllm_server.py",
        "actor/vllm_arguments.py",
        "actor/server_wiring.py",
        "actor/adapters/",
        "actor/capture/sampled_logprobs.py",
        "learner/rollouts/rollout_engines.py",
    ),
    "jgo": ("infra/local/kafka_jars.py",),
    "matplotlib": ("infra/demo/report_page.py",),
    "yaml": ("dashboards/alerts/alert_rules.py",),
}
FOLDERS = {"redaction": 0, "promotion": 0, "adapters": 1, "capture": 2, "doors": 3, "otlp": 4, "critic": 4}
"""Of the actor. What stands beside them in ``actor/`` is either what all need or where they meet."""
MEETING = ("actor/vllm_server.py", "actor/server_wiring.py")
LOOPS = ("learner/ring/learner_loop.py", "streams/join/join_loop.py", "streams/join/join_session.py", "reward/updater/faust_app.py")
LOOP_LINES = 120
MODULE_LINES = 400
FOLDER_MODULES = 16
MODULES = sorted(path.relative_to(ROOT).as_posix() for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def full_imports(path: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, wherever in the module it stands."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def imports(path: str) -> Iterator[tuple[int, str]]:
    """The same, of the top-level names alone."""
    return ((line, name.split(".")[0]) for line, name in full_imports(path))


@pytest.mark.parametrize("path", MODULES)
def test_imports_point_down(path: str) -> None:
    layer = path.split("/")[0]
    side_by_side = {"infra", "dashboards"}
    allowed = {name for name in LAYERS if name == layer or LAYERS[name] < LAYERS[layer] or {name, layer} == side_by_side}
    assert [f"{path}:{line} imports {name}" for line, name in imports(path) if name in LAYERS and name not in allowed] == []


@pytest.mark.parametrize("path", [path for path in MODULES if path.startswith("actor/") and path.count("/") > 1])
def test_the_folders_of_the_actor_import_one_way(path: str) -> None:
    folder = FOLDERS[path.split("/")[1]]
    inside = [(line, name) for line, name in full_imports(path) if name.split(".")[0] == "actor"]
    upward = [f"{path}:{line} imports {name}" for line, name in inside if FOLDERS.get(name.split(".")[1], -1) > folder]
    wired = [f"{path}:{line} imports {name}" for line, name in inside if "/".join(name.split(".")[:2]) + ".py" in MEETING]
    assert upward + wired == []


@pytest.mark.parametrize("path", MODULES)
def test_every_framework_stays_at_home(path: str) -> None:
    assert [f"{path}:{line} imports {name}" for line, name in imports(path) if not path.startswith(HOMES.get(name, ("",)))] == []


def test_the_homes_are_lived_in() -> None:
    lived_in = {name for path in MODULES for _, name in imports(path)}
    assert sorted(set(HOMES) - lived_in) == []


@pytest.mark.parametrize("path", LOOPS)
def test_loops_stay_short(path: str) -> None:
    assert len((ROOT / path).read_text().splitlines()) <= LOOP_LINES


@pytest.mark.parametrize("path", MODULES)
def test_modules_stay_readable(path: str) -> None:
    text = (ROOT / path).read_text()
    assert len(text.splitlines()) <= MODULE_LINES
    assert ast.get_docstring(ast.parse(text)), f"{path} does not say what it is"


def test_folders_stay_readable() -> None:
    folders = {path.rpartition("/")[0] for path in MODULES}
    crowded = {folder: len(list((ROOT / folder).glob("*.py"))) for folder in folders}
    assert {folder: modules for folder, modules in crowded.items() if modules > FOLDER_MODULES} == {}


def test_a_command_that_only_looks_at_the_log_loads_nothing_of_what_learns_serves_or_stores() -> None:
    script = "import sys, infra.cli.main, infra.settings.config, infra.operate.ring_status, infra.operate.promotion_history; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-P", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout.split()
    assert "kafka" in loaded
    assert {"numpy", "pyarrow", "torch", "transformers", "ray", "faust", "vllm", "jgo", "matplotlib"} & set(loaded) == set()


def test_nothing_is_unpickled() -> None:
    guilty = [path for path in MODULES if {"pickle", "cloudpickle", "dill", "joblib", "shelve"} & {name for _, name in imports(path)}]
    assert guilty == []
    assert [path for path in MODULES if "torch.load(" in (ROOT / path).read_text()] == []


def test_every_test_file_has_a_name_of_its_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []  # one run of all of them needs it


def test_every_module_has_a_name_of_its_own() -> None:
    names = [Path(path).name for path in MODULES if not path.endswith(("/settings.py", "/__init__.py", "/__main__.py"))]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_every_group_of_settings_is_in_a_file_named_settings() -> None:
    """A reader who looks for a setting finds it by file name, beside the code that it steers."""
    elsewhere = []
    for path in MODULES:
        for node in ast.parse((ROOT / path).read_text()).body:
            is_section = isinstance(node, ast.ClassDef) and any(
                isinstance(b, ast.Name) and b.id.endswith(("Settings", "SettingsSection")) for b in node.bases
            )
            if is_section and not path.endswith(("_settings.py", "/settings.py")):
                elsewhere.append(path)
    assert sorted(set(elsewhere) - {"infra/settings/config.py", "streams/core/settings_section.py"}) == []


def test_no_class_name_means_two_things() -> None:
    """A word that a reader has learned in one folder means the same in every other."""
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse((ROOT / path).read_text()).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(path)
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}
