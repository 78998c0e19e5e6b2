"""Selecting heads per query. It imports ``detection`` and those above it; torch in ``training`` alone.

============  ==========================================================================================================
``state``     query embeddings from the frozen model's hidden states
``evidence``  features of each head computed from the candidate list, without judgements
``search``    offline search for the heads that rank a judged list best
``labels``    pseudo labels for a router
``router``    `HeadRouter`: selects heads per query; an artifact
``settings``  training settings and extensions of `RouteHeadReranker`, as values
``training``  trains a router's weights
============  ==========================================================================================================
"""
