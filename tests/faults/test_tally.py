"""The table itself."""

from __future__ import annotations

from tests.faults.table import FAULTS, PROMISES


def test_every_fault_puts_a_promise_to_the_test():
    named = {number for _, numbers in PROMISES.values() for number in numbers}
    assert named == set(FAULTS)
