"""From token ids to head scores: the method. Read ``score`` first: it is one function.

It imports ``common``, ``prompt`` and what a head is; of a model it requires only that it runs passes.

===============  =======================================================================================================
``exact``        exact attention of few rows, or of a sequence in pieces
``patterns``     reading patterns: where each token stands, and who sees whom
``visibility``   what a model's own masks let a token see
``aggregate``    aggregations: from attention on tokens to scores of documents
``scores``       head scores of one list, as numbers
``attention``    the one door through which a model's attention comes in
``passes``       documents, and tails that see them
``keys``         keys of documents, whoever computed them
``late``         documents and tails that do not see each other, and the attention between them
``parts``        documents in parts that are encoded one after another
``key_cache``    keys of documents, remembered while there is room
``late_reader``  late reading of some lists
``score``        head scores of candidate lists
===============  =======================================================================================================
"""
