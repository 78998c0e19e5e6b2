"""Time and peak memory of scoring one candidate list, next to what it can be compared with.

    python examples/benchmark_kernel.py             # prints the table
    python examples/benchmark_kernel.py --output    # and writes examples/results/kernel-<device>.csv

Measured on SmolLM2-135M, in the dtype that FrozenLLM picks, with targets beside:

* all heads, calibrated, over a bare forward of the same base model that keeps its keys and values, on the same tokens;
* 8 heads from the middle third of the layers over all heads, list-wise and block-wise;
* the plain recipe (all attentions of the whole causal model, from scratch for the query and for the content-free query)
  over all heads, and how far the two scores differ, also in fp32;
* 80 documents over 20 of the same length: linear growth would be 4.

On CUDA also a random Llama of the shape of Llama-3.1-8B, and the share of the measured matrix peak that is reached.
Times are taken in turns in one process: median, lowest and highest of the rounds; a ratio is taken within each round.
Memory is the peak of one run above the loaded model, in a process of its own; on the CPU only Linux can tell it.
"""

import argparse
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import transformers

from measuring import Table, in_turns, matrix_peak, peak_memory
from pyterrier_routehead.heads import Head, all_heads
from pyterrier_routehead.kernel.patterns import PATTERNS
from pyterrier_routehead.kernel.score import score_lists
from pyterrier_routehead.model.default import default_source
from pyterrier_routehead.model.frozen import FrozenLLM
from pyterrier_routehead.model.quiet import quiet_transformers
from pyterrier_routehead.prompt.build import Candidate, ListPrompt, PromptBuilder
from pyterrier_routehead.template import DEFAULT_TEMPLATE

SMOL, LLAMA = "SmolLM2-135M", "Llama-8B-shape"
QUERY = "how does the weather in spring change the price of bread"
WORDS = """across afternoon animal area article autumn balance before bread bridge building carry century children city
climate coast company country culture decision doctor economy energy engine evening family farmer figure forest garden
government harbour heavy history hospital industry island journey kitchen knowledge language large letter library
machine market medicine modern mountain museum music nature neighbour newspaper north number office orange paper people
picture planet practice price public question railway record river school science season society south spring station
story street summer teacher temperature theatre travel university valley village visitor water weather winter"""
WAYS = {"bare": "bare forward", "all": "all heads", "mid": "8 mid heads", "plain": "plain recipe"}
WAYS |= {"block-all": "all heads block-wise", "block-mid": "8 mid heads block-wise"}
BASES = {"all": "bare", "mid": "all", "block-all": "all", "block-mid": "block-all", "plain": "all"}


