"""Time and peak memory of scoring one candidate list, next to what it can be compared with.

    python benchmarks/kernel.py             # prints the table
    python benchmarks/kernel.py --output    # and writes benchmarks/results/kernel-<device>.csv

Compared on SmolLM2-135M, in the dtype that FrozenLLM picks, with the targets beside:

* all heads, calibrated, over a bare forward of the same base model that keeps its keys and values, on the same tokens;
* 8 heads in the middle third of the layers over all heads, list-wise and block-wise;
* the plain recipe (all attentions of the whole causal model, from scratch for the query and for the content-free query)
  over all heads, with the difference between the two scores;
* 80 documents over 20 of the same length: linear growth would be 4.

On CUDA also a random Llama of the shape of Llama-3.1-8B, and the share of the card's measured matrix peak. Times are
taken in turns in one process (median, and the lowest and highest, of the rounds); a ratio is taken within each round.
Peak memory is what one run takes above the loaded model, each in a process of its own; on the CPU it needs Linux.
"""

import argparse
import contextlib
import csv
import ctypes
import gc
import operator
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import transformers

from pyterrier_routehead.default_model import default_source
from pyterrier_routehead.heads import Head, all_heads
from pyterrier_routehead.kernel import score_lists
from pyterrier_routehead.llm import FrozenLLM
from pyterrier_routehead.prompt import Candidate, ListPrompt, PromptBuilder
from pyterrier_routehead.quiet import quiet_transformers
from pyterrier_routehead.template import DEFAULT_TEMPLATE

SMOL, LLAMA = "SmolLM2-135M", "Llama-8B-shape"
QUERY = "how does the weather in spring change the price of bread"
WORDS = """ability account across afternoon against agreement almost animal answer area arrive article autumn balance
before believe between board bread bridge building business careful carry central century change children choice city
climate close coast college common company complete country culture current decision degree describe different doctor
during early economy education effort energy engine enough evening every example experience family farmer figure finally
forest garden general government ground happen harbour heavy history hospital important increase industry interest
island journey kitchen knowledge language large later leader letter library light machine market material measure
medicine member method minute modern mountain museum music nature neighbour never newspaper north number office often
opinion orange paper parliament people perhaps person picture planet practice present price problem product public
quality question quiet railway reason record remember report research result river school science season several
similar simple society sometimes south special spring station still story street strong student summer system teacher
temperature theatre together travel under university usually valley village visitor water weather western while winter
without woman wonder work writer yesterday""".split()
LABELS = {"bare": "bare forward", "all": "all heads", "mid": "8 mid heads", "plain": "plain recipe"}
MET = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Case:
    """One thing to measure: a way of running the model (a key of ``LABELS``) on one list."""

    way: str
    documents: int
    doc_tokens: int
    pattern: str = "listwise"


@dataclass(frozen=True)
class Plan:
    """What to measure on one model: lists are (documents, tokens a document), growth the number of documents less."""

    model: str
    lists: list[tuple[int, int]]
    plain: list[tuple[int, int]]
    growth: dict[tuple[int, int], int]
    fewest_for_memory: int
    exact: tuple[int, int] | None = None  # the list on which to compare the scores in fp32
    tiny: bool = False


def plans(tiny: bool) -> list[Plan]:
    """The models and lists of this run."""
    if tiny:
        lists = [(2, 20), (8, 20)]
        smol = Plan(SMOL, lists, lists[:1], {(8, 20): 2}, 8, exact=(2, 20), tiny=True)
        return [smol, Plan(LLAMA, lists[:1], lists[:1], {}, 2, tiny=True)]
    smol = Plan(SMOL, [(10, 150), (20, 150), (40, 150), (80, 80)], [(10, 150), (20, 150)], {(80, 80): 20}, 20, (10, 150))
    llama = Plan(LLAMA, [(20, 150), (40, 150)], [(20, 150)], {}, 20)
    return [smol, llama] if torch.cuda.is_available() else [smol]


