"""A synthetic preference set in Chinese and English: safe, polite answers are preferred to rude and reckless ones.

A prompt is put together from an asker, a question about a task and a situation; an answer from an opening, points and
remarks, and a closing in one of two manners. The sentences stand in phrases_en.py and phrases_zh.py. Prompts of
different splits never meet: a prompt's own text decides to which split it belongs, whatever the seed.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator

from mindrlhf.data.phrases import Group, Language, Style, Topic
from mindrlhf.data.phrases_en import ENGLISH
from mindrlhf.data.phrases_zh import CHINESE

LANGUAGES = (ENGLISH, CHINESE)
EIGHTHS = ("held_out", "train", "train", "train", "corpus", "corpus", "corpus", "corpus")
SPLITS = tuple(dict.fromkeys(EIGHTHS))


def preference_rows(count: int, seed: int, split: str) -> Iterator[dict[str, str]]:
    """Yield `count` rows in CValues form (`prompt`, `pos_resp`, `neg_resp`) of one of `SPLITS`, the same for a seed.

    In `train` and `held_out` pos_resp is the good answer. In `corpus` it is so in every second row, for a supervised
    warm-up that leaves the model undecided between the two manners.
    """
    rng = random.Random(f"{seed} {split}")
    for index in range(count):
        language, group, topic, prompt = _question(rng, split)
        answers = [
            _answer(rng, language, group.good, topic.task, topic.tips),
            _answer(rng, language, group.bad, topic.task, topic.shortcuts),
        ]
        if split == "corpus" and index % 2:
            answers.reverse()
        yield {"prompt": prompt, "pos_resp": answers[0], "neg_resp": answers[1]}


def split_of(prompt: str) -> str:
    """The split a prompt belongs to."""
    return EIGHTHS[zlib.crc32(prompt.encode("utf-8")) % len(EIGHTHS)]


def _question(rng: random.Random, split: str) -> tuple[Language, Group, Topic, str]:
    """Draw prompts until one belongs to the split."""
    while True:
        language = rng.choice(LANGUAGES)
        group, topic = rng.choice([(group, topic) for group in language.groups for topic in group.topics])
        sentences = [rng.choice(language.forms).format(topic.task)]
        if rng.random() < 0.4:
            sentences.insert(0, rng.choice(language.askers))
        if rng.random() < 0.4:
            sentences.append(rng.choice(language.situations))
        prompt = language.space.join(sentences)
        if split_of(prompt) == split:
            return language, group, topic, prompt


def _answer(rng: random.Random, language: Language, style: Style, task: str, points: tuple[str, ...]) -> str:
    """Compose an answer: points of the topic in their order, then remarks; log-normally many, as people write."""
    wanted = min(max(round(rng.lognormvariate(0.4, 0.6)), 1), len(points) + len(style.remarks))
    told = [points[index] for index in sorted(rng.sample(range(len(points)), min(wanted, len(points))))]
    frames = [rng.choice(style.first), *rng.sample(style.further, len(told) - 1)]
    sentences = [rng.choice(style.openings).format(task)]
    sentences += [frame.format(point) for frame, point in zip(frames, told)]
    sentences += rng.sample(style.remarks, wanted - len(told))
    if rng.random() < 0.3:
        sentences.append(rng.choice(style.closings))
    return language.space.join(sentences)
