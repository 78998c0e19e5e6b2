"""Slow, obvious versions of what the kernel computes.

The whole prompt goes through the unmodified model at once, with transformers' eager attention and a mask of tokens x
tokens; the scores are then read off the attention matrices. Nothing of the package is used.

In late reading no row's softmax is that of a forward: prefix and tail run alone, prefix and each document run alone,
and the rows' softmax is made here, of the queries and keys that the two have given.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import AttentionInterface

PREFIX, TAIL = -1, -2


@dataclass
class Sequence:
    """A whole prompt with one of its tails: parallel lists, one entry a token."""

    ids: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    """Number of the block that a token belongs to, or PREFIX or TAIL."""
    counts: list[bool] = field(default_factory=list)
    """Whether a token counts for its document's score."""

    def add(self, token, position, owner, counts=False):
        self.ids.append(token)
        self.position.append(position)
        self.owner.append(owner)
        self.counts.append(counts)


def whole_sequence(prompt, tail, document_attention):
    sequence = Sequence()
    for position, token in enumerate(prompt.prefix):
        sequence.add(token, position, PREFIX)
    following = len(prompt.prefix)
    farthest = following
    for number, block in enumerate(prompt.blocks):
        position = following if document_attention == "listwise" else len(prompt.prefix)
        for i, token in enumerate(block.ids):
            sequence.add(token, position, number, counts=block.start <= i < block.stop)
            position += 1
        following = position
        farthest = max(farthest, position)
    for i, token in enumerate(tail):
        sequence.add(token, farthest + i, TAIL)
    return sequence


def visibility(sequence, document_attention, window=None):
    """Which token (row) sees which (column): bool [tokens, tokens]."""
    owner, position = np.array(sequence.owner), np.array(sequence.position)
    row, column = np.arange(len(owner))[:, None], np.arange(len(owner))[None, :]
    visible = column <= row
    if document_attention == "blockwise":
        visible &= (owner[row] == owner[column]) | (owner[column] == PREFIX) | (owner[row] == TAIL)
    if window is not None:
        visible &= position[row] - position[column] < window
    return visible


def model_masks(config, sequence, document_attention):
    """The mask in the form that a model takes: one float mask, or one for each of its layer types."""

    def additive(window):
        mask = np.where(visibility(sequence, document_attention, window), 0.0, -np.inf)
        return torch.tensor(mask, dtype=torch.float32)[None, None]

    window = getattr(config, "sliding_window", None)
    if getattr(config, "layer_types", None):
        return {"full_attention": additive(None), "sliding_attention": additive(window)}
    return additive(window)


