"""Keys go where every Kafka client with Java's rule puts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2

from streams.kafka.partitioning import partition_of


@given(st.binary(max_size=60), st.integers(1, 1000))
def test_the_rule_is_kafkas_own(key: bytes, partitions: int) -> None:
    assert partition_of(key, partitions) == (murmur2(key) & 0x7FFFFFFF) % partitions


KNOWN = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"a-little-bit-longer-string": -1486304829}


@pytest.mark.parametrize(("key", "hashed"), KNOWN.items())
def test_known_values_of_apache_kafkas_own_tests(key: bytes, hashed: int) -> None:
    """From org.apache.kafka.common.utils.UtilsTest.testMurmur2."""
    assert partition_of(key, 1 << 31) == hashed & 0x7FFFFFFF
