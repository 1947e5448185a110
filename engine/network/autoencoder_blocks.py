"""What the video autoencoder is built of: causal convolutions, the norm, resampling, shortcuts without parameters.

A clip goes through in chunks: its first frame alone, then a few frames at a time. Convolutions over time look at the
past only, and what they must know of earlier chunks is kept in a :class:`Past`, never in the modules: any number of
clips may be encoded and decoded at the same time.

Tensors are [B, C, T, H, W] throughout: clips, channels, frames of a chunk, rows, columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SHORTEST = 1e-12
"""What `F.normalize` takes a shorter vector's length to be."""


class Past:
    """What the convolutions remember of one clip on its way through the encoder, or through the decoder.

    Attributes:
        between: Called before every convolution; other work may be done in it, on other clips as well.
        begins: Whether the chunk under way is the first: one frame, before which there is nothing.
        ends: Whether it is the last, of which nothing need be remembered.
    """

    def __init__(self, between: Callable[[], None] | None = None) -> None:
        self.between = between or _do_nothing
        self.begins = self.ends = True
        self._frames: dict[nn.Module, Tensor] = {}

    def chunks(self, clip: Tensor, size: int) -> Iterator[Tensor]:
        """The first frame of a clip, then `size` frames at a time."""
        frames = clip.shape[2]
        for first in (0, *range(1, frames, size)):
            last = min(first + size, frames) if first else 1
            self.begins, self.ends = first == 0, last == frames
            yield clip[:, :, first:last]

    def keep(self, convolution: nn.Module, x: Tensor, count: int) -> None:
        """Remember the last `count` frames of `x` for a convolution's next chunk."""
        if not self.ends:
            self._frames[convolution] = x[:, :, -count:].clone()  # not a view, which would hold on to all frames

    def join(self, convolution: nn.Module, x: Tensor, count: int) -> Tensor:
        """Put the `count` frames before `x` in front of it, zeros for those that a convolution has never been given."""
        before = self._frames.pop(convolution, None)
        known = 0 if before is None else before.shape[2]
        joined = x if before is None else torch.cat([before, x], dim=2)
        joined = F.pad(joined, (0, 0, 0, 0, count - known, 0)) if known < count else joined
        self.keep(convolution, joined, count)
        return joined


def _do_nothing() -> None:
    """Nobody has other work."""


class CausalConv(nn.Conv3d):
    """A convolution that keeps the size of pictures and sees, of time, the frame itself and those before it.

    Args:
        inputs: Channels that go in.
        outputs: Channels that come out.
        kernel: Taps over time, rows, columns.
        stride: Step over time; with 2, two frames become one.
    """

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride: int = 1) -> None:
        margin = (kernel[1] // 2, kernel[2] // 2)
        super().__init__(inputs, outputs, kernel, stride=(stride, 1, 1), padding=(0, *margin))
        self.before, self.margin = kernel[0] - stride, margin

    def forward(self, x: Tensor, past: Past) -> Tensor:  # type: ignore[override]
        """[B, C, T, H, W] to [B, C', T / stride, H, W]."""
        past.between()
        if past.begins:
            return self._begin(x, past)
        x = past.join(self, x, self.before) if self.before else x
        if x.is_cpu and not torch.compiler.is_exporting():
            return self._convolve_pictures(x)
        out: Tensor = super().forward(x)
        return out

    def _convolve_pictures(self, x: Tensor) -> Tensor:
        """The same in two dimensions, earlier frames as more channels: PyTorch has nothing fast for three on a CPU."""
        windows = x.unfold(2, self.kernel_size[0], self.stride[0])  # [B, C, T', H, W, taps]
        pictures = windows.permute(0, 2, 1, 5, 3, 4).flatten(2, 3).flatten(0, 1)  # [B * T', C * taps, H, W]
        return as_clips(F.conv2d(pictures, self.weight.flatten(1, 2), self.bias, padding=self.margin), x.shape[0])

    def _begin(self, x: Tensor, past: Past) -> Tensor:
        """The first frame, before which there are only zeros: the last tap over time alone meets data."""
        if self.before:
            past.keep(self, x, self.before)
        out = F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, padding=self.margin)
        return out[:, :, None]


class ChannelNorm(nn.Module):
    """Scales the channels at every position to a root mean square of one, then by `gamma`.

    In half precision the length is calculated, and divided by, in float32; everything else is in the type of `x`.

    Args:
        channels: Their number.
        axes: How many axes `x` has behind the channels: as many `gamma` has in its file.
    """

    def __init__(self, channels: int, axes: int = 3) -> None:
        super().__init__()
        self.scale = math.sqrt(channels)
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] to the same shape."""
        exact = x.float() if x.dtype.itemsize < 4 else x
        return _even(exact).to(x.dtype) * self.scale * self.gamma


def _even(x: Tensor) -> Tensor:
    """Channels scaled to length one."""
    if not x.is_cpu or torch.compiler.is_exporting():
        return F.normalize(x, dim=1)
    # The same; PyTorch's own length of vectors that lie across memory takes ten times as long on a CPU.
    return x / x.square().sum(dim=1, keepdim=True).clamp_min(_SHORTEST**2).sqrt()


class ResidualBlock(nn.Module):
    """Twice norm, SiLU and convolution, beside a shortcut, which is a convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(inputs)
        self.conv1 = CausalConv(inputs, outputs, (3, 3, 3))
        self.norm2 = ChannelNorm(outputs)
        self.conv2 = CausalConv(outputs, outputs, (3, 3, 3))
        self.conv_shortcut = CausalConv(inputs, outputs, (1, 1, 1)) if inputs != outputs else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """[B, C, T, H, W] to [B, C', T, H, W]."""
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x, past)
        x = self.conv1(F.silu(self.norm1(x)), past)
        x = self.conv2(F.silu(self.norm2(x)), past)
        return x + shortcut


