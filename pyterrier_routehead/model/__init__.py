"""The frozen LLM: located, loaded, checked, and run up to the deepest head that is needed.

It imports ``kernel`` and those above it.

=================  =====================================================================================================
``quiet``          hides transformers' load reports from a user's output
``hardware``       devices and dtypes, by their usual names
``accepted``       checks of the arguments of `FrozenLLM`
``hub``            locates a model: a folder, a file, or on the hub
``default``        where SmolLM2-135M-Instruct comes from
``configuration``  a model's configuration, and that of its first layers
``adapters``       the weights in effect in a model with PEFT adapters
``fingerprint``    identifies the weights of a model
``twin``           a decoder's twin: other modules over the same weights
``loaded``         a decoder in memory: its size, context and weights
``loading``        loads a model and extracts its decoder
``counting``       counts the lists that passes have encoded
``engine``         runs passes over a decoder without changing it
``check``          checks on a few tokens whether a model can be read exactly
``frozen``         `FrozenLLM`: locates, shares and pickles a model
=================  =====================================================================================================
"""
