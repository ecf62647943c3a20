from __future__ import annotations

import pytest

from mindrlhf.data.map_keys import check_map_keys, read_map_keys
from mindrlhf.runtime.errors import UserError


@pytest.mark.parametrize(
    "text", ["prompt=question, query=", '{"prompt": "question", "query": ""}', '{"prompt": "question", "query": null}']
)
def test_map_keys_of_a_flag(text: str) -> None:
    assert read_map_keys(text) == {"prompt": "question", "query": ""}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt", "'prompt' is no field=column"),
        ("", "is no field=column"),
        ("prompt=a,,", "is no field=column"),
        ('{"prompt": ', "is no JSON"),
        ('{"prompt": 3}', "prompt: 3 is no name"),
        ('{"prompt": ["a"]}', "is no name"),
    ],
)
def test_what_is_no_mapping(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_map_keys(text)


def test_a_list_is_no_mapping() -> None:
    with pytest.raises(UserError, match=r"d\.yaml: map_keys is no mapping"):
        check_map_keys(["prompt"], "d.yaml: map_keys")
