"""``tidemill learner …``: rebuild adapters, export one merged into its base. ``tidemill upcycle``: a mixture-of-experts base from a dense model."""

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
    from infra.settings.config import Settings
    from infra.settings.run_choice import RunChoice
    from streams.core.events import AdapterVersion


@click.group()
def learner() -> None:
    """Adapters: rebuild one and compare it with the published one, or export one merged into its base."""


@learner.command()
@click.argument("adapter")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for each adapter.")
@settings_options
def replay(adapter: str, as_json: bool, choice: "RunChoice") -> None:
    """Rebuild ADAPTER (such as default@7) and all adapters before it, step by step, and compare each bit for bit; exits 3 when one differs."""
    from infra.local.part_process import artifact_store, base_folder
    from infra.machine.machine_probe import as_the_run_computes
    from learner.ring.adapter_replay import replay as again

    settings = as_the_run_computes(choice.of_run(warn))
    chain = _lineage(adapter, settings)
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


@learner.command()
@click.argument("adapter")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]),
              help="bfloat16 is half as large and may lose small changes.")  # fmt: skip
@settings_options
def export(adapter: str, out: Path, dtype: str, choice: "RunChoice") -> None:
    """Merge ADAPTER (such as default@7) into its base and write it to OUT, a Hugging Face folder with tokenizer, safetensors and lineage.

    The folder is loaded again and compared with what the learner published. The base is held in memory in float32.
    """
    from infra.local.part_process import artifact_store, base_folder
    from learner.ring.merged_export import export as write

    settings = choice.of_run(warn)
    found = write(
        _lineage(adapter, settings), artifact_store(settings), base_folder(settings.policy), out, "bfloat16" if dtype == "bfloat16" else "float32"
    )
    click.echo(f"{out}: {found.parameters / 1e6:.0f} M parameters in {dtype}, loaded again with transformers")
    click.echo(
        f"on {found.tokens} probe tokens at most {found.gap_nats:.2g} nats from {adapter} as it was published, which is on average"
        f" {found.step_nats:.2g} nats from the base"
    )


def _lineage(adapter: str, settings: "Settings") -> "list[AdapterVersion]":
    """The named adapter and all before it, oldest first, from the lake."""
    from infra.local.part_process import lake_uri
    from learner.ring.adapter_replay import ancestry
    from streams.core.topics import ADAPTERS
    from streams.lake.parquet_lake import Lake

    if (named := re.fullmatch(r"(.+)@(\d+)", adapter)) is None:
        raise ConfigError(f"{adapter!r} is not the name of an adapter: write policy@version, such as default@7")
    return ancestry([event for event in Lake(lake_uri(settings)).replay(ADAPTERS) if event.policy == named.group(1)], int(named.group(2)))


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
