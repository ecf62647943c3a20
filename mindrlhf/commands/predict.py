"""run_dpo.py --run_mode predict: questions in, answers out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindrlhf.config.schema import Config
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import require_writable, write_text
from mindrlhf.runtime.logging import log

if TYPE_CHECKING:
    from mindrlhf.data.tokenizers import ChatTokenizer
    from mindrlhf.trainers.policy import Source


def read_questions(words: Sequence[str] | None) -> list[str]:
    """The words themselves, or the lines of the one .txt or .jsonl file they name (strings, or "prompt" of objects)."""
    if not words:
        raise UserError("no question; give --predict_data one or more, or a .txt or .jsonl file with one a line")
    if len(words) > 1 or not words[0].endswith((".txt", ".jsonl")):
        return [_question(word, "--predict_data") for word in words]
    path = Path(words[0])
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise UserError(f"{path} holds no question")
    if path.suffix == ".txt":
        return [line for _, line in numbered]
    return [_question(_parse(line, f"{path} line {number}"), f"{path} line {number}") for number, line in numbered]


def _parse(line: str, place: str) -> Any:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f'{place} is not JSON; write {{"prompt": "..."}} or a string') from None
    return value.get("prompt") if isinstance(value, dict) else value


def _question(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f'{place}: there is no question; write a text that is not empty, or {{"prompt": "..."}}')
    return value


def _check_output(output: str | None) -> None:
    """Before the work, not after it: the answers can be written."""
    if output and Path(output).is_dir():
        raise UserError(f"--predict_output {output} is a folder; name a file")
    if output:
        require_writable(Path(output).parent)


def predict(config: Config, words: Sequence[str] | None, output: str | None) -> None:
    """Answer the questions in this one process; print them, and write prompt, answer and answer_ids to `output`."""
    questions = read_questions(words)
    _check_output(output)

    import numpy as np

    from mindrlhf.data.tokenizers import load_tokenizer
    from mindrlhf.generation.generate import generate, row_length
    from mindrlhf.generation.sampling import pick
    from mindrlhf.runtime.progress import Progress
    from mindrlhf.trainers.policy import build_options, find_source
    from mindrlhf.trainers.provenance import require_known_token
    from mindrlhf.trainers.setup import setup_device
    from mindrlhf.trainers.weights import load_weights, named

    device = setup_device(config)
    source = find_source(config)
    tokenizer = load_tokenizer(
        config.tokenizer.path or str(source.weights.folder), chat_template=config.tokenizer.chat_template
    )
    prompts = [_encode(tokenizer, question) for question in questions]
    settings = config.generation
    length = row_length(prompts, settings.max_new_tokens)
    limit = source.hf_config.get("max_position_embeddings")
    if limit and max(map(len, prompts)) + settings.max_new_tokens > limit:
        raise UserError(
            f"the longest question has {max(map(len, prompts))} tokens, and with generation.max_new_tokens "
            f"{settings.max_new_tokens} passes the model's {limit} positions; shorten one of them"
        )
    options = build_options(config, device, length, frozen=True)
    model_config = source.family.from_hf_config(source.hf_config, options)
    require_known_token(max(map(max, prompts)), model_config["vocab_size"], "a question")
    stop_ids = stop_tokens(source, tokenizer)
    model = source.family.build(model_config)
    load_weights(source, named(model))
    model.set_train(False)
    generator = np.random.default_rng(config.seed) if settings.do_sample else None
    choose = partial(
        pick, generator=generator, temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p
    )
    progress = Progress("predict", len(prompts) * settings.max_new_tokens, unit="token")
    answers = generate(source.family, model, prompts, settings.max_new_tokens, stop_ids, choose, _counter(progress))
    progress.close()
    texts = [tokenizer.decode(ids) for ids in answers]
    for question, text in zip(questions, texts):
        log(f"question: {question}\nanswer: {text}\n")
    if output and device.rank == 0:
        rows = [
            json.dumps({"prompt": question, "answer": text, "answer_ids": ids}, ensure_ascii=False)
            for question, text, ids in zip(questions, texts, answers)
        ]
        write_text(output, "\n".join(rows) + "\n")
        log(f"answers: {output}")


def _counter(progress: Any) -> Any:
    return lambda count: progress.advance(count=count)


def _encode(tokenizer: ChatTokenizer, question: str) -> list[int]:
    from mindrlhf.data.templates import TemplateError

    if not tokenizer.has_template:
        return tokenizer.encode_text(question)
    try:
        return tokenizer.encode_messages([{"role": "user", "content": question}], add_generation_prompt=True)
    except TemplateError as error:
        raise UserError(f"the question {question!r}: {error.sentence}") from None


def stop_tokens(source: Source, tokenizer: ChatTokenizer) -> set[int]:
    """Where an answer ends: eos_token_id of generation_config.json, else of config.json, and the tokenizer's EOS."""
    from mindrlhf.trainers.architecture import read_json_object

    generation = read_json_object(source.weights.folder / "generation_config.json")
    named = generation.get("eos_token_id", source.hf_config.get("eos_token_id"))
    listed = named if isinstance(named, list) else [named]
    return {token for token in (*listed, tokenizer.eos_id) if token is not None}