@dataclass(frozen=True)
class Row:
    """One line of the table; low and high are the extremes over the rounds."""

    model: str
    documents: int
    doc_tokens: int
    pattern: str
    measure: str
    unit: str
    value: float
    low: float | None = None
    high: float | None = None
    target: str = ""
    met: str = ""


class Table:
    """Prints rows as they come and keeps them for the file."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, model: str, case: Case, measure: str, unit: str, values: Iterable[float], target: str = "") -> None:
        """Add the median of some values and print it."""
        values = sorted(values)
        value, extremes = float(np.median(values)), (values[0], values[-1]) if len(values) > 1 else (None, None)
        sign, _, limit = target.partition(" ")
        met = ("yes" if MET[sign](value, float(limit)) else "no") if target else ""
        row = Row(model, case.documents, case.doc_tokens, case.pattern, measure, unit, value, *extremes, target, met)
        self.rows.append(row)
        spread = "" if row.low is None else f"{row.low:.3f} - {row.high:.3f}"
        size = f"{row.documents} x {row.doc_tokens}"
        print(
            f"{row.model:<15} {size:>8}  {row.pattern:<9}  {measure:<34} {value:>10.4g} {unit:<7} {spread:<17} "
            f"{target:<8}{met}",
            flush=True,
        )

    def write(self, path: Path) -> None:
        """Write all rows as CSV."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([field.name for field in fields(Row)])
            writer.writerows([f"{x:.6g}" if isinstance(x, float) else x for x in astuple(row)] for row in self.rows)


