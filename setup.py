"""Package metadata; the tools are configured in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

ACCELERATE = ["accelerate>=1.2.1"]
GGUF = ["gguf>=0.10", *ACCELERATE]
MULTI_GPU = ACCELERATE
QUANTISED = ["bitsandbytes>=0.46.1", *ACCELERATE]
PISA = ["pyterrier-pisa"]
PLOTS = ["matplotlib"]
LTR = ["lightgbm", "scikit-learn", "statsmodels"]

setup(
    name="pyterrier-routehead",
    version="0.1.0",
    description="Re-rank documents in PyTerrier with attention heads of a frozen decoder LLM",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="pyterrier_routehead contributors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["information retrieval", "re-ranking", "attention heads", "large language models", "PyTerrier"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Indexing",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["pyterrier_routehead", "pyterrier_routehead.*"]),
    package_data={"pyterrier_routehead": ["py.typed", "bundled/*/*/*.json", "bundled/*/*/*.safetensors"]},
    entry_points={
        "pyterrier.artifact": [
            "head_set.json = pyterrier_routehead:HeadSet",
            "head_router.safetensors = pyterrier_routehead:HeadRouter",
            "head_score_store.safetensors = pyterrier_routehead:HeadScoreStore",
            "head_index.numpy = pyterrier_routehead:HeadIndex",
        ]
    },
    zip_safe=False,
    install_requires=[
        # python-terrier is pyterrier's former name; before 1.0 both install the same files.
        "python-terrier>=1.0",
        "pyterrier>=1.1",
        "torch>=2.6",
        "transformers>=5.13",
        "huggingface_hub>=1.5",
        "pandas>=2.2.1",
        "numpy>=1.26.4",
        "scipy>=1.11.4",
        "safetensors>=0.8",
        "npids>=0.1.3",
        "ir_datasets>=0.5.11",
        "ir_measures>=0.4.1",
    ],
    extras_require={
        "gguf": GGUF,
        "multi-gpu": MULTI_GPU,
        "quantised": QUANTISED,
        "pisa": PISA,
        "plots": PLOTS,
        "ltr": LTR,
        "dev": [
            "pytest>=8", "hypothesis", "ruff", "mypy", "pandas-stubs", "scipy-stubs",
            "psutil", "peft", "pyterrier-caching",
            *GGUF, *MULTI_GPU, *QUANTISED, *PISA, *PLOTS, *LTR,
        ],
    },
)
