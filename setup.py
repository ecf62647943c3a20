"""Package metadata; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "mindrlhf" / "__init__.py").read_text(encoding="utf-8"))

setup(
    name="mindrlhf",
    version=VERSION.group(1),
    description="Preference alignment and RLHF for MindSpore",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["mindrlhf", "mindrlhf.*"]),
    package_data={"mindrlhf.data": ["chat_templates/*.jinja"]},
    python_requires=">=3.9,<3.12",
    install_requires=[
        "mindspore==2.9.0",
        "mindformers==1.9.0",
        # 0.8 writes non-contiguous slices wrongly and silently, and MindSpore's transforms hand it such slices.
        "safetensors>=0.4,<0.8",
        "matplotlib>=3.7",
    ],
    extras_require={
        "dev": [
            "ruff==0.17.5",
            "mypy==2.4.1",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "types-PyYAML",
        ],
        "interop": ["torch==2.13.0", "peft>=0.17,<1"],
    },
)
