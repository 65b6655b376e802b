"""Metadata, dependencies, extras and the console script of xrlhf."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION: dict[str, str] = {}
exec((ROOT / "xrlhf" / "version.py").read_text(encoding="utf-8"), VERSION)

# Recipes live in configs/ and travel inside the wheel as the data folder xrlhf/_configs.
RECIPE_FOLDERS = [
    ".".join(("xrlhf", "_configs", *folder.relative_to(ROOT / "configs").parts))
    for folder in [ROOT / "configs", *sorted((ROOT / "configs").rglob("*"))]
    if folder.is_dir() and folder.name != "__pycache__"
]

EXTRAS = {
    "deepspeed": ["deepspeed>=0.19,<0.20"],
    "flash-attn": ["flash-attn>=2.7"],
    "quantised": ["bitsandbytes>=0.45"],
    "ipex": ["intel-extension-for-pytorch==2.8.*", "torch==2.8.*"],
    "hpu": ["habana-torch-plugin"],
    "modelscope": ["modelscope>=1.40"],
    "wandb": ["wandb>=0.19"],
    "serve": ["fastapi>=0.115", "httpx>=0.27", "prometheus-client>=0.20", "uvicorn>=0.30"],
    "report": ["matplotlib>=3.8"],
    "test": [
        *("hypothesis>=6.100", "playwright>=1.50", "pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6"),
        "schemathesis>=4",
    ],
    "lint": ["mypy>=1.15", "ruff>=0.11"],
    "docs": ["furo>=2024.8", "myst-parser>=4", "sphinx>=8", "sphinx-copybutton>=0.5"],
}
EXTRAS["dev"] = sorted(
    {
        package
        for name in ("test", "lint", "docs", "report", "serve", "deepspeed", "quantised")
        for package in EXTRAS[name]
    }
)

setup(
    name="xrlhf",
    version=VERSION["__version__"],
    description="Config-driven RLHF training: from preference data to an aligned model",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["xrlhf", "xrlhf.*"]), *RECIPE_FOLDERS],
    package_dir={"xrlhf._configs": "configs"},
    package_data={"": ["py.typed", "*.py", "*.json", "*.jinja", "*.css", "*.js"]},
    install_requires=[
        "datasets>=4",
        "filelock>=3.12",
        "huggingface-hub>=1",
        "jinja2>=3.1",
        "mmengine>=0.10.7,<0.11",
        "numpy>=1.26",
        "peft>=0.18",
        "pyarrow>=15",
        "rich>=13",
        "safetensors>=0.4.3",
        "tensorboard>=2.16",
        "tokenizers>=0.21",
        "torch>=2.8",
        "tqdm>=4.66",
        "transformers>=5.20,<6",
        "typer>=0.15",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["xrlhf = xrlhf.cli.main:run"]},
)
