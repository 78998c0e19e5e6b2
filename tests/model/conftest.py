import pytest

from toys import byte_tokenizer, toy_llm


@pytest.fixture(scope="module")
def llm():
    return toy_llm()


@pytest.fixture(scope="module")
def folder(llm, tmp_path_factory):
    """The same weights in a local folder."""
    path = tmp_path_factory.mktemp("model")
    llm.model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)
