"""``tidemill reward …``: rebuild versions from the lake, explain a score, fit the vote propensity, tune the backbone."""

import json
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infra.cli.exit_codes import ExitCode
from infra.cli.shared_options import json_option, progress_line, settings_options, since_until, warn
from streams.core.errors import ConfigError

if TYPE_CHECKING:
    from infra.settings.config import Settings
    from infra.settings.run_choice import RunChoice
    from reward.evaluation.version_replay import Replay
    from streams.core.events import RewardModelVersion


@click.group()
def reward() -> None:
    """The reward model: rebuild versions from the lake, explain a score, fit the vote propensity, tune the backbone."""


@reward.command()
@since_until("versions published")
@click.option("--version", "number", type=click.IntRange(1), default=None, help="Only this version.")
@click.option(
    "--without", default=None, metavar="USER", help="Rebuild as if this person had never been there, and say how much they changed each version."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for each version.")
@settings_options
def replay(since: datetime | None, until: datetime | None, number: int | None, without: str | None, as_json: bool, choice: "RunChoice") -> None:
    """Rebuild versions from the lake's labels and compare their checksums with the published ones; exits 3 when one differs."""
    from infra.local.part_process import artifact_store
    from infra.machine.machine_probe import as_the_run_computes
    from reward.evaluation.version_replay import rebuild_all

    settings = as_the_run_computes(choice.of_run(warn))
    versions = [v for v in _versions(settings, since, until) if number in (None, v.version)]
    if not versions:
        raise ConfigError("the lake has no reward-model version of that time or number")
    equal = True
    if without is not None:
        for rebuilt in rebuild_all(_replay(settings, without), versions, artifact_store(settings)):
            if as_json:
                click.echo(json.dumps(asdict(rebuilt)))
                continue
            moved = "the same" if rebuilt.equal else f"scores moved by {rebuilt.moved:.4f} on average, {rebuilt.most_moved:.4f} at the most"
            click.echo(f"version {rebuilt.version} without them: checksum {rebuilt.rebuilt[:12]}, {moved}")
        return
    for rebuilt in rebuild_all(_replay(settings), versions, artifact_store(settings)):
        equal &= rebuilt.equal
        if as_json:
            click.echo(json.dumps(asdict(rebuilt) | {"equal": rebuilt.equal}))
            continue
        verdict = "equal" if rebuilt.equal else f"NOT EQUAL: rebuilt {rebuilt.rebuilt[:12]}"
        click.echo(f"version {rebuilt.version}: {rebuilt.labels} labels, checksum {rebuilt.published[:12]}, {verdict}")
    if not equal:
        sys.exit(ExitCode.FAULT_FOUND)


@reward.command()
@click.argument("episode")
@click.option("--version", "number", type=click.IntRange(1), default=None, help="Version to use; default: the newest.")
@json_option
@settings_options
def explain(episode: str, number: int | None, as_json: bool, choice: "RunChoice") -> None:
    """Explain the score of EPISODE's answer: its uncertainty, the nearest labelled answers, and the labels that contributed most."""
    from infra.operate.explain_episode import Explainer

    found = Explainer(choice.of_run(warn), progress_line).explain(episode, number)
    click.echo(json.dumps(found.as_dict(), indent=1) if as_json else "\n".join(found.as_text()))


@reward.command()
@since_until("episodes that arrived")
@click.option(
    "--clip", default=5.0, show_default=True, type=click.FloatRange(1, 100), help="Largest weight of a verdict; the smallest is its inverse."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="File to write; name it in reward.propensity_file.")
@settings_options
def propensity(since: datetime | None, until: datetime | None, clip: float, out: Path, choice: "RunChoice") -> None:
    """Fit a model of who votes, on the lake's episodes with and without votes, and show the effect of weighting by it."""
    from reward.evaluation.version_replay import fit_who_votes

    settings = choice.of_run(warn)
    model, effect = fit_who_votes(_lake(settings), settings.policy.name, since, until, clip)
    model.save(out)
    click.echo(str(effect))
    click.echo(f"written to {out}; the updater uses it from its next start with reward.propensity_file={out}")


@reward.command()
@click.option("--rank", default=8, show_default=True, type=click.IntRange(1, 256), help="Rank of the LoRA updates.")
@click.option("--epochs", default=2, show_default=True, type=click.IntRange(1, 100), help="Passes over the labels.")
@click.option("--learning-rate", default=1e-4, show_default=True, type=click.FloatRange(1e-7, 1e-1), help="AdamW's learning rate.")
@click.option(
    "--held-out",
    default=0.25,
    show_default=True,
    type=click.FloatRange(0.05, 0.5),
    help="Share of the labels, the newest, held out to judge the result.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the first weights and of the order of labels.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder to write; name it in reward.backbone.")
@settings_options
def tune(rank: int, epochs: int, learning_rate: float, held_out: float, seed: int, out: Path, choice: "RunChoice") -> None:
    """Tune the backbone of the features with LoRA on the lake's labels; exits 1 when the newest labels are not predicted better."""
    from infra.local.part_process import base_folder
    from infra.machine.machine_probe import as_the_run_computes
    from reward.evaluation.version_replay import labels_of
    from reward.features.backbone_tuning import TuningRecipe
    from reward.features.backbone_tuning import tune as tune_backbone

    settings = as_the_run_computes(choice.of_run(warn))
    recipe = TuningRecipe(rank=rank, epochs=epochs, learning_rate=learning_rate, held_out=held_out, seed=seed)
    backbone = settings.reward.backbone_of(base_folder(settings.policy))
    tuned = tune_backbone(backbone, labels_of(_lake(settings), settings.policy.name), settings.reward, recipe, out, click.echo)
    click.echo(str(tuned))
    if not tuned.better:
        raise ConfigError(f"the tuned backbone does not predict the newest labels better: do not use {out} as reward.backbone")
    click.echo(f"written to {out}; set reward.backbone to it for all parts and restart them: the updater then reads all labels again")


def _lake(settings: "Settings") -> Any:
    from infra.local.part_process import lake_uri
    from streams.lake.parquet_lake import Lake

    return Lake(lake_uri(settings))


def _versions(settings: "Settings", since: datetime | None, until: datetime | None) -> "list[RewardModelVersion]":
    from reward.evaluation.version_replay import versions_of

    return versions_of(_lake(settings), settings.policy.name, since, until)


def _replay(settings: "Settings", without: str | None = None) -> "Replay":
    import torch

    from infra.local.part_process import base_folder
    from reward.evaluation.version_replay import Replay
    from reward.features.part_features import features_of_part
    from streams.erasure.forgotten_people import Forgotten

    torch.set_num_threads(settings.reward.threads)  # as the updater does: other threads, other last bits
    featurizer = features_of_part(base_folder(settings.policy), settings.reward)
    person = None if without is None else Forgotten.as_if_absent(without)
    return Replay(_lake(settings), settings.policy.name, settings.reward, featurizer, person, settings.join, settings.kafka.partitions)
