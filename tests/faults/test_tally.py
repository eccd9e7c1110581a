"""The table and the counts themselves."""

from __future__ import annotations

import pytest

from tests.faults.conftest import Tally
from tests.faults.table import FAULTS, PROMISES


def test_every_fault_puts_a_promise_to_the_test():
    named = {number for _, numbers in PROMISES.values() for number in numbers}
    assert named == set(FAULTS)


@pytest.mark.fault(1)
@pytest.mark.promise("quiet")
def test_a_test_is_counted_for_what_it_is_marked_with(tally: Tally):
    assert (tally.faults, tally.promises) == ((1,), ("quiet",))
    tally.injected = tally.survived = 1
