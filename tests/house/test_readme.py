"""README.md: what it says of the model file scores new data as the training's own evaluation does."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.run import save_model
from flows.model import GlobalModel
from ml_tasks.averaging import load_vector, to_vector
from ml_tasks.breast_cancer import BreastCancer
from ml_tasks.tabular import Standardisation, apply

REPOSITORY = Path(__file__).resolve().parents[2]
MOST_LINES = 7


def test_the_model_file_scores_new_data_as_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = re.search(
        r"^## Score new data$.*?^```python\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.M | re.S
    )
    assert found is not None
    assert sum(1 for line in found[1].splitlines() if line) == MOST_LINES
    task, generator = BreastCancer(), np.random.default_rng(3)
    features = task.load(None, "north").test.features.copy()
    features[0, :5] = np.nan
    width = features.shape[1]
    scaling = Standardisation(
        np.nanmean(features, axis=0, dtype=np.float32), generator.uniform(0.5, 2.0, width).astype(np.float32)
    )
    vector = generator.normal(size=to_vector(task.model()).size).astype(np.float32)
    save_model(tmp_path / "model.safetensors", task, GlobalModel(vector, scaling))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"features": features}
    exec(compile(found[1], "README.md", "exec"), names)  # noqa: S102 - our own words
    model = task.model().eval()
    load_vector(model, vector)
    with torch.no_grad():
        expected = torch.sigmoid(model(torch.from_numpy(apply(features, scaling)))).flatten().tolist()
    assert names["scores"] == pytest.approx(expected)
    assert len(expected) == len(features)
