import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# A script finds its neighbours because Python puts its folder first.
sys.path.insert(0, str(EXAMPLES))


@pytest.fixture(scope="session")
def manual(tmp_path_factory) -> str:
    """30,000 characters of English."""
    file = tmp_path_factory.mktemp("text") / "manual.txt"
    file.write_text("\n".join(topics[name] for name in sorted(topics))[:30_000], "utf-8")
    return str(file)


@pytest.fixture(scope="session")
def tiny_text(manual) -> list[str]:
    """Arguments of the examples that train on text."""
    return [
        *("--dataset", manual, "--vocab_size", "300", "--block_size", "16", "--max_eval_samples", "16"),
        *("--max_train_samples", "160", "--per_device_train_batch_size", "16", "--report_to", "none"),
        *("--disable_tqdm", "True"),
    ]
