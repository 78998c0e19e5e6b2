"""Re-ranks three documents in memory: python examples/quickstart.py (needs the extra gguf or a network)."""

import pandas as pd

from pyterrier_routehead import ICRReranker

candidates = pd.DataFrame(
    {
        "qid": "1",
        "query": "What is the largest animal on earth?",
        "docno": ["a", "b", "c"],
        "text": ["Stock markets fell sharply.", "Blue whales are the largest animals ever.", "Add two eggs and flour."],
    }
)
print(ICRReranker()(candidates)[["docno", "score", "rank"]])
