"""A canary that harms, in a real run: real promoter, replicas' followers and routing on a real Kafka, watched by a real Prometheus."""

from pathlib import Path

from streams.core.health import Health, serve
from streams.kafka import KafkaSettings
from tests.e2e.test_promotion_nights import SETTINGS, Town
from tests.operators.prometheus import Prometheus, until


def test_a_canary_that_harms_is_taken_out_of_traffic_and_told(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    (tmp_path / "town").mkdir()
    town = Town(kafka_settings, tmp_path / "town", "harmed")
    prometheus = Prometheus(tmp_path / "prometheus", {"promoter": f"127.0.0.1:{serve(town.promoter_metrics, Health())}"})
    try:
        until(lambda: _answers(prometheus), 30, "Prometheus")
        good = town.publish(1, likes=0.8, scores=0.75)
        town.say(good, "promoted", canary_share=SETTINGS.promoted_share)
        town.settle()
        town.talk(60)
        assert prometheus.firing() == set()
        town.publish(2, likes=0.4, scores=0.95)
        town.to_night()
        town.night()
        assert town.moves()[-1] == (2, "rolled_back")
        until(lambda: "TidemillCanaryHarming" in prometheus.firing(), 30, "TidemillCanaryHarming")
        low, estimate, high = (bound(town, name) for name in ("low", "estimate", "high"))
        assert low < estimate < high
        assert estimate < 0  # high may be above: harm ends a canary on a narrower interval (promotion.harm_alpha) than is shown
        until(lambda: sorted(prometheus.values("tidemill_canary_difference")) == [low, estimate, high], 20, "the difference with its interval")
    finally:
        prometheus.process.terminate()
        prometheus.process.wait(30)
        town.close()


def bound(town: Town, name: str) -> float:
    return town.promoter_metrics.value("tidemill_canary_difference", policy=town.policy, bound=name)


def _answers(prometheus: Prometheus) -> bool:
    try:
        return prometheus.values('up{part="promoter"} == 1') != []
    except OSError:
        return False
