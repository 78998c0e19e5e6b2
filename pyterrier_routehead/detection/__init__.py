"""Which heads rank well over all queries. It imports ``reading`` and those above it; no torch.

=============  =========================================================================================================
``criteria``   how well each head ranks a judged list
``comparing``  whether a head set fits a model, and head scores
``card``       what the card of a head set says
``head_set``   `HeadSet`: heads that rank well and where they come from, to be shared
``pruning``    only heads of the lower layers
``published``  head lists from the papers' own repositories
=============  =========================================================================================================
"""