@dataclass(frozen=True)
class Case:
    """One thing to measure: a way (of ``WAYS``) of running the model on one list."""

    way: str
    documents: int
    doc_tokens: int

    @property
    def size(self) -> tuple[int, int]:
        """Documents, and tokens a document."""
        return self.documents, self.doc_tokens

    @property
    def pattern(self) -> str:
        """How the documents see each other."""
        return "blockwise" if self.way.startswith("block") else "listwise"

    def targets(self, what: str) -> dict["Case", float]:
        """What to divide this by, with the limit of the ratio: at most so much, at least if it is negative; 0: none."""
        plain = -5 if self.documents >= 20 else 0
        limits = {"all": 1.1, "plain": plain} | ({"mid": 0.65, "block-mid": 0.65} if what == "time" else {})
        base, fewer = replace(self, way=BASES.get(self.way, "")), replace(self, documents=self.documents // 4)
        return {base: limits.get(self.way, 0), fewer: 4.4 if (self.way, what) == ("block-all", "time") else 0}


def cases(documents: int, doc_tokens: int, ways: str) -> list[Case]:
    """Some ways, separated by blanks, on lists of one size."""
    return [Case(way, documents, doc_tokens) for way in ways.split()]


def plans(tiny: bool) -> list[tuple[str, list[list[Case]], list[Case]]]:
    """For each model the groups of cases to be timed in turns, and the cases whose memory is taken."""
    every, plain = "bare all mid block-all block-mid", "plain all"
    if tiny:
        timed = [cases(8, 20, every) + cases(2, 20, "all block-all"), cases(4, 20, plain)]
        return [(SMOL, timed, cases(8, 20, "bare all plain")), (LLAMA, timed, cases(8, 20, "bare all"))]
    small = [cases(10, 150, "bare all mid"), cases(10, 150, plain)]
    medium = [cases(20, 150, every), cases(20, 150, plain)]
    large = cases(80, 80, "bare all block-all block-mid") + cases(20, 80, "all block-all")
    memory = cases(20, 150, "bare all plain") + cases(40, 150, "bare all")
    smol = (SMOL, [*small, *medium, cases(40, 150, "bare all mid"), large], small[1] + memory)
    llama = (LLAMA, [*medium, cases(40, 150, every)], memory)
    return [smol, llama] if torch.cuda.is_available() else [smol]


class Subject:
    """A model with everything that is run on it."""

    def __init__(self, name: str, *, tiny: bool = False, dtype: str = "auto") -> None:
        self._llama = random_llama(tiny) if name == LLAMA else None
        self._source = default_source().path
        self.llm = FrozenLLM(self._llama, tokenizer=self._source) if self._llama else FrozenLLM(None, dtype=dtype)
        self.decoder = self.llm._load().decoder  # the very model that is read, for the bare forward
        self.device = self.llm.input_device

    @cached_property
    def causal(self) -> torch.nn.Module:
        """The whole model, with its language-model head."""
        with quiet_transformers():
            load = partial(transformers.AutoModelForCausalLM.from_pretrained, dtype=self.decoder.dtype)
            return self._llama or load(self._source).to(self.device).eval()

    def heads(self, case: Case) -> tuple[Head, ...]:
        """All heads, or 8 spread from the first to the last layer of the middle third."""
        layers, heads = self.llm.num_layers, self.llm.num_heads
        first, last = -(-layers // 3), -(-2 * layers // 3) - 1
        mid = tuple(Head(first + i * (last - first) // 7, i % heads) for i in range(8))
        return mid if case.way.endswith("mid") else all_heads(layers, heads)

    def prompt(self, case: Case) -> ListPrompt:
        """The same prompt whenever asked. A word has at least one token, so every document reaches the cut."""
        builder = PromptBuilder(
            DEFAULT_TEMPLATE,
            self.llm.encoder,
            document_order="best_last",
            numbered=PATTERNS[case.pattern].numbered,
            max_doc_tokens=case.doc_tokens,
        )
        rng, words = random.Random(case.documents), WORDS.split()
        texts = [" ".join(rng.choices(words, k=2 * case.doc_tokens)) for _ in range(case.documents)]
        return builder.build(QUERY, [Candidate(text) for text in texts])

    def operation(self, case: Case) -> Callable[[], object]:
        """What to measure, ready to run. Its result is the scores [documents, heads], if there are any."""
        prompt, heads = self.prompt(case), self.heads(case)
        if case.way == "bare":
            return partial(bare_forward, self.decoder, document_ids(prompt) + prompt.query)
        if case.way == "plain":
            return partial(plain_recipe, self.causal, prompt)
        return lambda: score_lists(self.llm, [prompt], heads, document_attention=case.pattern)[0].filtered

    def flops(self, case: Case) -> float:
        """Floating-point operations of both passes: matrices of the layers that run, attention, reading."""
        prompt, heads = self.prompt(case), self.heads(case)
        deepest = max(head.layer for head in heads)
        attention = self.decoder.layers[deepest].self_attn  # of the deepest layer only the projections run
        modules = [*self.decoder.layers[:deepest], attention.q_proj, attention.k_proj, attention.v_proj]
        parameters = sum(weight.numel() for module in modules for weight in module.parameters())
        prefix, blocks = len(prompt.prefix), [len(block.ids) for block in prompt.blocks]
        tokens, tails = prefix + sum(blocks), [len(prompt.query), len(prompt.null)]
        spans = [(0, tokens)] if case.pattern == "listwise" else [(0, prefix), *((prefix, block) for block in blocks)]
        pairs = sum(own * (before + (own + 1) / 2) for before, own in spans)
        tail_pairs = sum(own * (tokens + (own + 1) / 2) for own in tails)
        products = 2 * deepest * self.llm.num_heads * (pairs + tail_pairs) + len(heads) * tail_pairs
        return 2 * parameters * (tokens + sum(tails)) + 2 * attention.head_dim * products


def random_llama(tiny: bool) -> torch.nn.Module:
    """A Llama with random weights: of the shape of Llama-3.1-8B on the GPU, or tiny on the CPU."""
    hidden, inner, layers, heads, groups = (64, 128, 4, 8, 2) if tiny else (4096, 14336, 32, 32, 8)
    shape = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": 128256}
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "original_max_position_embeddings": 8192}
    shape["rope_parameters"] = rope | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": groups, "max_position_embeddings": 131072}
    with torch.device("cpu" if tiny else "cuda"):
        config = transformers.LlamaConfig(**shape)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def document_ids(prompt: ListPrompt) -> list[int]:
    """Ids of everything before the tail."""
    return [*prompt.prefix, *(token for block in prompt.blocks for token in block.ids)]


def bare_forward(decoder: torch.nn.Module, ids: list[int]) -> None:
    """What any use of the model on these tokens costs at least: one forward that keeps keys and values."""
    with torch.inference_mode():
        decoder(input_ids=torch.tensor([ids], device=decoder.device), use_cache=True)


def plain_recipe(model: torch.nn.Module, prompt: ListPrompt) -> np.ndarray:
    """The method as its description reads, without any of this package's kernel: scores [documents, heads]."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        query, null = (row_means(model, document_ids(prompt), tail) for tail in (prompt.query, prompt.null))
    finally:
        model.set_attn_implementation(before)
    scores, start = np.empty((len(prompt.blocks), len(query)), dtype=np.float32), len(prompt.prefix)
    for block, candidate in zip(prompt.blocks, prompt.order, strict=True):
        tokens = slice(start + block.start, start + block.stop)
        calibrated = query[:, tokens] - null[:, tokens]
        kept = calibrated >= calibrated.mean(dim=1, keepdim=True) - 2 * calibrated.std(dim=1, keepdim=True)
        scores[candidate] = (calibrated * kept).sum(dim=1).cpu().numpy()
        start += len(block.ids)
    return scores


def row_means(model: torch.nn.Module, documents: list[int], tail: list[int]) -> torch.Tensor:
    """Attention of the tail's rows in every head, mean over the rows: fp32 [heads of all layers, tokens]."""
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([documents + tail], device=model.device), output_attentions=True)
        return torch.cat([layer[0, :, -len(tail) :].float().mean(dim=1) for layer in output.attentions])


def memory_apart(model: str, case: Case, tiny: bool) -> dict[Case, list[float]]:
    """MiB at the peak of a case, taken in a process of its own; empty, and a line says why, if not measured."""
    command = [sys.executable, __file__, "--case", model, *map(str, astuple(case)), *["--tiny"] * tiny]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return {case: [int(done.stdout.split()[-1]) / 2**20]}
    reason = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
    print(f"{model}: memory of {WAYS[case.way]}, {case.documents} documents, was not measured: {reason}", flush=True)
    return {}


def compare(table: Table, model: str, what: str, unit: str, taken: dict[Case, list[float]]) -> None:
    """Add what some cases took, and the ratios between them, round by round."""
    for case, values in taken.items():
        table.add(model, case.size, f"{what}: {WAYS[case.way]}", unit, values)
    for case, values in taken.items():
        for base, limit in case.targets(what).items():
            if base in taken:
                against = WAYS[base.way] if base.way != case.way else f"{base.documents} documents"
                ratio = np.divide(values, taken[base]).tolist()
                table.add(model, case.size, f"{what}: {WAYS[case.way]} / {against}", "", ratio, limit)


def difference(table: Table, name: str, case: Case, results: dict[Case, object]) -> None:
    """Add the largest difference between a list's final scores and those of the plain recipe."""
    plain, ours = (results[replace(case, way=way)].sum(axis=1) for way in ("plain", "all"))
    table.add(name, case.size, "score: largest difference from the plain recipe", "", [float(abs(plain - ours).max())])
    table.add(name, case.size, "score: range, highest less lowest document", "", [float(np.ptp(ours))])


def shares(table: Table, name: str, subject: Subject, times: dict[Case, list[float]]) -> None:
    """Add the share of the measured bf16 matrix peak that each of our cases reaches."""
    peak = matrix_peak(subject.device)
    for case in [case for case in times if case.way not in ("bare", "plain")]:
        reached = [subject.flops(case) / seconds / peak for seconds in times[case]]
        table.add(name, case.size, f"share of matrix peak: {WAYS[case.way]}", "", reached)


def take_times(subject: Subject, group: list[Case], rounds: int) -> tuple[dict[Case, list[float]], dict[Case, object]]:
    """Times and last result of each case, after a warm-up: on few documents, but on a GPU on as many."""
    warm = group if subject.device.type == "cuda" else [replace(case, documents=2) for case in group]
    operations = {case: subject.operation(case) for case in group}
    return in_turns(operations, map(subject.operation, warm), rounds)


def measure(table: Table, name: str, timed: list[list[Case]], memory: list[Case], rounds: int, tiny: bool) -> None:
    """Measure one model. Memory comes first, before this process holds the model itself."""
    peaks = [memory_apart(name, case, tiny) for case in memory]
    compare(table, name, "memory", "MiB", {case: values for peak in peaks for case, values in peak.items()})
    subject = Subject(name, tiny=tiny)
    print(f"{name}: {subject.decoder.dtype} on {subject.device}", flush=True)
    for group in timed:
        try:
            times, results = take_times(subject, group, min(rounds, 2) if group[0].way == "plain" else rounds)
        except torch.OutOfMemoryError as error:
            print(f"{name}: times of {group[0].documents} documents were not measured: {error}", flush=True)
            continue
        compare(table, name, "time", "s", times)
        if group[0].way == "plain":
            difference(table, name, group[0], results)
        elif name == LLAMA:
            shares(table, name, subject, times)
    if name == SMOL:
        exact = next(group for group in timed if group[0].way == "plain")
        results = take_times(Subject(name, dtype="float32"), exact, rounds=1)[1]
        difference(table, f"{name} fp32", exact[0], results)


def main() -> None:
    """Measure all plans; or, for a parent process, one case's memory."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", nargs="?", const="", metavar="FILE", help="write the table as CSV, too")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case (default: 3; plain: 2)")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        model, way, *size = arguments.case
        subject, case = Subject(model, tiny=arguments.tiny), Case(way, *map(int, size))
        warm_up = subject.operation(replace(case, documents=2, doc_tokens=16))
        print(peak_memory(subject.operation(case), warm_up, subject.device))
        return
    device = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"threads: {torch.get_num_threads()}"
    print(f"{device} ({name}), torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    table = Table()
    for plan in plans(arguments.tiny):
        measure(table, *plan, arguments.rounds, arguments.tiny)
    if arguments.output is not None:
        table.write(Path(arguments.output or Path(__file__).parent / "results" / f"kernel-{device}.csv"))


if __name__ == "__main__":
    main()
