"""The bill of materials names what is installed, and is not written for what is not the lock's."""

import json
import re
from importlib.metadata import distributions
from pathlib import Path

import pytest

from infra.build.bill_of_materials import LOCKS, bill, canonical, differences, main
from streams.core.errors import ConfigError

JARS = (LOCKS / "kafka-jars.sha256").read_text()


def test_every_package_and_every_jar_is_on_it_once() -> None:
    made = bill(distributions(), JARS)
    references = [component["bom-ref"] for component in made["components"]]
    assert len(set(references)) == len(references)
    assert {f"pkg:pypi/{canonical(d.metadata['Name'])}@{d.version}" for d in distributions()} - set(references) == {
        f"pkg:pypi/tidemill@{made['metadata']['component']['version']}"
    }
    assert sum("pkg:generic/" in reference for reference in references) == len(re.findall(r"\.jar$", JARS, re.M))
    assert json.dumps(made) == json.dumps(bill(distributions(), JARS))


def test_a_lock_of_something_else_is_told_and_no_bill_is_written(tmp_path: Path) -> None:
    assert differences("pydantic==0.1\nnever-heard-of==1.0\npywin32==1 ; sys_platform == 'win32'\n", list(distributions())) == [
        f"pydantic is {next(d.version for d in distributions() if d.metadata['Name'] == 'pydantic')}, but the lock says ==0.1",
        "never-heard-of==1.0 is locked but not installed",
    ]
    lock = tmp_path / "lock.txt"
    lock.write_text("never-heard-of==1.0\n")
    with pytest.raises(ConfigError, match=r"differs from lock\.txt: never-heard-of"):
        main([str(tmp_path / "sbom.json"), str(lock)])
    assert not (tmp_path / "sbom.json").exists()


def test_this_environment_is_the_locked_one(tmp_path: Path) -> None:
    main([str(tmp_path / "sbom.json")])
    assert json.loads((tmp_path / "sbom.json").read_text())["bomFormat"] == "CycloneDX"
