"""Head detection: heads that rank well over all queries. It imports ``reading`` and those above it; no torch.

==============  ========================================================================================================
``criteria``    criteria: the quality of each head on a judged list
``comparing``   whether a head set fits a model, and head scores
``provenance``  how the heads of a set were found
``card``        the card of a head set
``head_set``    `HeadSet`: heads that rank well with their provenance; an artifact
``pruning``     layer pruning
``published``   head lists from the papers' own repositories
==============  ========================================================================================================
"""
