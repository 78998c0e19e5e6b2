"""Which heads suit a query. It imports ``detection`` and those above it; torch in ``training`` alone.

============  ==========================================================================================================
``state``     query embeddings from the frozen model's hidden states
``evidence``  what a candidate list itself says about its heads
``search``    offline search for the heads that rank a list best
``labels``    pseudo labels for a router
``router``    `HeadRouter`: which heads suit a query, as an artifact
``settings``  what `RouteHeadReranker` can be told, as values
``training``  trains a router's weights
============  ==========================================================================================================
"""
