"""The two sides of the policy benchmark on the same weights: this engine and diffusers' Cosmos 3 pipeline."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, Cosmos3OmniPipeline, Cosmos3OmniTransformer, UniPCMultistepScheduler
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import CosmosActionCondition
from PIL import Image

import engine
from engine import tiny_configs
from engine.backends.base import Step
from engine.backends.torch_reference import TorchReference
from engine.network.autoencoder import VideoAutoencoder
from engine.network.autoencoder_config import AutoencoderConfig
from engine.network.config import TransformerConfig
from engine.network.placement import Tokens
from engine.network.transformer import CosmosTransformer, Prefix
from engine.network.vae import VideoVae
from engine.observation.tokenizer import PromptTokenizer
from engine.policy import Policy
from engine.runtime import Runtime, Stopwatch
from engine.sequence import Layout

SIZES = ('tiny', 'mid', 'nano')

# Nano and its autoencoder with an eighth of their widths, and two thirds of the depth.
MID = {
    'hidden_size': 512,
    'num_hidden_layers': 24,
    'num_attention_heads': 4,
    'num_key_value_heads': 1,
    'intermediate_size': 1536,
}
MID_VAE = {'base_dim': 20, 'decoder_base_dim': 32, 'num_res_blocks': 2}
NANO_VAE = {'base_dim': 160, 'decoder_base_dim': 256, 'num_res_blocks': 2}


@dataclass(frozen=True)
class Parts:
    """One set of weights, which both sides use without copying."""

    transformer: CosmosTransformer
    autoencoder: VideoAutoencoder
    tokenizer: PromptTokenizer

    @property
    def parameters(self) -> int:
        """Number of parameters of transformer and autoencoder."""
        modules = (self.transformer, self.autoencoder)
        return sum(p.numel() for module in modules for p in module.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.transformer.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.transformer.device


def make_parts(size: str, directory: Path, device: str) -> Parts:
    """Build the weights of one of `SIZES`; all of them random, none ever copied from host to device.

    Args:
        size: 'tiny' is the checkpoint of `engine.make_tiny`; 'mid' is a scaled-down Nano; 'nano' has Nano's dimensions.
        directory: Scratch folder for the tiny checkpoint, whose tokenizer serves all sizes.
        device: Where the weights go.
    """
    tiny = engine.load(engine.make_tiny(directory / 'tiny'), device)
    runtime = tiny.runtime
    if size == 'tiny':
        return Parts(runtime.backend.transformer, runtime.vae.autoencoder, runtime.tokenizer)
    vocabulary = runtime.backend.transformer.config.vocab_size
    silent = replace(TransformerConfig.NANO, sound_gen=False, sound_dim=None)
    config = replace(silent, **MID, vocab_size=vocabulary) if size == 'mid' else silent
    dtype = torch.float32 if size == 'mid' else torch.bfloat16
    vae = AutoencoderConfig.from_dict(tiny_configs.vae() | (MID_VAE if size == 'mid' else NANO_VAE))
    return Parts(
        _random(lambda: CosmosTransformer(config, lm_head=False), device, dtype),
        _random(lambda: VideoAutoencoder(vae), device, dtype),
        runtime.tokenizer,
    )


def _random[M: torch.nn.Module](build: Callable[[], M], device: str, dtype: torch.dtype) -> M:
    """Build a module straight on its device and fill it so that activations stay of the order of one."""
    with torch.device('meta'):
        module = build()
    module = module.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    generator = torch.Generator(device).manual_seed(0)
    for name, tensor in module.named_parameters():
        tensor.normal_(generator=generator)
        if name.endswith('gamma') or (name.endswith('weight') and tensor.ndim == 1):
            tensor.mul_(0.1).add_(1)
        elif name.endswith(('bias', 'bias.weight', 'modality_embed')):
            tensor.mul_(0.1)
        else:
            tensor.div_(math.sqrt(math.prod(tensor.shape[1:])))
    return module


def comparable(contract: engine.Contract) -> engine.Contract:
    """The contract with the one prompt that diffusers can write: JSON without a description of the composite."""
    return replace(contract, prompt=replace(contract.prompt, format='json', description='', idle_frames=None))


def make_policy(parts: Parts, contract: engine.Contract) -> Policy:
    """Our side as a user has it."""
    runtime = Runtime(TorchReference(parts.transformer), VideoVae(parts.autoencoder), parts.tokenizer)
    return Policy(runtime, contract)


class ForgetfulBackend(TorchReference):
    """Reads the prompt again in every step."""

    def __init__(self, transformer: CosmosTransformer) -> None:
        super().__init__(transformer)
        self.prompts: list[tuple[Prefix, list[int]]] = []

    def prefix(self, ids: list[int]) -> Prefix:
        """Compute a prefix and remember of what."""
        found = super().prefix(ids)
        self.prompts.append((found, ids))
        return found

    def step(self, prefix: Prefix, layout: Layout) -> Step:
        """A step with a prefix computed anew each time."""
        ids = next(ids for known, ids in self.prompts if known is prefix)
        whole = super()

        def run(tokens: Tokens, timestep: float) -> Tokens:
            return whole.step(whole.prefix(ids), layout)(tokens, timestep)

        return run


class WholeClipVae(VideoVae):
    """Encodes a whole clip of the one frame that is known, as if the autoencoder were not causal."""

    def __init__(self, autoencoder: VideoAutoencoder, frames: int) -> None:
        super().__init__(autoencoder)
        self.frames = frames

    def encode_frame(self, rgb: torch.Tensor) -> torch.Tensor:
        """Encode the frame by way of the clip."""
        return self.encode(rgb[:, None].expand(-1, self.frames, -1, -1))[:, :, :1]


def make_ablated(parts: Parts, contract: engine.Contract) -> Policy:
    """Our side without its two savings: the prompt read in every step, the whole clip encoded."""
    vae = WholeClipVae(parts.autoencoder, contract.timing.frames)
    return Policy(Runtime(ForgetfulBackend(parts.transformer), vae, parts.tokenizer), contract)


class Reference:
    """Diffusers' `Cosmos3OmniPipeline` as users run it, on weights shared with our side.

    Attributes:
        watch: Time of the last request by part: `encode` (its autoencoder), `denoise` (its transformer), `total`.
        tokens: Of the last transformer call: `prompt` and `generation`.
        forwards: Transformer calls of the last request.
    """

    def __init__(self, parts: Parts, contract: engine.Contract, scheduler: Path) -> None:
        """Build the pipeline with the schedule of the contract: native flow sigmas and its shift."""
        self.contract = contract
        self.device = parts.device
        self.watch = Stopwatch(parts.device)
        self.prompts: list[int] = []
        self.generation = 0
        config = UniPCMultistepScheduler.load_config(scheduler)
        shift = contract.sampler.shift
        self.pipeline = Cosmos3OmniPipeline(
            _twin(parts),
            parts.tokenizer.tokenizer,
            autoencoder_twin(parts.autoencoder),
            UniPCMultistepScheduler.from_config(config, use_karras_sigmas=False, flow_shift=shift),
            enable_safety_checker=False,
            default_use_system_prompt=False,
            use_native_flow_schedule=True,
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def infer(self, composite: np.ndarray, instruction: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and action rows for a composed picture; the imagined video is not decoded."""
        self.watch, self.prompts = Stopwatch(self.device), []
        terms = self.contract
        condition = CosmosActionCondition(
            mode='policy',
            chunk_size=terms.timing.chunk_rows,
            domain_name=terms.embodiment.domain,
            resolution_tier=terms.timing.resolution_tier,
            image=Image.fromarray(composite),
            view_point=terms.prompt.viewpoint,
        )
        with self.watch.stage('total'), self._timed():
            out = self.pipeline(
                instruction,
                negative_prompt='',
                fps=terms.timing.fps,
                num_inference_steps=terms.sampler.steps,
                guidance_scale=terms.sampler.guidance,
                generator=torch.Generator(self.device).manual_seed(seed),
                action=condition,
                output_type='latent',
            )
        return out.video, out.action[0]

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Time autoencoder and transformer from outside; nothing of the pipeline itself is touched."""
        transformer, vae = self.pipeline.transformer, self.pipeline.vae
        encode, forward = vae.encode, transformer.forward

        def timed_encode(*args: Any, **kwargs: Any) -> Any:
            with self.watch.stage('encode'):
                return encode(*args, **kwargs)

        def timed_forward(*args: Any, **kwargs: Any) -> Any:
            self.prompts.append(kwargs['und_len'])
            self.generation = kwargs['sequence_length'] - kwargs['und_len']
            with self.watch.stage('denoise'):
                return forward(*args, **kwargs)

        vae.encode, transformer.forward = timed_encode, timed_forward
        try:
            yield
        finally:
            del vae.encode, transformer.forward


def autoencoder_twin(ours: VideoAutoencoder) -> AutoencoderKLWan:
    """Diffusers' video autoencoder around the very same tensors."""
    with torch.device('meta'):
        twin = AutoencoderKLWan.from_config(ours.config.to_dict())
    twin.load_state_dict(ours.state_dict(), strict=True, assign=True)
    return twin.requires_grad_(False).eval()


def _twin(parts: Parts) -> Cosmos3OmniTransformer:
    """Diffusers' transformer around the very same tensors."""
    config = parts.transformer.config
    known = inspect.signature(Cosmos3OmniTransformer.__init__).parameters
    with torch.device('meta'):
        twin = Cosmos3OmniTransformer.from_config({k: v for k, v in config.to_dict().items() if k in known})
    if parts.transformer.lm_head is None:
        twin.lm_head = torch.nn.Identity()
    twin.load_state_dict(parts.transformer.state_dict(), strict=True, assign=True)
    # Its loader keeps this part in float32, and its rotary frequencies are no part of the weights.
    twin.time_embedder.float()
    frequencies = type(twin.rotary_emb)(config.head_dim, config.rope_theta, config.rope_axes_dim)
    twin.rotary_emb = frequencies.to(parts.device)
    return twin.requires_grad_(False).eval()
