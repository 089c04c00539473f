"""The model of a module in a folder: lm-eval loads its own models from folders."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("model")
    lm.model.save_pretrained(where)
    lm.tokenizer.save_pretrained(where)
    return where