def run_model(decoder, sequence, mask):
    """Attention of every layer [heads, tokens, tokens], and every layer's output [tokens, hidden size]."""
    last = []
    stack = decoder.h if hasattr(decoder, "h") else decoder.layers
    # the last of hidden_states is after the final norm, so that layer's output is caught on its own
    hook = stack[-1].register_forward_hook(
        lambda module, args, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    assert decoder.config._attn_implementation == "eager"
    try:
        with torch.no_grad():
            result = decoder(
                input_ids=torch.tensor([sequence.ids]),
                position_ids=torch.tensor([sequence.position]),
                attention_mask=mask,
                use_cache=False,
                output_attentions=True,
                output_hidden_states=True,
            )
    finally:
        hook.remove()
    attentions = [layer[0].double().numpy() for layer in result.attentions]
    hidden = [*result.hidden_states[1:-1], last[0]]
    return attentions, [state[0].double().numpy() for state in hidden]


def attention_to_documents(attentions, sequence, blocks):
    """For each (layer, head): for each block, the attention to its tokens that count, as the mean over the tail."""
    rows = [i for i, owner in enumerate(sequence.owner) if owner == TAIL]
    result = {}
    for layer, attention in enumerate(attentions):
        for head in range(attention.shape[0]):
            documents = [[] for _ in range(blocks)]
            for token, (owner, counts) in enumerate(zip(sequence.owner, sequence.counts, strict=True)):
                if counts:
                    documents[owner].append(float(sum(attention[head, row, token] for row in rows)) / len(rows))
            result[layer, head] = documents
    return result


def token_filter(calibrated, margin=1e-6):
    """Sum of the tokens that the 2-sigma filter keeps, and whether a token lies too near the threshold to be sure."""
    if len(calibrated) < 2 or max(calibrated) == min(calibrated):
        return sum(calibrated), False
    mean = sum(calibrated) / len(calibrated)
    deviation = math.sqrt(sum((c - mean) ** 2 for c in calibrated) / (len(calibrated) - 1))
    threshold = mean - 2 * deviation
    kept = [c for c in calibrated if c >= threshold]
    return sum(kept), any(abs(c - threshold) < margin for c in calibrated)


@dataclass
class ReferenceScores:
    """One row a candidate, in the candidates' order; one column a head."""

    raw: np.ndarray
    null: np.ndarray
    filtered: np.ndarray
    filtered_sure: np.ndarray
    summed: np.ndarray
    summed_sure: np.ndarray
    hidden: list[np.ndarray]


_recorded = []


def _recording_attention(module, query, key, value, attention_mask, scaling=None, softcap=None, **_):
    """Eager attention, written out, that keeps queries and keys."""
    key, value = (states.repeat_interleave(query.shape[1] // states.shape[1], dim=1) for states in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    _recorded.append((query[0].double(), key[0].double(), scaling, softcap))
    logits = _logits(query, key, scaling, softcap) + attention_mask[..., : key.shape[2]]
    output = torch.softmax(logits, dim=-1) @ value
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register("recording", _recording_attention)


def _logits(query, key, scaling, softcap):
    logits = query @ key.transpose(-1, -2) * scaling
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _run_recording(decoder, ids, positions):
    """Queries and keys [heads, tokens, dim] of every layer, and every layer's output, of plain causal tokens."""
    config, states, hooks = decoder.config, [], []
    stack = decoder.h if hasattr(decoder, "h") else decoder.layers
    for layer in stack:
        hooks.append(
            layer.register_forward_hook(
                lambda module, args, output: states.append(output[0] if isinstance(output, tuple) else output)
            )
        )
    sequence = Sequence(ids, positions, [TAIL] * len(ids), [False] * len(ids))
    before = config._attn_implementation
    config._attn_implementation = "recording"
    _recorded.clear()
    try:
        with torch.no_grad():
            decoder(
                input_ids=torch.tensor([ids]),
                position_ids=torch.tensor([positions]),
                attention_mask=model_masks(config, sequence, "listwise"),
                use_cache=False,
            )
    finally:
        config._attn_implementation = before
        for hook in hooks:
            hook.remove()
    return list(_recorded), [state[0].double().numpy() for state in states]


def _window(config, layer):
    types = getattr(config, "layer_types", None)
    if types:
        return config.sliding_window if types[layer] == "sliding_attention" else None
    return getattr(config, "sliding_window", None)


def late_attention(decoder, prompt, tail, capacity):
    """As :func:`attention_to_documents`, for late reading, with the hidden states of the tail's rows."""
    prefix, position = len(prompt.prefix), len(prompt.prefix) + capacity
    tail_positions = [position + i for i in range(len(tail))]
    queries, states = _run_recording(decoder, [*prompt.prefix, *tail], [*range(prefix), *tail_positions])
    documents = []
    for block in prompt.blocks:
        ids = [*prompt.prefix, *block.ids]
        if not ids:
            documents.append([(query, key[:, :0], *rest) for query, key, *rest in queries])
            continue
        documents.append(_run_recording(decoder, ids, list(range(len(ids))))[0])
    result = {}
    for layer, (query, key, scaling, softcap) in enumerate(queries):
        window = _window(decoder.config, layer)
        keys = [key[:, :prefix], *(document[layer][1][:, prefix:] for document in documents), key[:, prefix:]]
        positions = [*range(prefix), *(prefix + i for b in prompt.blocks for i in range(len(b.ids))), *tail_positions]
        owner = [PREFIX] * prefix + [n for n, b in enumerate(prompt.blocks) for _ in b.ids] + [TAIL] * len(tail)
        counts = [False] * prefix
        counts += [b.start <= i < b.stop for b in prompt.blocks for i in range(len(b.ids))] + [False] * len(tail)
        logits = _logits(query[:, prefix:], torch.cat(keys, dim=1), scaling, softcap)
        for row, row_position in enumerate(tail_positions):
            for column, column_position in enumerate(positions):
                later = owner[column] == TAIL and column_position > row_position
                if later or (window is not None and row_position - column_position >= window):
                    logits[:, row, column] = -torch.inf
        attention = torch.softmax(logits, dim=-1).mean(dim=1).numpy()
        for head in range(len(attention)):
            found = [[] for _ in prompt.blocks]
            for column, number in enumerate(owner):
                if counts[column]:
                    found[number].append(float(attention[head, column]))
            result[layer, head] = found
    return result, [state[prefix:] for state in states]


def reference_scores(decoder, prompt, heads, document_attention, *, own_masks=False):
    """All scores of a prompt; with ``own_masks`` the model makes its masks itself."""
    by_tail, hidden = [], None
    for tail in (prompt.query, prompt.null):
        if document_attention == "late":
            capacity = prompt.block_capacity or max(len(block.ids) for block in prompt.blocks)
            attention, states = late_attention(decoder, prompt, tail, capacity)
            by_tail.append(attention)
            hidden = [state.mean(axis=0) for state in states] if hidden is None else hidden
            continue
        sequence = whole_sequence(prompt, tail, document_attention)
        mask = None if own_masks else model_masks(decoder.config, sequence, document_attention)
        attentions, states = run_model(decoder, sequence, mask)
        by_tail.append(attention_to_documents(attentions, sequence, len(prompt.blocks)))
        if hidden is None:
            hidden = [state[-len(tail) :].mean(axis=0) for state in states]
    query, null = by_tail

    shape = (len(prompt.blocks), len(heads))
    raw, empty, filtered = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    filtered_sure = np.ones(shape, dtype=bool)
    summed, summed_sure = np.zeros(shape[0]), np.ones(shape[0], dtype=bool)
    for block, candidate in enumerate(prompt.order):
        total = None
        for column, head in enumerate(heads):
            a, n = query[tuple(head)][block], null[tuple(head)][block]
            c = [one - other for one, other in zip(a, n, strict=True)]
            raw[candidate, column], empty[candidate, column] = sum(a), sum(n)
            filtered[candidate, column], doubtful = token_filter(c)
            filtered_sure[candidate, column] = not doubtful
            total = c if total is None else [one + other for one, other in zip(total, c, strict=True)]
        summed[candidate], doubtful = token_filter(total)
        summed_sure[candidate] = not doubtful
    return ReferenceScores(raw, empty, filtered, filtered_sure, summed, summed_sure, hidden)
