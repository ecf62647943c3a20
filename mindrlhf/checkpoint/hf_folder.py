"""A Hugging Face folder of safetensors: shards of bounded size and the index that says what lies where."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Callable

import numpy as np

from mindrlhf.checkpoint.find import INDEX, NETWORK, rank_folders, weight_files
from mindrlhf.checkpoint.safetensors_file import SafetensorsWriter
from mindrlhf.checkpoint.tensor_file import Spec
from mindrlhf.runtime.errors import UserError, some
from mindrlhf.runtime.files import replacing, write_json

SHARD = 5 * 10**9  # bytes of tensors in a file, transformers' own bound
Put = Callable[[str, np.ndarray], None]


def shards(specs: Mapping[str, Spec], limit: int = SHARD) -> dict[str, dict[str, Spec]]:
    """File name -> its tensors: filled in order up to `limit` bytes, of which a tensor that is larger has its own."""
    parts: list[dict[str, Spec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if parts[-1] and size + spec.nbytes > limit:
            parts.append({})
            size = 0
        parts[-1][name] = spec
        size += spec.nbytes
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{k:05}-of-{len(parts):05}.safetensors": part for k, part in enumerate(parts, 1)}


def refuse_weights(folder: Path) -> None:
    """Raise `UserError` where `folder` holds weights: they may be all there is of a model."""
    if not folder.is_dir():
        return
    found = [file.name for file in weight_files(folder)]
    found += [file.name for file in sorted(folder.glob("pytorch_model*.bin"))]
    found += [NETWORK] if (folder / NETWORK).is_dir() else []
    found += [place.name for place in rank_folders(folder).values()]
    if found:
        raise UserError(f"{folder} holds weights already ({some(found)}); remove them, or give another folder")


@contextlib.contextmanager
def hugging_face_folder(folder: Path, specs: Mapping[str, Spec], limit: int = SHARD) -> Iterator[Put]:
    """Yield what writes one tensor; the files appear when all have been written, and none of them on failure.

    specs: every tensor, in the order in which shards are filled. The folder holds no weights before, see
    `refuse_weights`.
    """
    parts = shards(specs, limit)
    holder: dict[str, SafetensorsWriter] = {}
    with contextlib.ExitStack() as stack:
        # Closed and renamed last to first: the index, which makes the shards one model, comes at the end.
        if len(parts) > 1:
            write_json(stack.enter_context(replacing(folder / INDEX)), _index(specs, parts))
        for file, part in parts.items():
            writer = SafetensorsWriter(stack.enter_context(replacing(folder / file)), part, hugging_face=True)
            stack.push(lambda kind, error, trace, writer=writer: writer.close(complete=kind is None))
            holder.update(dict.fromkeys(part, writer))
        yield lambda name, array: holder[name].put(name, array)


def _index(specs: Mapping[str, Spec], parts: Mapping[str, Mapping[str, Spec]]) -> dict[str, object]:
    size = sum(spec.nbytes for spec in specs.values())
    weight_map = {name: file for file, part in parts.items() for name in part}
    return {"metadata": {"total_size": size}, "weight_map": weight_map}
