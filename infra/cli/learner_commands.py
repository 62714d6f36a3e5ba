"""``tidemill learner …``: rebuild adapters from their recipes. ``tidemill upcycle``: make a mixture-of-experts base from a dense model."""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infra.cli.exit_codes import ExitCode
from infra.cli.shared_options import settings_options, warn
from streams.core.errors import ConfigError

if TYPE_CHECKING:
    from infra.settings.run_choice import RunChoice


@click.group()
def learner() -> None:
    """The learner: rebuild an adapter and compare it with the published one."""


@learner.command()
@click.argument("adapter")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for each adapter.")
@settings_options
def replay(adapter: str, as_json: bool, choice: "RunChoice") -> None:
    """Rebuild ADAPTER (such as default@7) and all adapters before it, step by step, and compare each bit for bit; exits 3 when one differs."""
    from infra.local.part_process import artifact_store, base_folder, lake_uri
    from infra.machine.machine_probe import as_the_run_computes
    from learner.ring.adapter_replay import ancestry
    from learner.ring.adapter_replay import replay as again
    from streams.core.topics import ADAPTERS
    from streams.lake.parquet_lake import Lake

    if (named := re.fullmatch(r"(.+)@(\d+)", adapter)) is None:
        raise ConfigError(f"{adapter!r} is not the name of an adapter: write policy@version, such as default@7")
    settings = as_the_run_computes(choice.of_run(warn))
    known = [event for event in Lake(lake_uri(settings)).replay(ADAPTERS) if event.policy == named.group(1)]
    chain = ancestry(known, int(named.group(2)))
    equal = True
    for one in again(chain, artifact_store(settings), base_folder(settings.policy), settings.reward):
        equal &= one.equal
        if as_json:
            click.echo(json.dumps(asdict(one) | {"equal": one.equal}))
            continue
        verdict = "equal" if one.equal else f"NOT EQUAL: replayed {one.replayed[:12]}"
        click.echo(f"{one.name}  step {one.step}  weights {one.published[:12]}  {verdict}")
    if not equal:
        sys.exit(ExitCode.FAULT_FOUND)


@click.command()
@click.argument("dense", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--experts", default=4, show_default=True, type=click.IntRange(2, 64))
@click.option("--per-token", default=2, show_default=True, type=click.IntRange(1, 64), help="Experts used for each token.")
def upcycle(dense: Path, out: Path, experts: int, per_token: int) -> None:
    """Turn the DENSE model (a folder; Llama, Mistral or Qwen3 architecture) into a mixture of experts in OUT. At first it gives the same answers.

    Use OUT as a base with --set policy.base=OUT.
    """
    from learner.models.sparse_upcycling import upcycle_folder

    before, after, used = upcycle_folder(dense, out, experts, per_token)
    gib = after * 2 / 2**30
    click.echo(
        f"{out}: {before / 1e6:.0f} M parameters became {after / 1e6:.0f} M ({gib:.1f} GiB in bfloat16), {used / 1e6:.0f} M of them for each token"
    )
    click.echo(f"a token needs {used / before:.1f} times the arithmetic of the dense model; the answers are the same until experts are trained")
