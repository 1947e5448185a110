"""The checks of a whole checkpoint directory, part by part; faults gather in the `Inspection`."""

from __future__ import annotations

from pathlib import Path

from engine.checkpoint.expected import check_transformer, check_vae, check_vision_encoder, find_quantization
from engine.checkpoint.inspection import Inspection, Json, Part
from engine.errors import CheckpointError
from engine.network.config import Family, TransformerConfig
from engine.network.vision_encoder import VisionEncoder, build_vision_encoder

VISION_ENCODER = 'vision_encoder/model.safetensors'

# diffusers' name of the pipeline, and the one under which the checkpoints were first published.
_PIPELINES = ('Cosmos3OmniPipeline', 'Cosmos3OmniDiffusersPipeline')
_MODEL_TYPES: dict[Family, str] = {'nano': 'cosmos3_omni', 'super': 'cosmos3_omni', 'edge': 'cosmos3_edge'}


def verify_index(look: Inspection) -> Json | None:
    """`model_index.json`; both names of the pipeline are good, since nothing depends on which it is."""
    index = look.document('model_index.json')
    if index is not None and index.get('_class_name') not in _PIPELINES:
        where, name = 'model_index.json: _class_name', repr(index.get('_class_name'))
        look.report(where, 'is not a Cosmos 3 pipeline', name, ', '.join(_PIPELINES))
    return index


def verify_transformer(look: Inspection) -> tuple[TransformerConfig | None, Part]:
    """Configuration and tensors of `transformer/`."""
    document = look.document('transformer/config.json')
    _check_class(look, 'transformer/config.json', document, 'Cosmos3OmniTransformer')
    config = _read_config(look, document)
    part = look.part('transformer')
    if part is None:
        return config, Part()
    quantized = find_quantization(document, part)
    if quantized:
        remedy = 'use the bfloat16 revision of this checkpoint'
        look.report('transformer', 'is quantised (ModelOpt), which this engine cannot load', quantized, remedy=remedy)
    elif config is not None:
        check_transformer(look, config, part)
    return config, part


def _read_config(look: Inspection, document: Json | None) -> TransformerConfig | None:
    if document is None:
        return None
    try:
        return TransformerConfig.from_dict(document, 'transformer/config.json')
    except CheckpointError as error:
        look.problems += error.problems
        return None


def _check_class(look: Inspection, path: str, document: Json | None, name: str) -> None:
    if document is not None and document.get('_class_name') != name:
        look.report(f'{path}: _class_name', 'is of another model', repr(document.get('_class_name')), name)


def verify_root(look: Inspection, config: TransformerConfig | None, transformer: Part) -> Json | None:
    """`config.json` and the root index, from which transformers loads the reasoner."""
    document = look.document('config.json')
    if document is not None and config is not None:
        model_type, expected = document.get('model_type'), _MODEL_TYPES[config.family]
        if model_type != expected:
            value = f'{model_type!r} beside a transformer of family {config.family}'
            look.report('config.json: model_type', 'does not fit the transformer', value, expected)
    vision = look.header(VISION_ENCODER) or {}
    index = look.document('model.safetensors.index.json', required=False) or {}
    entries = index.get('weight_map', {})
    for name, file in entries.items() if isinstance(entries, dict) else ():
        known = {f'transformer/{transformer.files.get(name)}'} | ({VISION_ENCODER} if name in vision else set())
        if file not in known and look.has(str(file)):
            look.report(f'model.safetensors.index.json: {name}', 'is mapped to a file that lacks it', repr(file))
    return document


def verify_vision_encoder(look: Inspection, config: Json) -> tuple[VisionEncoder | None, Part]:
    """The tensors of `vision_encoder/` and the encoder that the root `config.json` says they make."""
    tensors = look.header(VISION_ENCODER)
    if tensors is None:
        if not look.has(VISION_ENCODER):
            look.report(VISION_ENCODER, 'is missing', remedy='download or write this file again')
        return None, Part()
    part = Part(tensors, frozenset(), dict.fromkeys(tensors, Path(VISION_ENCODER).name))
    try:
        encoder = build_vision_encoder(config)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        look.report('config.json', 'does not describe a vision encoder', f'{type(error).__name__}: {error}')
        return None, part
    check_vision_encoder(look, encoder.module, part)
    return encoder, part


def verify_vae(look: Inspection, config: TransformerConfig | None) -> tuple[Json | None, Part]:
    """Configuration and tensors of `vae/`, whose latents must be those that the transformer denoises."""
    document = look.document('vae/config.json')
    _check_class(look, 'vae/config.json', document, 'AutoencoderKLWan')
    part = look.part('vae')
    if document is None or part is None:
        return document, part or Part()
    if config is not None and document.get('z_dim') != config.latent_channel:
        value, allowed = repr(document.get('z_dim')), f'{config.latent_channel}, as the transformer has'
        look.report('vae/config.json: z_dim', 'does not fit the transformer', value, allowed)
    check_vae(look, document, part)
    return document, part


def verify_tokenizer(look: Inspection) -> None:
    """The files of `text_tokenizer/` without which no prompt can be made."""
    look.document('text_tokenizer/tokenizer.json')
    settings = look.document('text_tokenizer/tokenizer_config.json')
    template = 'text_tokenizer/chat_template.jinja'
    if not look.has(template) and not (settings or {}).get('chat_template'):
        look.report(template, 'is missing', remedy='download or write this file again')


def verify_sound_tokenizer(look: Inspection) -> bool:
    """Whether there is a `sound_tokenizer/`: optional as a whole, but with configuration and weights if it is there."""
    if not look.has('sound_tokenizer'):
        return False
    look.document('sound_tokenizer/config.json')
    look.part('sound_tokenizer')
    return True
