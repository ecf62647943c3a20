"""Yaml files that are refused, each with one sentence."""

from __future__ import annotations

import pytest

from mindrlhf.config.load import load_config

BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40))])
MERGE_BOMB = "\n".join(
    ["a0: &a0 {x: 1, y: 2}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}, *a{i - 1}]}}" for i in range(1, 40))]
)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "seed: 0\ntrain: [1\n",
            "run.yaml: line 3 is not plain yaml: while parsing a flow sequence,"
            " expected ',' or ']', but got '<stream end>'",
        ),
        ("seed: 1\nseed: 2", "run.yaml: seed is given twice, on lines 1 and 2; keep one"),
        ("train:\n  steps: 1\n  epochs: 1\n  steps: 2", "run.yaml: steps is given twice, on lines 2 and 4; keep one"),
        ("- a\n- b", "run.yaml: the file is ['a', 'b']; give a mapping of keys to values"),
        ("hello", "run.yaml: the file is 'hello'; give a mapping of keys to values"),
        (
            "seed: 0\n---\nseed: 1",
            "run.yaml: line 2 is not plain yaml: expected a single document in the stream, but found another document",
        ),
        ("model: {config: &a {b: *a}}", "run.yaml: line 1 has an anchor that contains itself; write it out"),
        ("output_dir: 2024-13-01", "run.yaml: month must be in 1..12; put the text in quotes"),
        (
            "output_dir: 20240131",
            "run.yaml: output_dir is 20240131; give text (in quotes where it looks like a number or a date)",
        ),
        ("include: 5", "run.yaml: include is 5; give a path or a list of paths of yaml files"),
        (
            "include: no.yaml",
            "run.yaml: include no.yaml does not exist as no.yaml; paths are relative to the file that includes",
        ),
        (b"seed: \xff", "run.yaml is not UTF-8 text (byte 6); give the path of a yaml file"),
        ("seed: 1\0", "run.yaml: character 7 is not allowed in yaml"),
        (
            "trian: {steps: 1}",
            "run.yaml: trian is not a key; did you mean train?",
        ),
    ],
)
def test_a_wrong_file_gets_one_sentence(write, content, sentence, refusal):
    assert refusal(write("run.yaml", content)) == sentence


def test_python_objects_are_refused(write, tmp_path, refusal):
    touched = tmp_path / "touched"
    sentence = refusal(write("run.yaml", f"seed: !!python/object/apply:os.mkdir [{touched}]"))
    assert sentence.startswith("run.yaml: line 1 is not plain yaml: could not determine a constructor for the tag")
    assert not touched.exists()


@pytest.mark.parametrize("content", [BOMB, MERGE_BOMB])
def test_aliases_that_multiply_are_refused(write, content, refusal):
    assert "means more than 10000 values" in refusal(write("run.yaml", content))


@pytest.mark.parametrize("content", ["[" * 50_000, "{a: " * 50_000, "- " * 50_000])
def test_deep_nesting_is_refused(write, refusal, content):
    assert refusal(write("run.yaml", content)).startswith("run.yaml is nested too deeply")


def test_a_large_file_is_refused_unread(write, refusal):
    assert refusal(write("run.yaml", b"#" * 1_000_001)).startswith("run.yaml is larger than 1000000 bytes")


def test_a_missing_file_and_a_folder_are_refused(write, tmp_path, refusal):
    assert refusal("no.yaml") == "no.yaml does not exist; give the path of a yaml file"
    assert "Is a directory" in refusal(str(tmp_path))


def test_an_include_circle_is_refused(write, refusal):
    write("one.yaml", "include: two.yaml")
    write("two.yaml", "include: one.yaml")
    assert "one.yaml includes itself (" in refusal("one.yaml")


def test_an_error_in_an_include_names_that_file(write, refusal):
    write("base/one.yaml", "rlhf: {betta: 1}")
    assert refusal(write("run.yaml", "include: base/one.yaml")).startswith("base/one.yaml: rlhf.betta is not a key")


@pytest.mark.parametrize("content", ["seed: 1\nseed: 1", "seed: 1\noutput_dir: x\nseed: 1"])
def test_the_same_word_twice_is_one(write, content):
    assert load_config(write("run.yaml", content)).seed == 1


@pytest.mark.parametrize("content", ["seed: 1\nseed: '1'", "train: {}\ntrain: {}", "seed: 1\nseed: 1.0"])
def test_two_values_that_only_look_alike_are_refused(write, refusal, content):
    assert "is given twice, on lines 1 and 2; keep one" in refusal(write("run.yaml", content))
