"""The frozen LLM: found, loaded, tried, and run up to the deepest head that is needed.

It imports ``kernel`` and those above it.

=================  =====================================================================================================
``quiet``          keeps transformers' load reports out of a user's output
``hardware``       devices and dtypes, by their usual names
``accepted``       what `FrozenLLM` may be given
``hub``            whether a model is there: a folder, a file, or on the hub
``default``        where SmolLM2-135M-Instruct comes from
``configuration``  a model's configuration, and that of its first layers
``adapters``       which weights are in effect where PEFT's adapters are added
``fingerprint``    which weights a model has
``twin``           a decoder's twin: other modules over the same weights
``loaded``         a decoder that is in memory: its size, its context, its weights
``loading``        opens a model and takes its decoder apart
``counting``       counts the lists that passes have encoded
``engine``         runs passes over a decoder, of which nothing is changed
``check``          tries on a few tokens whether a model can be read exactly
``frozen``         `FrozenLLM`: finds, shares and pickles a model
=================  =====================================================================================================
"""
