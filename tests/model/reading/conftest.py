import pytest

from pyterrier_routehead import HeadScoreStore


@pytest.fixture
def store(tmp_path):
    return HeadScoreStore(tmp_path / "store")
