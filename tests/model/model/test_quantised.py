"""Quantised models work as they are: only their attention is touched."""

import numpy as np
import pytest

from pyterrier_routehead import AttentionHeadScorer, FrozenLLM, ICRReranker
from tiny import tiny_model
from toys import byte_tokenizer, two_queries

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("bits", [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}])
@pytest.mark.parametrize("document_attention", ["listwise", "blockwise"])
def test_a_quantised_model_scores_nearly_as_the_whole_one(tmp_path, bits, document_attention):
    from transformers import BitsAndBytesConfig

    tiny_model("Llama", hidden_size=128, intermediate_size=128, initializer_range=0.1).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    quantised = FrozenLLM(tmp_path, dtype="float32", model_kwargs={"quantization_config": BitsAndBytesConfig(**bits)})
    whole = FrozenLLM(tmp_path, dtype="float32")
    assert type(quantised._load().layers[0].mlp.up_proj).__name__ in ("Linear8bitLt", "Linear4bit")
    scorers = [AttentionHeadScorer(llm=llm, document_attention=document_attention) for llm in (quantised, whole)]
    scores = [np.concatenate(scorer(two_queries())["head_scores"]) for scorer in scorers]
    assert np.corrcoef(*scores)[0, 1] > (0.9 if "load_in_8bit" in bits else 0.5)  # random weights take 4 bits badly
    assert np.abs(scores[0] - scores[1]).max() > 0  # it is another model
    assert quantised.fingerprint != whole.fingerprint
    scored = AttentionHeadScorer(llm=whole)(two_queries())
    with pytest.raises(ValueError, match="which is not"):
        ICRReranker(llm=quantised)(scored)
