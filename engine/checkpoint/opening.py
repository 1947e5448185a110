"""A checkpoint as the user names it: resolved to a directory, verified as a whole, then loaded part by part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.checkpoint.expected import LANGUAGE_HEAD, build_transformer, build_vae
from engine.checkpoint.inspection import Inspection
from engine.checkpoint.loading import fill, fill_some, sample
from engine.checkpoint.shards import StoredTensor
from engine.checkpoint.source import resolve
from engine.checkpoint.verifying import (
    VISION_ENCODER,
    verify_index,
    verify_root,
    verify_sound_tokenizer,
    verify_tokenizer,
    verify_transformer,
    verify_vae,
    verify_vision_encoder,
)
from engine.errors import CheckpointError, InvalidInput, Problem
from engine.network.config import Family, TransformerConfig
from engine.network.offload import HOST, rests_on_host

if TYPE_CHECKING:
    from engine.network.transformer import CosmosTransformer
    from engine.network.vae import VideoVae
    from engine.network.vision_encoder import VisionEncoder
    from engine.observation.tokenizer import PromptTokenizer

SURFACES = ('policy', 'dynamics', 'generator', 'reasoner')
"""What a loaded transformer can serve; only the reasoner needs the language head."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, of which nothing is loaded yet.

    Attributes:
        root: Its directory.
        transformer_config: Sizes and switches of the transformer.
        config: Root `config.json`, which describes the reasoner.
        model_index: `model_index.json`, the parts of the diffusers pipeline and its flags.
        provenance: `checkpoint.json`; empty if there is none.
        tensors: Where each tensor of the transformer lies, by public name.
        vae_config: `vae/config.json`.
        vae_tensors: Where each tensor of the video autoencoder lies.
        has_vision_encoder: Whether the reasoner can be shown pictures.
        has_sound_tokenizer: Whether sound latents can be turned to audio.
    """

    root: Path
    transformer_config: TransformerConfig
    config: Mapping[str, Any]
    model_index: Mapping[str, Any]
    provenance: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    vae_config: Mapping[str, Any]
    vae_tensors: Mapping[str, StoredTensor]
    has_vision_encoder: bool
    has_sound_tokenizer: bool

    @property
    def family(self) -> Family:
        """Which published family this is: `nano`, `super` or `edge`."""
        return self.transformer_config.family

    @property
    def has_action(self) -> bool:
        """Whether there are action heads."""
        return 'action_modality_embed' in self.tensors

    @property
    def has_sound(self) -> bool:
        """Whether there is a sound head; exports may leave it out although the configuration names it."""
        return 'audio_modality_embed' in self.tensors

    @property
    def has_language_head(self) -> bool:
        """Whether the understanding tower can score words, as the reasoner must."""
        return LANGUAGE_HEAD in self.tensors

    @cached_property
    def fingerprint(self) -> str:
        """Identity of configuration and weights, 64 hexadecimal digits; stable, whatever the directory is called.

        Covers every name, type and shape, and a few bytes of every tensor instead of all: enough to tell one training
        run from another, and quick even for a hundred gigabytes.
        """
        digest = hashlib.sha256()
        for document in (self.transformer_config.to_dict(), self.vae_config, self.provenance):
            digest.update(json.dumps(document, sort_keys=True).encode())
        for name, tensor in [*sorted(self.tensors.items()), *sorted(self.vae_tensors.items())]:
            digest.update(f'{name} {tensor.dtype} {tensor.shape}'.encode())
            digest.update(sample(tensor))
        return digest.hexdigest()

    def load_transformer(
        self,
        device: torch.device | str = 'cpu',
        dtype: torch.dtype = torch.bfloat16,
        surfaces: Iterable[str] = SURFACES,
        *,
        offload: bool = False,
    ) -> CosmosTransformer:
        """Load the transformer straight to its device and type, tensor by tensor, ready for inference.

        Host memory holds no second copy: at most one tensor beyond what the device keeps.

        Args:
            device: Where the weights go.
            dtype: Type of the weights and of the calculation.
            surfaces: What the transformer will serve, of `SURFACES`; without the reasoner there is no language head.
            offload: Whether the understanding tower stays in host memory, where it is loaded to at once;
                see :meth:`engine.network.transformer.CosmosTransformer.offload_understanding`.

        Raises:
            InvalidInput: `surfaces` names something unknown.
            CheckpointError: A file has changed since the checkpoint was opened.
        """
        wanted = tuple(surfaces)
        unknown = [Problem('surfaces', 'is unknown', repr(s), ', '.join(SURFACES)) for s in wanted if s not in SURFACES]
        if unknown:
            raise InvalidInput('transformer', unknown)
        lm_head = self.has_language_head and 'reasoner' in wanted
        model = build_transformer(
            self.transformer_config, sound=self.has_sound, action=self.has_action, lm_head=lm_head
        )
        if not offload:
            fill(model, self.tensors, device, dtype)
            return model
        for host, where in ((True, HOST), (False, device)):
            fill_some(model, self.tensors, [n for n in model.state_dict() if rests_on_host(n) == host], where, dtype)
        model.offload_understanding()
        return model

    def transformer_skeleton(self) -> CosmosTransformer:
        """The transformer without memory for its weights, to be filled in pieces by :meth:`fill`; no language head."""
        return build_transformer(self.transformer_config, sound=self.has_sound, action=self.has_action, lm_head=False)

    def fill(
        self, skeleton: CosmosTransformer, names: Iterable[str], device: torch.device | str, dtype: torch.dtype
    ) -> None:
        """Load some tensors of a skeleton; `engine.checkpoint.loading.forget` gives their memory back.

        Raises:
            CheckpointError: A file has changed since the checkpoint was opened.
        """
        fill_some(skeleton, self.tensors, names, device, dtype)

    def load_vae(self, device: torch.device | str = 'cpu', dtype: torch.dtype = torch.bfloat16) -> VideoVae:
        """Load the video autoencoder straight to its device and type.

        Raises:
            CheckpointError: It is of another variant, or a file has changed since the checkpoint was opened.
        """
        from engine.network.vae import VideoVae

        model = build_vae(self.vae_config)
        fill(model, self.vae_tensors, device, dtype)
        return VideoVae(model)

    def load_vision_encoder(
        self, device: torch.device | str = 'cpu', dtype: torch.dtype = torch.bfloat16
    ) -> VisionEncoder:
        """Verify the vision encoder and load it straight to its device and type.

        It is verified here and not when the checkpoint is opened, since only the reasoner needs it and the code that
        describes it takes seconds to import.

        Raises:
            CheckpointError: Listing every fault by tensor, or a file has changed since the checkpoint was opened.
        """
        look = Inspection(self.root)
        encoder, part = verify_vision_encoder(look, dict(self.config))
        if look.problems or encoder is None:
            raise CheckpointError(f'checkpoint {self.root}', look.problems)
        fill(encoder.module, part.tensors, device, dtype)
        encoder.settle(device)
        return encoder

    def load_processor(self) -> Any:
        """Load what turns a conversation into tokens and patches: transformers' processor of this family.

        Without a vision encoder it is the tokenizer alone. Both render with the chat template of the root.

        Raises:
            CheckpointError: The files of the root cannot be read as such, or there is no chat template.
        """
        from transformers import AutoProcessor, AutoTokenizer

        kind = AutoProcessor if self.has_vision_encoder else AutoTokenizer
        try:
            processor = kind.from_pretrained(self.root)
        except ImportError as error:
            what = 'needs a package that is not installed'
            value = str(error).strip().partition('\n')[0]
            problem = Problem('processor', what, value, remedy='pip install torchvision')
            raise CheckpointError(f'reasoner of {self.root}', [problem]) from error
        except Exception as error:  # the tokenizer raises nothing more specific
            what, value = 'cannot be read as a processor', f'{type(error).__name__}: {error}'
            remedy = 'tokenizer.json, preprocessor_config.json and video_preprocessor_config.json belong beside it'
            problem = Problem('config.json', what, value, remedy=remedy)
            raise CheckpointError(f'reasoner of {self.root}', [problem]) from error
        if not processor.chat_template:
            problem = Problem('chat_template.jinja', 'is missing', remedy='download or write this file again')
            raise CheckpointError(f'reasoner of {self.root}', [problem])
        videos: Any = getattr(processor, 'video_processor', None)
        if getattr(videos, 'cap_pixels_per_frame', False) is None:
            videos.cap_pixels_per_frame = False  # what it does anyway where nothing is said, but with a warning
        return processor

    @cached_property
    def ends_of_answer(self) -> tuple[int, ...]:
        """Tokens that end an answer: those of `generation_config.json`, else the end of a turn of `config.json`."""
        look = Inspection(self.root)
        settings = look.document('generation_config.json', required=False) or {}
        ends = settings.get('eos_token_id', self.config.get('text_config', {}).get('eos_token_id'))
        return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)

    def load_tokenizer(self) -> PromptTokenizer:
        """Load the tokenizer and chat template of prompts.

        Raises:
            CheckpointError: They cannot be read.
        """
        from engine.observation.tokenizer import PromptTokenizer

        return PromptTokenizer.from_directory(self.root / 'text_tokenizer', self.family, self.config)


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Verify a checkpoint without loading it.

    Every document is parsed, every index compared with its files, every safetensors header with the file's length and
    with the tensors that the configuration calls for. Sound head, sound tokenizer, vision encoder, language head and
    `checkpoint.json` are optional; a part that is there must be sound.

    Args:
        source: A directory in the public layout, or a hub id (`nvidia/Cosmos3-Nano`), which is downloaded or taken from
            the local cache.

    Raises:
        CheckpointError: Listing every fault by file and tensor, or why the hub id cannot be had.
    """
    root = resolve(source)
    look = Inspection(root)
    index = verify_index(look)
    config, transformer = verify_transformer(look)
    described = verify_root(look, config, transformer)
    vae_config, vae = verify_vae(look, config)
    verify_tokenizer(look)
    look.document('scheduler/scheduler_config.json')
    provenance = look.document('checkpoint.json', required=False)
    has_sound_tokenizer = verify_sound_tokenizer(look)
    if look.problems or config is None or described is None or index is None or vae_config is None:
        raise CheckpointError(f'checkpoint {root}', look.problems)
    return Checkpoint(
        root=root,
        transformer_config=config,
        config=described,
        model_index=index,
        provenance=provenance or {},
        tensors=transformer.tensors,
        vae_config=vae_config,
        vae_tensors=vae.tensors,
        has_vision_encoder=look.has(VISION_ENCODER),
        has_sound_tokenizer=has_sound_tokenizer,
    )
