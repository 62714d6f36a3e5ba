"""The features that a part uses, as the settings say: the one place that chooses between kinds of backbone."""

from pathlib import Path

from reward.features.feature_store import FeatureStore, PartFeatures, StoredFeatures
from reward.features.featurizer import Featurizer
from reward.features.sequence_backbone import SequenceFeaturizer
from reward.settings import RewardSettings

STORE = "features.sqlite3"


def features_of_part(base: Path, settings: RewardSettings, state: Path | None = None) -> PartFeatures:
    """Features on the backbone that the settings name, or on the dense model of this base. ``state``: the folder of a part that keeps what it
    computed over restarts (the updater); None keeps it in memory alone. Raises ConfigError."""
    backbone, kept = settings.backbone_of(base), settings.feature_store_pairs
    store = FeatureStore(state / STORE, kept) if state is not None and kept else None
    if settings.backbone_kind == "language_model":  # has a cache in memory of its own
        return StoredFeatures(Featurizer(backbone, settings), 0, store)
    return StoredFeatures(SequenceFeaturizer(backbone, settings), settings.feature_cache_pairs, store)