class FrameAttention(nn.Module):
    """One head of attention among the positions of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, axes=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """[B, C, T, H, W] to the same shape."""
        frames = as_pictures(x)  # [B * T, C, H, W]
        past.between()
        tokens = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2).contiguous()  # [B * T, H * W, 3 C]
        query, keys, values = tokens.unsqueeze(1).chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(query, keys, values).squeeze(1)  # [B * T, H * W, C]
        past.between()
        return x + as_clips(self.proj(seen.transpose(1, 2).reshape(frames.shape)), x.shape[0])


class MiddleBlock(nn.Module):
    """Two residual blocks with attention between them, where pictures are smallest."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels) for _ in range(2)])
        self.attentions = nn.ModuleList([FrameAttention(channels)])

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """[B, C, T, H, W] to the same shape."""
        for block in (self.resnets[0], self.attentions[0], self.resnets[1]):
            x = block(x, past)
        return x


class Downsampler(nn.Module):
    """Halves rows and columns, and with `time` every two frames after the first become one."""

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = CausalConv(channels, channels, (3, 1, 1), stride=2) if time else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """[B, C, T, H, W] to [B, C, T or T / 2, H / 2, W / 2]."""
        past.between()
        x = as_clips(self.resample(as_pictures(x)), x.shape[0])
        if self.time_conv is None:
            return x
        if past.begins:  # the first frame stays by itself, and is what the next two are seen after
            past.keep(self.time_conv, x, self.time_conv.before)
            return x
        out: Tensor = self.time_conv(x, past)
        return out


class Upsampler(nn.Module):
    """Doubles rows and columns, and with `time` every frame after the first becomes two."""

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        double = nn.Upsample(scale_factor=2.0, mode='nearest-exact')
        self.resample = nn.Sequential(double, nn.Conv2d(channels, channels, 3, padding=1))
        self.time_conv = CausalConv(channels, 2 * channels, (3, 1, 1)) if time else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """[B, C, T, H, W] to [B, C, T or 2 T, 2 H, 2 W]."""
        if self.time_conv is not None and not past.begins:  # the first frame is not even remembered
            pairs = self.time_conv(x, past).unflatten(1, (2, -1))  # [B, 2, C, T, H, W]
            x = pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        past.between()
        return as_clips(self.resample(as_pictures(x)), x.shape[0])


def average_down(x: Tensor, channels: int, time: int, space: int) -> Tensor:
    """Shortcut around a stage of the encoder: cells of `time` frames and `space` x `space` positions become channels.

    These go in groups of equal size, each averaged, to make `channels` of them. An odd number of frames is made even
    by a frame of zeros before them: that of the first chunk.

    Args:
        x: [B, C, T, H, W], C * time * space**2 a multiple of `channels`.
        channels: How many come out.
        time: 1 or 2.
        space: 1 or 2.

    Returns:
        [B, channels, T / time, H / space, W / space].
    """
    x = F.pad(x, (0, 0, 0, 0, x.shape[2] % time, 0)) if x.shape[2] % time else x
    cells = x.unflatten(4, (-1, space)).unflatten(3, (-1, space)).unflatten(2, (-1, time))  # [B, C, T, t, H, s, W, s]
    groups = cells.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4).unflatten(1, (channels, -1))
    return groups.mean(dim=2)


def repeat_up(x: Tensor, channels: int, time: int, *, first: bool) -> Tensor:
    """Shortcut around a stage of the decoder: channels are repeated and dealt out to cells of frames and positions.

    Args:
        x: [B, C, T, H, W], `channels` * time * 4 a multiple of C.
        channels: How many come out.
        time: 1 or 2.
        first: Whether this is the first chunk, in which one frame stays one.

    Returns:
        [B, channels, T * time, 2 H, 2 W]; of the first chunk [B, channels, 1, 2 H, 2 W].
    """
    copies = x.repeat_interleave(channels * time * 4 // x.shape[1], dim=1)
    cells = copies.unflatten(1, (channels, time, 2, 2))  # [B, channels, t, s, s, T, H, W]
    if first:
        cells = cells[:, :, -1:]
    return cells.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def as_pictures(x: Tensor) -> Tensor:
    """[B, C, T, H, W] to [B * T, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)


def as_clips(pictures: Tensor, clips: int) -> Tensor:
    """[B * T, C, H, W] to [B, C, T, H, W], for B `clips`."""
    return pictures.unflatten(0, (clips, -1)).transpose(1, 2)
