"""From frames to rankings: which heads rank, where their scores come from, and one function that ranks.

It imports ``routing`` and those above it; no torch.

==============  ========================================================================================================
``frames``      between PyTerrier's frames and candidate lists
``model_slot``  which model a transformer uses
``policy``      which heads rank a query
``windows``     lists that do not fit into one prompt
``sources``     where head scores come from: the frame, or the model that reads its texts
``index_source``  the same from a head index
``rank``        the one function that every re-ranker ranks by
``options``     how transformers read candidate lists: their common arguments, and the method that they have
``reranker``    `HeadReranker`: what all re-rankers share
==============  ========================================================================================================
"""
