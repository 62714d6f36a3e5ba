"""``tidemill reward …``: versions again from the lake, why a score is what it is, who votes, and a backbone tuned on labels."""

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infra.cli.shared_options import Time, settings_options
from streams.core.errors import ConfigError

if TYPE_CHECKING:
    from infra.settings.config import Settings
    from reward.evaluation.version_replay import Replay
    from streams.core.events import RewardModelVersion


@click.group()
def reward() -> None:
    """The reward model: rebuild versions from the lake, explain a score, fit who votes, tune the backbone."""


@reward.command()
@click.option("--from", "since", type=Time(), default=None, help="Only versions published at or after this time (UTC where no zone is given).")
@click.option("--to", "until", type=Time(), default=None, help="Only versions published before it.")
@click.option("--version", "number", type=click.IntRange(1), default=None, help="Only this version.")
@click.option("--without", default=None, metavar="USER", help="As if this person had never been there: says how far they moved each version.")
@settings_options
def replay(
    since: datetime | None, until: datetime | None, number: int | None, without: str | None, config: str | None, overrides: tuple[str, ...]
) -> None:
    """Rebuild versions from the lake's labels and prove each equal by its checksum; exits 1 when one is not."""
    from infra.local.part_process import artifact_store
    from infra.machine.machine_probe import as_the_run_computes
    from infra.settings.config import load
    from reward.evaluation.version_replay import rebuild_all

    settings = as_the_run_computes(load(config, overrides))
    versions = [v for v in _versions(settings, since, until) if number in (None, v.version)]
    if not versions:
        raise ConfigError("the lake holds no reward-model version of that time or number")
    equal = True
    if without is not None:
        for rebuilt in rebuild_all(_replay(settings, without), versions, artifact_store(settings)):
            moved = "the same" if rebuilt.equal else f"scores moved by {rebuilt.moved:.4f} on average, {rebuilt.most_moved:.4f} at the most"
            click.echo(f"version {rebuilt.version} without them: checksum {rebuilt.rebuilt[:12]}, {moved}")
        return
    for rebuilt in rebuild_all(_replay(settings), versions, artifact_store(settings)):
        equal &= rebuilt.equal
        verdict = "equal" if rebuilt.equal else f"NOT EQUAL: rebuilt {rebuilt.rebuilt[:12]}"
        click.echo(f"version {rebuilt.version}: {rebuilt.labels} labels, checksum {rebuilt.published[:12]}, {verdict}")
    if not equal:
        sys.exit(1)


@reward.command()
@click.argument("episode")
@click.option("--version", "number", type=click.IntRange(1), default=None, help="By this version; the newest without it.")
@settings_options
def explain(episode: str, number: int | None, config: str | None, overrides: tuple[str, ...]) -> None:
    """Say why EPISODE's answer gets its score: uncertainty, nearest labelled answers, and the labels that moved it."""
    from infra.operate.explain_episode import Explainer
    from infra.settings.config import load

    for line in Explainer(load(config, overrides)).explain(episode, number).as_text():
        click.echo(line)


@reward.command()
@click.option("--from", "since", type=Time(), default=None, help="Only episodes that arrived at or after this time.")
@click.option("--to", "until", type=Time(), default=None, help="Only episodes that arrived before it.")
@click.option(
    "--clip", default=5.0, show_default=True, type=click.FloatRange(1, 100), help="No verdict counts more than this, nor less than its inverse."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Where to write it; name it in reward.propensity_file.")
@settings_options
def propensity(since: datetime | None, until: datetime | None, clip: float, out: Path, config: str | None, overrides: tuple[str, ...]) -> None:
    """Fit who votes on the lake's episodes, with votes and without, and say what weighting by it would do."""
    from infra.settings.config import load
    from reward.evaluation.version_replay import fit_who_votes

    settings = load(config, overrides)
    model, effect = fit_who_votes(_lake(settings), settings.policy.name, since, until, clip)
    model.save(out)
    click.echo(str(effect))
    click.echo(f"written to {out}; it counts from the updater's next start with reward.propensity_file={out}")


@reward.command()
@click.option("--rank", default=8, show_default=True, type=click.IntRange(1, 256), help="Rank of the updates.")
@click.option("--epochs", default=2, show_default=True, type=click.IntRange(1, 100), help="Times that each label is looked at.")
@click.option("--learning-rate", default=1e-4, show_default=True, type=click.FloatRange(1e-7, 1e-1), help="Of AdamW.")
@click.option("--held-out", default=0.25, show_default=True, type=click.FloatRange(0.05, 0.5), help="Share of the labels, the newest, to judge by.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the updates' first values and the order of labels.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder that is not there yet; name it in reward.backbone.")
@settings_options
def tune(rank: int, epochs: int, learning_rate: float, held_out: float, seed: int, out: Path, config: str | None, overrides: tuple[str, ...]) -> None:
    """Tune the features' backbone by LoRA on the lake's labels; exits 1 when the newest ones are not told better for it."""
    from infra.local.part_process import base_folder
    from infra.machine.machine_probe import as_the_run_computes
    from infra.settings.config import load
    from reward.evaluation.version_replay import labels_of
    from reward.features.backbone_tuning import TuningRecipe
    from reward.features.backbone_tuning import tune as tune_backbone

    settings = as_the_run_computes(load(config, overrides))
    recipe = TuningRecipe(rank=rank, epochs=epochs, learning_rate=learning_rate, held_out=held_out, seed=seed)
    backbone = settings.reward.backbone_of(base_folder(settings.policy))
    tuned = tune_backbone(backbone, labels_of(_lake(settings), settings.policy.name), settings.reward, recipe, out, click.echo)
    click.echo(str(tuned))
    if not tuned.better:
        raise ConfigError(f"the heads tell the newest labels no better from the tuned backbone: {out} is not worth naming in reward.backbone")
    click.echo(f"written to {out}; name it in reward.backbone of all parts and start them again: the updater then reads all labels anew")


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
    from reward.features.featurizer import Featurizer
    from streams.erasure.forgotten_people import Forgotten

    torch.set_num_threads(settings.reward.threads)  # as the updater does: other threads, other last bits
    featurizer = Featurizer.for_part(base_folder(settings.policy), settings.reward)
    person = None if without is None else Forgotten.as_if_absent(without)
    return Replay(_lake(settings), settings.policy.name, settings.reward, featurizer, person, settings.join)
