"""run_dpo.py under MindSpore's semi-auto parallel, really executed on CPU: only what CPU lacks is put in its place.

semi_auto_run.py FLAGS          by msrun on as many workers as `parallel` says
"""

from __future__ import annotations

import sys
from typing import Any

from semi_auto_worker import divide_functions, divide_operators, open_semi_auto

from mindrlhf.commands.train import main
from mindrlhf.config.schema import Config
from mindrlhf.parallel.layout import Layout
from mindrlhf.runtime.device import Device, setup
from mindrlhf.runtime.errors import run
from mindrlhf.runtime.logging import world
from mindrlhf.trainers import dpo, frozen
from mindrlhf.trainers import setup as trainers_setup


def setup_training(config: Config) -> tuple[Device, Layout]:
    """As the trainers' own, which refuses CPU."""
    layout = Layout.of(config.parallel, world())
    device = setup("CPU", seed=config.seed)
    open_semi_auto(layout, device.rank)
    return device, layout


def build_preference_cell(family: Any, model_config: Any, loss: Any, layout: Layout, collation: str) -> Any:
    """As the registry's, its plain operators with strategies."""
    cell = registered(family, model_config, loss, layout, collation)
    divide_operators(cell.score.backbone, layout)
    return cell


def sequence_scorer(*given: Any, layout: Layout, **words: Any) -> Any:
    """The same of a reference's."""
    cell = plain_scorer(*given, layout=layout, **words)
    divide_operators(cell.backbone, layout)
    return cell


registered, plain_scorer = dpo.build_preference_cell, frozen.sequence_scorer
frozen.sequence_scorer = sequence_scorer
trainers_setup.setup_training = setup_training
dpo.build_preference_cell = build_preference_cell
divide_functions()
sys.exit(run(main))
