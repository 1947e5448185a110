"""Names and shapes of the tensors of a sound tokenizer, for the writer of tiny checkpoints; nothing here makes sound.

A spectrogram goes through blocks of one convolution over time and two pointwise ones (encoder), latents through
transposed convolutions with three residual units each (decoder). Convolutions are stored as direction `weight_v` and
length `weight_g`; `alpha` and `beta` shape the periodic activation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Named = tuple[str, tuple[int, ...]]

_SPECTRUM = 66  # numbers per channel and window: real and imaginary parts of 33 frequencies
_BLOCKS = 2  # of the encoder, before each of its strides
_KERNEL = 7


def sound_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes by public name, of what `sound_tokenizer/config.json` describes."""
    return dict([*_encoder(config), *_decoder(config)])


def _encoder(config: Mapping[str, Any]) -> Iterator[Named]:
    widths = [factor * config['enc_dim'] for factor in config['enc_c_mults']]
    spectrum = _SPECTRUM * (2 if config['stereo'] else 1)
    layers = [list(_convolution('', spectrum, widths[0], 1, bias=False))]
    for inputs, outputs, stride in zip(widths, [*widths[1:], widths[-1]], config['enc_strides'], strict=True):
        layers += [list(_encoder_block(inputs)) for _ in range(_BLOCKS)]
        layers.append(list(_convolution('', inputs, outputs, 2 * stride)))
    layers.append(list(_convolution('', widths[-1], config['enc_latent_dim'], 1, bias=False)))
    for index, layer in enumerate(layers):
        for name, shape in layer:
            yield f'encoder.layers.{index}.{name}', shape


def _encoder_block(width: int) -> Iterator[Named]:
    yield 'dwconv.1.weight', (width, 1, _KERNEL)
    yield 'dwconv.1.bias', (width,)
    yield 'norm.weight', (width,)  # without an offset
    yield from _activation('act.', 4 * width)
    for name, inputs, outputs in (('pwconv1', width, 4 * width), ('pwconv2', 4 * width, width)):
        yield f'{name}.weight', (outputs, inputs, 1)
        yield f'{name}.bias', (outputs,)


def _decoder(config: Mapping[str, Any]) -> Iterator[Named]:
    widths = [factor * config['dec_dim'] for factor in reversed(config['dec_c_mults'])]
    yield from _convolution('decoder.conv1.', config['vocoder_input_dim'], widths[0], _KERNEL)
    pairs = zip(widths, [*widths[1:], config['dec_dim']], reversed(config['dec_strides']), strict=True)
    for index, (inputs, outputs, stride) in enumerate(pairs):
        block = f'decoder.block.{index}.'
        yield from _activation(f'{block}snake1.', inputs)
        yield f'{block}conv_t1.weight_g', (inputs, 1, 1)
        yield f'{block}conv_t1.weight_v', (inputs, outputs, 2 * stride)
        yield f'{block}conv_t1.bias', (outputs,)
        for unit in (1, 2, 3):
            for layer, kernel in ((1, _KERNEL), (2, 1)):
                yield from _activation(f'{block}res_unit{unit}.snake{layer}.', outputs)
                yield from _convolution(f'{block}res_unit{unit}.conv{layer}.', outputs, outputs, kernel)
    yield from _activation('decoder.snake1.', config['dec_dim'])
    yield from _convolution('decoder.conv2.', config['dec_dim'], config['dec_out_channels'], _KERNEL, bias=False)


def _convolution(where: str, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> Iterator[Named]:
    yield f'{where}weight_g', (outputs, 1, 1)
    yield f'{where}weight_v', (outputs, inputs, kernel)
    if bias:
        yield f'{where}bias', (outputs,)


def _activation(where: str, width: int) -> Iterator[Named]:
    yield f'{where}alpha', (1, width, 1)
    yield f'{where}beta', (1, width, 1)
