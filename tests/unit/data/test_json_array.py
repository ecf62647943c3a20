from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindrlhf.data import json_array
from mindrlhf.data.json_array import ArrayReader, BrokenArray

TEXTS = st.text(st.sampled_from('ab"\\[]{},:\n 天\U0001f600'), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))


def elements(text: bytes, longest: int = 1 << 20, **begin: int) -> list[tuple[int, bytes]]:
    stream = io.BytesIO(text)
    stream.seek(begin.get("begin", 0))
    return list(ArrayReader(stream, longest, **begin))


@settings(deadline=None, max_examples=200)
@given(values=st.lists(VALUES, max_size=5), indent=st.sampled_from([None, 2]), ascii_only=st.booleans(), data=st.data())
def test_elements_are_those_of_json(values: list[Any], indent: int | None, ascii_only: bool, data: Any) -> None:
    text = json.dumps(values, ensure_ascii=ascii_only, indent=indent).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "BLOCK", data.draw(st.integers(1, 40)))
        found = elements(text)
        assert [json.loads(raw) for _, raw in found] == values
        assert all(text[offset : offset + len(raw)] == raw for offset, raw in found)
        for index, (offset, _) in enumerate(found):
            assert elements(text, begin=offset, number=index) == found[index:]


@settings(deadline=None, max_examples=200)
@given(values=st.lists(VALUES, min_size=1, max_size=4), data=st.data())
def test_a_cut_array_is_told(values: list[Any], data: Any) -> None:
    text = json.dumps(values).encode()
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "BLOCK", data.draw(st.integers(1, 40)))
        with pytest.raises(BrokenArray):
            elements(cut)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "does not begin"),
        (b'{"a": 1}', "does not begin"),
        (b"[1 2]", "no comma follows element 1"),
        (b"[1, 2", "ends within"),
        (b"[1,]", "without an element follows element 1"),
        (b"[,1]", "element 1 is missing"),
        (b"[1] 2", "follows its end"),
        (b"[1][2]", "follows its end"),
        (b'["a]', "ends within the array, after 0 whole"),
        (b'[{"a": "' + b"b" * 100 + b'"}', "ends within"),
    ],
)
def test_what_is_no_array(text: bytes, says: str) -> None:
    with pytest.raises(BrokenArray, match=says):
        elements(text)


def test_an_element_that_is_too_long_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "BLOCK", 10)
    assert len(elements(b'["' + b"a" * 50 + b'"]', longest=100)) == 1
    with pytest.raises(BrokenArray, match="element 1 is longer than 100 bytes"):
        elements(b'["' + b"a" * 500 + b'"]', longest=100)


def test_brackets_that_do_not_match_stay_in_their_element() -> None:
    assert [raw for _, raw in elements(b'[{"a": 1], {"b": 2}]')] == [b'{"a": 1]', b'{"b": 2}']
