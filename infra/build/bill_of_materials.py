"""The bill of materials: every package of the locked environment and every jar of the embedded Kafka, as CycloneDX 1.6 in JSON.

``python -m infra.build.bill_of_materials sbom.json`` (``make sbom``). It lists what is installed, and fails when that differs from
the lock. The same environment gives the same bytes.
"""

import json
import re
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from streams.core.errors import ConfigError

JAR = re.compile(r"^([0-9a-f]{64})\s+(\S+?)-(\d[\w.+-]*)\.jar$")
LOCKS = Path(__file__).parent / "locks"


def bill(installed: Iterable[Distribution], jars: str) -> dict[str, Any]:
    """The document, with components sorted by package URL."""
    packages = {canonical(d.metadata["Name"]): d for d in installed}
    ours = packages.pop("tidemill", None)
    components = [_package(name, d) for name, d in packages.items()] + [
        _jar(*named.groups()) for line in jars.splitlines() if (named := JAR.match(line))
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": "tidemill", "name": "tidemill", "version": ours.version if ours else "0"}},
        "components": sorted(components, key=lambda each: str(each["purl"])),
    }


def differences(lock: str, installed: Iterable[Distribution]) -> list[str]:
    """Differences between installed and locked packages, one sentence each."""
    versions = {canonical(d.metadata["Name"]): d.version for d in installed}
    rows = []
    for pin in [Requirement(line) for line in lock.splitlines() if line and not line.startswith("#")]:
        if pin.marker is not None and not pin.marker.evaluate():
            continue  # for another platform or Python
        if (found := versions.get(canonical(pin.name))) is None:
            rows.append(f"{pin} is locked but not installed")
        elif found not in pin.specifier:
            rows.append(f"{pin.name} is {found}, but the lock says {pin.specifier}")
    return rows


def canonical(name: str) -> str:
    """A package name in its normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _package(name: str, found: Distribution) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{found.version}"
    told = {"licenses": [{"expression": expression} for expression in found.metadata.get_all("License-Expression", [])[:1]]}
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": found.version,
        "purl": purl,
        **{key: value for key, value in told.items() if value},
    }


def _jar(sha256: str, name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:generic/{name}@{version}?checksum=sha256:{sha256}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, "hashes": [{"alg": "SHA-256", "content": sha256}]}


def main(arguments: list[str]) -> None:
    """Write the bill of this environment. Raises ConfigError when it differs from the lock."""
    installed = list(distributions())
    kind = "gpu.txt" if any(canonical(d.metadata["Name"]) == "vllm" for d in installed) else "cpu.txt"
    target, lock = Path(arguments[0]), Path(arguments[1]) if len(arguments) > 1 else LOCKS / kind
    if wrong := differences(lock.read_text(), installed):
        raise ConfigError(f"this environment differs from {lock.name}: {'; '.join(wrong[:10])}. run `make .venv`")
    made = bill(installed, (LOCKS / "kafka-jars.sha256").read_text())
    target.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
    print(f"{target}: {len(made['components'])} components")


if __name__ == "__main__":
    main(sys.argv[1:])
