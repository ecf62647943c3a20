"""The damage table: what is done to the output of a run of 8 ranks (dp2 mp2 pp2), and what is said. Nothing is silent.

`ours` has manifests, `theirs` was left by another program: .ckpt without a checksum, as MindSpore writes by default.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from damage import (
    ARRAYS,
    FIRST,
    LAST,
    STAGES,
    alone,
    another_stage,
    boundary,
    copy_rank,
    cut_short,
    edit_manifest,
    file_of,
    flip,
    folder_of,
    only,
    rewrite,
    swap,
    without,
)
from sliced_runs import cut, dense, same

from mindrlhf.checkpoint.find import find_weights
from mindrlhf.checkpoint.merge import transform
from mindrlhf.checkpoint.tensors import Tensors, read_weights
from mindrlhf.parallel.strategy import strategy_path, write_layouts, write_stages
from mindrlhf.runtime.errors import CorruptCheckpoint, UserError

Run = Callable[[Path], None]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Undamaged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        folder = tmp_path_factory.mktemp("runs")
        write_stages(folder / "strategies", STAGES)
        one = cut(folder / "one", ARRAYS, dense(ARRAYS, 1, 1))
        for name in ("ours", "again"):
            transform(one, folder / name, dst_strategy=folder / "strategies")
        cut(folder / "theirs", ARRAYS, STAGES, "ckpt")
        yield {name: folder / name for name in ("ours", "again", "theirs")}


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


TABLE: list[tuple[str, str, Run, str]] = [
    # which run, the damage, how it is done, what is said
    ("both", "a missing rank", lambda out: shutil.rmtree(folder_of(out, 5)), r"lacks the checkpoint of rank 5:"),
    ("both", "two missing ranks", lambda out: [shutil.rmtree(folder_of(out, k)) for k in (0, 7)], r"of rank 0, 7:"),
    ("both", "an extra rank", lambda out: copy_rank(out, 0, 8), r"holds a checkpoint of rank 8, and the strategy"),
    ("both", "an empty rank", lambda out: file_of(out, 3).unlink(), r"rank_3 holds no checkpoint"),
    (
        "both",
        "two files in a rank",
        lambda out: shutil.copy(file_of(out, 3), folder_of(out, 3) / f"older{file_of(out, 3).suffix}"),
        r"rank_3 holds 2 checkpoints \(checkpoint_0\.\w+, older\.\w+\)",
    ),
    (
        "both",
        "ranks of two formats",
        lambda out: file_of(out, 2).rename(
            file_of(out, 2).with_suffix({".ckpt": ".safetensors"}.get(file_of(out, 2).suffix, ".ckpt"))
        ),
        r"are of different formats",
    ),
    ("both", "an empty file", lambda out: cut_short(file_of(out, 1), 0), r"rank_1/checkpoint_0\.\w+ is damaged"),
    ("both", "a truncated file", lambda out: cut_short(file_of(out, 6), -9), r"rank_6/checkpoint_0\.\w+ is damaged"),
    ("both", "half a header", lambda out: cut_short(file_of(out, 0), 20), r"rank_0/checkpoint_0\.\w+ is damaged"),
    (
        "theirs",
        "cut between two tensors",
        lambda out: cut_short(file_of(out, 4), boundary(file_of(out, 4))),
        r"rank_4/checkpoint_0\.ckpt lacks 1 of 4 tensors of its strategy: lm_head\.weight",
    ),
    (
        "ours",
        "a flipped bit",
        lambda out: flip(file_of(out, 2), -5),
        r"rank_2/checkpoint_0\.safetensors is damaged: the sha256 of",
    ),
    ("ours", "a flipped bit of the header", lambda out: flip(file_of(out, 7), 40), r"rank_7/checkpoint_0\.safetensors"),
    (
        "theirs",
        "a flipped bit in one of two replicas",
        lambda out: flip(file_of(out, 2), -5),
        r"rank_0 and rank_2 .* dif",
    ),
    (
        "ours",
        "a zeroed page",
        lambda out: alone(file_of(out, 5)).write_bytes(
            file_of(out, 5).read_bytes()[:-64] + bytes(64),
        ),
        r"rank_5/checkpoint_0\.safetensors is damaged",
    ),
    ("ours", "a rank of another step", lambda out: edit_manifest(out, 3, step=9), r"step None and .*rank_3 of step 9"),
    (
        "ours",
        "a manifest that is no JSON",
        lambda out: cut_short(folder_of(out, 3) / "manifest.json", 40),
        r"is damaged",
    ),
    ("ours", "a manifest of a newer format", lambda out: edit_manifest(out, 3, format_version=2), r"format version 2"),
    ("ours", "a manifest of another file", lambda out: edit_manifest(out, 3, file="../x.ckpt"), r"is of \.\./x\.ckpt"),
    ("ours", "a manifest with a wrong size", lambda out: edit_manifest(out, 3, size=-1), r"manifest\.json is damaged"),
    (
        "ours",
        "a rank whose save was killed",
        lambda out: (folder_of(out, 3) / "manifest.json").unlink(),
        r"1 of 8 ranks have no manifest\.json.*: rank_3 of",
    ),
    (
        "ours",
        "two ranks swapped",
        lambda out: swap(out, 0, 1),
        r"rank_0/\S+ holds \[8:16, 0:8\] of \S+ by its manifest, and by .* it would be \[0:8, 0:8\]",
    ),
    (
        "ours",
        "two stages swapped",
        lambda out: swap(out, 0, 4),
        r"rank_0/checkpoint_0\.safetensors lacks 4 of 4 tensors",
    ),
    ("theirs", "two ranks swapped", lambda out: swap(out, 0, 1), r"rank_0 and rank_2 of .* should hold the same"),
    (
        "theirs",
        "a rank copied over both ranks of another slice",
        lambda out: [copy_rank(out, 0, 1), copy_rank(out, 0, 3)],
        r"holds the same numbers in every slice of model\.\S+, which .* calls different",
    ),
    (
        "both",
        "a tensor of another shape",
        lambda out: rewrite(out, 1, lambda held: held.update({FIRST: held[FIRST][:2]})),
        r"rank_1/checkpoint_0\.\w+ holds model.tok_embeddings.weight as float32 \(2, 8\), a slice of \(4, 8\)",
    ),
    (
        "both",
        "a tensor with another number of axes",
        lambda out: rewrite(out, 0, lambda held: held.update({FIRST: held[FIRST].reshape(-1)})),
        r"rank_0/checkpoint_0\.\w+ holds model.tok_embeddings.weight otherwise .*: it has 1 axes, its strategy says 2",
    ),
    (
        "both",
        "a tensor of another dtype",
        lambda out: rewrite(out, 6, lambda held: held.update({LAST: held[LAST].astype(np.float16)})),
        r"rank_6/checkpoint_0\.\w+ holds lm_head\.weight as float16",
    ),
    (
        "both",
        "a tensor missing in one rank",
        lambda out: rewrite(out, 7, lambda held: held.pop(LAST)),
        r"rank_7/checkpoint_0\.\w+ lacks 1 of 4 tensors of its strategy: lm_head\.weight",
    ),
    (
        "both",
        "a tensor more in one rank",
        lambda out: rewrite(out, 7, lambda held: held.update(more=np.ones(2, np.float32))),
        r"rank_7/checkpoint_0\.\w+ holds 1 tensors that its strategy .* does not know: more",
    ),
    (
        "both",
        "a replica with other numbers",
        lambda out: rewrite(out, 2, lambda held: held.update({FIRST: held[FIRST] + 1})),
        r"rank_0 and rank_2 of .* should hold the same model\.tok_embeddings\.weight and differ",
    ),
    ("both", "no strategy", lambda out: shutil.rmtree(out / "strategy"), r"8 rank folders, and .*strategy no strategy"),
    (
        "both",
        "a strategy that a rank lacks",
        lambda out: strategy_path(out / "strategy", 2).unlink(),
        r"strategy lacks the strategy of rank 2",
    ),
    (
        "both",
        "the strategy of the first stage alone",
        lambda out: only(out, range(4)),
        r"checkpoint of rank 4, 5, 6, 7, and",
    ),
    (
        "both",
        "the strategy of the last stage alone",
        lambda out: only(out, range(4, 8)),
        r"strategy of rank 0, 1, 2, 3",
    ),
    (
        "both",
        "a truncated strategy",
        lambda out: cut_short(strategy_path(out / "strategy", 4), 50),
        r"ckpt_strategy_rank_4\.ckpt is damaged",
    ),
    (
        "both",
        "strategies that contradict each other",
        lambda out: another_stage(out, 1, FIRST),
        r"strategies of ranks 0 and 1 in .* differ",
    ),
    (
        "both",
        "the first stage's strategy for both stages",
        lambda out: [
            shutil.copy(strategy_path(out / "strategy", 0), strategy_path(out / "strategy", k)) for k in range(4, 8)
        ],
        r"strategies of ranks 4 to 7, whose tensors are all those of ranks before them",
    ),
    (
        "both",
        "stages of different sizes",
        lambda out: [
            write_layouts(strategy_path(out / "strategy", k), dense(ARRAYS, 1, 2, 2)[1], 1) for k in range(4, 8)
        ],
        r"ckpt_strategy_rank_4\.ckpt is for 2 ranks, that of rank 0 for 4",
    ),
    (
        "both",
        "a tensor missing in the strategy",
        lambda out: without(out, LAST),
        r"rank_4/checkpoint_0\.\w+ holds 1 tensors that its strategy .* does not know: lm_head\.weight",
    ),
    (
        "both",
        "the strategy of another model",
        lambda out: write_stages(out / "strategy", [{f"x.{n}": v for n, v in stage.items()} for stage in STAGES]),
        r"rank_0/checkpoint_0\.\w+ lacks 4 of 4 tensors of its strategy: x\.",
    ),
    (
        "both",
        "the strategy of a smaller run",
        lambda out: write_stages(out / "strategy", dense(ARRAYS, 1, 2, 2)),
        r"holds a checkpoint of rank 4, 5, 6, 7, and the strategy .* is for 4 ranks",
    ),
    (
        "both",
        "the strategy of more tensor parallelism",
        lambda out: write_stages(out / "strategy", dense(ARRAYS, 1, 4, 2)),
        r"rank_2/checkpoint_0\.\w+ (holds what .*rank_0/checkpoint_0\.\w+ holds|.* strategy of another layout)",
    ),
    (
        "both",
        "the strategy of no tensor parallelism",
        lambda out: write_stages(out / "strategy", dense(ARRAYS, 4, 1, 2)),
        r"rank_4 and rank_5 of .* should hold the same|rank_1/.* that is the strategy of another layout",
    ),
]
CASES = [(run, *row[1:]) for row in TABLE for run in (("ours", "theirs") if row[0] == "both" else (row[0],))]


@pytest.mark.parametrize(("run", "damage", "how", "sentence"), CASES, ids=[f"{case[0]}: {case[1]}" for case in CASES])
def test_damage_is_named(tmp_path: Path, runs: dict[str, Path], run: str, damage: str, how: Run, sentence: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(runs[run], out)
    how(out)
    with pytest.raises(UserError, match=sentence) as caught:
        transform(out / "checkpoint_network", tmp_path / "merged")
    assert str(out) in str(caught.value), "it says where"
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "merged").exists(), "it leaves nothing"


@pytest.mark.parametrize("run", ["ours", "theirs"])
def test_what_is_whole_passes(tmp_path: Path, runs: dict[str, Path], run: str) -> None:
    transform(runs[run], tmp_path / "merged")
    assert same(read_weights(find_weights(tmp_path / "merged")), ARRAYS)


def test_ranks_of_different_saves_of_one_step(tmp_path: Path, runs: dict[str, Path]) -> None:
    out = tmp_path / "out"
    shutil.copytree(runs["ours"], out)
    shutil.copytree(runs["again"] / "checkpoint_network" / "rank_3", folder_of(out, 3), dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"rank_0 and .*rank_3 are of different saves of step None"):
        transform(out, tmp_path / "merged")


def test_a_wrong_axis_is_known_by_the_manifest_alone(tmp_path: Path, runs: dict[str, Path]) -> None:
    out = tmp_path / "out"
    shutil.copytree(runs["ours"], out)
    turned = [
        {name: replace(layout, tensor_map=tuple(reversed(layout.tensor_map))) for name, layout in stage.items()}
        for stage in STAGES
    ]
    write_stages(out / "strategy", turned)
    with pytest.raises(UserError, match=r"that is the strategy of another layout"):
        transform(out, tmp_path / "merged")


def test_a_slice_is_not_taken_for_the_whole_where_no_strategy_lies_beside_it(
    tmp_path: Path, runs: dict[str, Path]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(runs["ours"], out)
    shutil.rmtree(out / "strategy")
    for place in (out, out / "checkpoint_network" / "rank_1", file_of(out, 3)):
        with pytest.raises(
            UserError, match=r"rank_\d/checkpoint_0\.safetensors holds the slices of one rank by its man"
        ):
            Tensors(find_weights(place))


def test_names_of_mindspore_that_say_other_steps(tmp_path: Path, runs: dict[str, Path]) -> None:
    out = tmp_path / "out"
    shutil.copytree(runs["theirs"], out)
    for rank in range(8):
        file_of(out, rank).rename(folder_of(out, rank) / f"llama_rank_{rank}-3_{20 if rank == 6 else 10}.ckpt")
    with pytest.raises(UserError, match=r"rank_0-3_10\.ckpt and .*rank_6-3_20\.ckpt are of different steps"):
        transform(out, tmp_path / "merged")


def test_folders_copied_by_hand_are_fine_where_the_strategy_says_so(tmp_path: Path, runs: dict[str, Path]) -> None:
    for run in ("ours", "theirs"):
        out = tmp_path / run
        shutil.copytree(runs[run], out)
        copy_rank(out, 0, 2)
        copy_rank(out, 5, 7)
        transform(out, tmp_path / f"{run}-merged")
        assert same(read_weights(find_weights(tmp_path / f"{run}-merged")), ARRAYS)


def test_exchanged_ranks_without_manifests_are_known_by_the_table_of_whole_tensors(
    tmp_path: Path, runs: dict[str, Path]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(runs["ours"], out)
    for rank in range(8):
        (folder_of(out, rank) / "manifest.json").unlink()
    transform(out, tmp_path / "merged")
    copy_rank(out, 0, 2)  # which the strategy says hold the same
    swap(out, 0, 1)
    copy_rank(out, 0, 2)
    copy_rank(out, 1, 3)
    with pytest.raises(CorruptCheckpoint, match=r"makes up other tensors than its tensors\.json says: "):
        transform(out, tmp_path / "exchanged")
    assert not (tmp_path / "exchanged").exists()


def test_a_checkpoint_without_manifest_is_taken_with_one_warning(
    tmp_path: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(runs["theirs"], out)
    transform(out, tmp_path / "merged")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"warning: {out}/checkpoint_network has no manifest of ours")
    transform(runs["ours"], tmp_path / "again")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("run", ["ours", "theirs"])
def test_a_view_of_damaged_slices_is_refused_too(tmp_path: Path, runs: dict[str, Path], run: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(runs[run], out)
    cut_short(file_of(out, 6), -9)
    with pytest.raises(UserError, match=r"rank_6/checkpoint_0\.\w+ is damaged"):
        Tensors(find_weights(out))


def test_of_two_readers_each_checks_its_share(tmp_path: Path, runs: dict[str, Path]) -> None:
    out = tmp_path / "out"
    shutil.copytree(runs["ours"], out)
    flip(file_of(out, 5), -5)
    with Tensors(find_weights(out)) as opened:
        opened.check(0, 2)
        with pytest.raises(UserError, match=r"rank_5/checkpoint_0\.safetensors is damaged"):
            opened.check(1, 2)
    with pytest.raises(UserError, match=r"rank_5/checkpoint_0\.safetensors is damaged"):
        read_weights(find_weights(out))
