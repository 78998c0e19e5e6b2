"""The keys that heads need of documents, computed once: late reading from an index.

It imports ``routing`` and those above it; no torch before keys are written or read.

===============  =======================================================================================================
``quantising``   keys as rows of numbers on disk
``description``  what an index says it is
``shard``        some documents' keys, in files that are mapped into memory
``view``         the documents of all shards that are there at one moment
``corpus``       documents of a corpus, as they are indexed
``indexer``      what writes one from a corpus
``head_index``   `HeadIndex`, a PyTerrier artifact
``reader``       reads candidate lists from one
===============  =======================================================================================================
"""
