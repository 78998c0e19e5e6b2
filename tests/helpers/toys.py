"""A tiny model with a tokenizer that reads bytes, and small frames: what the tests of the transformers run on."""

import pandas as pd
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pyterrier_routehead import FrozenLLM
from tiny import tiny_model

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|turn|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=10)}
    tokenizer = Tokenizer(models.BPE(vocab={"<|pad|>": 0, **vocabulary}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<|turn|>", "<|end|>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", chat_template=CHAT_TEMPLATE
    )


def toy_llm(context: int = 4096, architecture: str = "Llama", **options) -> FrozenLLM:
    model = tiny_model(architecture, max_position_embeddings=context)
    return FrozenLLM(model, tokenizer=byte_tokenizer(), **options)


def frame(texts: dict[str, list[str | None]], queries: dict[str, str] | None = None, **columns) -> pd.DataFrame:
    """Candidates by qid, best first, with falling scores and ranks from 0."""
    rows = [
        {
            "qid": qid,
            "query": (queries or {}).get(qid, f"what is {qid}"),
            "docno": f"{qid}-d{i}",
            "text": text,
            "score": 10.0 - i,
            "rank": i,
        }
        for qid, own in texts.items()
        for i, text in enumerate(own)
    ]
    return pd.DataFrame(rows).assign(**columns)


def two_queries() -> pd.DataFrame:
    return frame(
        {
            "q1": ["cats sleep all day", "the moon is far", "paris is in france", "a", "rain falls on the plain"],
            "q2": ["dogs bark at night", "blue whales sing", "tea or coffee"],
        }
    )