class Subject:
    """A model with everything that is run on it."""

    def __init__(self, name: str, *, tiny: bool = False, dtype: str = "auto") -> None:
        self._llama = random_llama(tiny) if name == LLAMA else None
        source = default_source().path
        self.llm = FrozenLLM(None, dtype=dtype) if name == SMOL else FrozenLLM(self._llama, tokenizer=source)
        self.decoder = self.llm._load().decoder  # the very model that is read, for the bare forward
        self.device = self.llm.input_device

    @cached_property
    def causal(self) -> torch.nn.Module:
        """The whole model, with its language-model head."""
        if self._llama is not None:
            return self._llama
        with quiet_transformers():
            model = transformers.AutoModelForCausalLM.from_pretrained(default_source().path, dtype=self.decoder.dtype)
        return model.to(self.device).eval()

    def heads(self, way: str) -> tuple[Head, ...]:
        """All heads, or 8 from the first to the last layer of the middle third."""
        layers, heads = self.llm.num_layers, self.llm.num_heads
        if way == "all":
            return all_heads(layers, heads)
        first, last = -(-layers // 3), -(-2 * layers // 3) - 1
        return tuple(Head(first + i * (last - first) // 7, i % heads) for i in range(8))

    def prompt(self, case: Case) -> ListPrompt:
        """The same prompt whenever asked; a word has a token at least, so every document reaches the cut."""
        builder = PromptBuilder(
            DEFAULT_TEMPLATE,
            self.llm.encoder,
            document_order="best_last",
            document_attention=case.pattern,
            max_doc_tokens=case.doc_tokens,
        )
        rng = random.Random(case.documents)
        texts = [" ".join(rng.choices(WORDS, k=2 * case.doc_tokens)) for _ in range(case.documents)]
        return builder.build(QUERY, [Candidate(text) for text in texts])

    def operation(self, case: Case) -> Callable[[], object]:
        """What to measure, ready to run: its prompt is built."""
        prompt = self.prompt(case)
        if case.way == "bare":
            return partial(bare_forward, self.decoder, [*document_ids(prompt), *prompt.query])
        if case.way == "plain":
            return partial(plain_recipe, self.causal, prompt)
        return lambda: score_lists(self.llm, [prompt], self.heads(case.way), document_attention=case.pattern)[0]

    def flops(self, case: Case) -> float:
        """Floating-point operations of both passes: matrices of the layers that run, attention, reading."""
        prompt, heads = self.prompt(case), self.heads(case.way)
        deepest = max(head.layer for head in heads)
        attention = self.decoder.layers[deepest].self_attn  # of the deepest layer only the projections run
        modules = [*self.decoder.layers[:deepest], attention.q_proj, attention.k_proj, attention.v_proj]
        parameters = sum(p.numel() for module in modules for p in module.parameters())
        prefix, blocks = len(prompt.prefix), [len(block.ids) for block in prompt.blocks]
        tokens, tails = prefix + sum(blocks), [len(prompt.query), len(prompt.null)]
        spans = [(0, tokens)] if case.pattern == "listwise" else [(0, prefix), *((prefix, block) for block in blocks)]
        pairs = sum(own * (before + (own + 1) / 2) for before, own in spans)
        tail_pairs = sum(own * (tokens + (own + 1) / 2) for own in tails)
        attending = 4 * deepest * self.llm.num_heads * (pairs + tail_pairs) + 2 * len(heads) * tail_pairs
        return 2 * parameters * (tokens + sum(tails)) + attending * attention.head_dim


def random_llama(tiny: bool) -> torch.nn.Module:
    """A Llama with random weights: of the shape of Llama-3.1-8B in bf16 on the GPU, or tiny on the CPU."""
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    if tiny:
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8}
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(
        **shape,
        num_key_value_heads=shape["num_attention_heads"] // 4,
        vocab_size=128256,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, **llama3},
    )
    torch.manual_seed(0)
    with torch.device("cpu" if tiny else "cuda"), quiet_transformers():
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


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(operation: Callable[[], object], device: torch.device) -> tuple[float, object]:
    """Seconds that a run takes, and its result."""
    synchronize(device)
    start = time.perf_counter()
    result = operation()
    synchronize(device)
    return time.perf_counter() - start, result


def in_turns(subject: Subject, cases: list[Case], seconds: float = 20) -> tuple[dict, dict]:
    """Times and last result a case: A B A B, at least 3 rounds, and more (up to 9) while they take little time."""
    operations = {case: subject.operation(case) for case in cases}
    for case in {replace(case, documents=min(case.documents, 10)) for case in cases}:
        subject.operation(case)()
    times, results, start = {case: [] for case in cases}, {}, time.perf_counter()
    while (rounds := len(times[cases[0]])) < 3 or (rounds < 9 and time.perf_counter() - start < seconds):
        for case, operation in operations.items():
            taken, results[case] = clock(operation, subject.device)
            times[case].append(taken)
    return times, results


def status(name: str) -> int:
    """A memory figure of this process, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def peak_memory(subject: Subject, case: Case) -> int | None:
    """Bytes that one run takes at its peak above the loaded model; None where that cannot be known."""
    operation = subject.operation(case)
    subject.operation(replace(case, documents=2, doc_tokens=16))()  # what is allocated only once, on first use
    gc.collect()
    if subject.device.type == "cuda":
        before = torch.cuda.memory_allocated(subject.device)
        torch.cuda.reset_peak_memory_stats(subject.device)
        clock(operation, subject.device)
        return torch.cuda.max_memory_allocated(subject.device) - before
    with contextlib.suppress(OSError, AttributeError, TypeError):  # memory that malloc kept from loading would hide some
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
        before = status("VmRSS")
    except OSError:
        return None
    operation()
    return status("VmHWM") - before


def memory_apart(plan: Plan, case: Case) -> int | None:
    """:func:`peak_memory` in a process of its own."""
    command = [sys.executable, __file__, "--case", plan.model, *map(str, astuple(case)), *["--tiny"] * plan.tiny]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return None if done.stdout.split()[-1] == "None" else int(done.stdout.split()[-1])
    reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    print(f"{plan.model}: memory of {LABELS[case.way]}, {case.documents} documents, was not measured: {reason}")
    return None


def measure_memory(plan: Plan, table: Table) -> None:
    """Rows of peak memory, list-wise: all heads over the bare forward, and the plain recipe over all heads."""
    for size in [size for size in {**dict.fromkeys(plan.lists), **dict.fromkeys(plan.plain)} if size[0] >= plan.fewest_for_memory or size in plan.plain]:
        pass


def main() -> None:
    """Measure all plans, or one case's memory for a parent process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", nargs="?", const="", metavar="FILE", help="also write a CSV file")
    parser.add_argument("--case", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
