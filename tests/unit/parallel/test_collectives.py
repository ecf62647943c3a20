"""Lines of a compiled graph, as MindSpore 2.9 writes them, read as communication."""

from __future__ import annotations

from pathlib import Path

from mindrlhf.parallel.collectives import Collective, last_graph, read_collectives, summary

GRAPH = """
  %93(equiv_282_CNode_219) = AllReduce(%92) {instance name: forward_op_1467} primitive_attrs: {group: "4-63", \
fusion: I64(0), op: "sum", rank_list: (0, 1, 2, 3), group_rank_ids: (0, 1, 2, 3)} cnode_attrs: {checkpoint: Bool(1)}
      : (<Tensor[Float32], (256, 64)>) -> (<Tensor[Float32], (256, 64)>)
      # Fullname with scope: (Default/cell/score/AllReduce-op1)
  %94(grads) = AllReduce(%93) {instance name: grad_mirror_1} primitive_attrs: {group: "2-16", op: "sum", \
group_rank_ids: (0, 4)}
      : (<Tensor[BFloat16], (16, 32)>) -> (<Tensor[BFloat16], (16, 32)>)
      # Fullname with scope: (Gradients/Default/grad_mirror/AllReduce-op2)
  %95(x) = AllGather(%94) {instance name: redistribution_op_3} primitive_attrs: {group: "nccl_world_group"}
      : (<Tensor[Float32], (4, 8)>) -> (<Tensor[Float32], (32, 8)>)
  %96(y) = AllReduce(%95) primitive_attrs: {group: "tp-4-5", group_rank_ids: (0, 1, 2, 3, 4, 5, 6, 7)}
      : (<Tensor[Float32], (4, 8)>) -> (<Tensor[Float32], (4, 8)>)
  %97(z) = Add(%95, %96) primitive_attrs: {}
      : (<Tensor[Float32], (4, 8)>, <Tensor[Float32], (4, 8)>) -> (<Tensor[Float32], (4, 8)>)
"""


def test_a_graph(tmp_path: Path) -> None:
    path = tmp_path / "x_handle_group_info_0042.ir"
    path.write_text(GRAPH)
    first, second, third, fourth = read_collectives(path, {"tp-4-5": (4, 5)}, 8)
    assert first == Collective(
        "AllReduce", "forward", "operator", (0, 1, 2, 3), "Float32", (256, 64), (256, 64),
        "Default/cell/score/AllReduce-op1",
    )  # fmt: skip
    assert (second.role, second.cause, second.ranks, second.nbytes) == ("gradient", "mirror", (0, 4), 16 * 32 * 2)
    assert (third.cause, third.ranks, third.elements) == ("redistribution", tuple(range(8)), 32 * 8)
    assert (fourth.cause, fourth.ranks) == ("written", (4, 5))
    assert summary([first, second, second]) == [("AllReduce", 2, 2, 2 * 16 * 32 * 2), ("AllReduce", 4, 1, 65536)]


def test_the_newest_graph_of_the_last_pass(tmp_path: Path) -> None:
    for name in ("a_handle_group_info_0007.ir", "a_validate_0009.ir", "a_handle_group_info_0012.ir"):
        (tmp_path / name).write_text("")
    assert last_graph(tmp_path).name == "a_handle_group_info_0012.ir"
