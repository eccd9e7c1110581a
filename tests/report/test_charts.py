"""Charts: round ticks, points where they belong, text that is text."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sccam.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Series, chart

numbers = st.floats(-1e6, 1e6, allow_nan=False)


def drawing(*series: Series, x: str = "x", y: str = "y", **options) -> ElementTree.Element:
    return ElementTree.fromstring(chart(series, x=x, y=y, **options))


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8))
def test_every_point_lies_inside_the_axes(points):
    for circle in drawing(Series("a", points, marks=True)).iter("circle"):
        assert LEFT - 0.1 <= float(circle.attrib["cx"]) <= WIDTH - RIGHT + 0.1
        assert TOP - 0.1 <= float(circle.attrib["cy"]) <= HEIGHT - BOTTOM + 0.1


@given(numbers, numbers)
def test_ticks_are_few_round_and_all_different(low, high):
    found = [
        text for text in drawing(Series("a", [(low, 0.0), (high, 1.0)])).iter("text") if text.text not in ("x", "y")
    ]
    across = [text.text for text in found if text.attrib["text-anchor"] == "middle"]
    assert 2 <= len(across) <= 9 and len(set(across)) == len(across)


def test_higher_values_are_higher_and_later_ones_farther_right():
    circles = list(drawing(Series("a", [(0, 1), (1, 5), (2, 3)], marks=True)).iter("circle"))
    right, down = ([float(circle.attrib[name]) for circle in circles] for name in ("cx", "cy"))
    assert right == sorted(right) and down[1] < down[2] < down[0]


def test_what_is_not_finite_is_left_out_and_nothing_gives_nothing():
    assert len(list(drawing(Series("a", [(0, math.nan), (1, 2), (2, 3)], marks=True)).iter("circle"))) == 2
    assert chart([Series("a", [(0, math.inf)])], x="x", y="y") == "" and chart([], x="x", y="y") == ""


@pytest.mark.parametrize("text", ["<script>boom()</script>", '"&', "a < b"])
def test_names_are_text(text):
    found = drawing(Series(text, [(0, 1)]), Series("b", [(1, 2)]), x=text, rules=[(0.5, text)])
    assert not list(found.iter("script"))
    assert sum(element.text == text for element in found.iter("text")) == 2
    assert text in "".join(found.itertext())


def test_an_axis_without_a_name_has_no_numbers():
    found = chart([Series("a", [(0.0, 1.0), (2.0, 3.0)], marks=True, texts=("p", "q"))], x="", y="")
    assert not re.search(r"<text[^>]*>[0-9]", found)
