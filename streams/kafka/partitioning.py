"""Which partition a key goes to: Kafka's own rule (murmur2, as Java's clients have it), so that equal keys of two topics lie side by side."""

import struct

SEED, MULTIPLIER, MASK = 0x9747B28C, 0x5BD1E995, 0xFFFFFFFF


def partition_of(key: bytes, partitions: int) -> int:
    """The partition, from 0, of a topic with so many. kafka-python computes the same, byte by byte and at twice the cost."""
    length = len(key)
    words = length // 4
    result = SEED ^ length
    for word in struct.unpack_from(f"<{words}I", key):
        word = (word * MULTIPLIER) & MASK
        word ^= word >> 24
        result = ((result * MULTIPLIER) ^ (word * MULTIPLIER)) & MASK
    if rest := key[words * 4 :]:
        result = ((result ^ int.from_bytes(rest, "little")) * MULTIPLIER) & MASK
    result ^= result >> 13
    result = (result * MULTIPLIER) & MASK
    return ((result ^ (result >> 15)) & 0x7FFFFFFF) % partitions
