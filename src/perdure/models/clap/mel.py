"""The log-mel front end of HTSAT: waves at 32 kHz -> decibels of mel bands.

Knows samples, frames and mel bands, and that a short piece of sound is repeated until it fills the clip. Does not
know models or files. HTSAT: Chen et al., ICASSP 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """How waves become log-mel spectrograms."""

    mels: int = 64
    """Mel bands."""
    rate: int = 32_000
    """Samples a second of the waves."""
    reference_rate: int = 32_000
    """Rate that the mel bands are laid out for. 48000: band edges in hertz are read as if the waves had been
    sampled at 48 kHz, as happens in the published code, whose checkpoint brings its own mel matrix."""
    window: int = 1024
    """Samples of the Hann window and the transform."""
    hop: int = 320
    """Samples from frame to frame."""
    lowest: float = 50.0
    """Lower edge of the first band, in Hz."""
    highest: float = 14_000.0
    """Upper edge of the last band, in Hz."""
    longest: float = 10.0
    """Seconds that the model was made for; longer clips are cut."""

    def frames(self, seconds: float) -> int:
        """Frames of a clip of so many seconds."""
        return round(min(seconds, self.longest) * self.rate) // self.hop + 1

    def __call__(
        self, wave: Float[Tensor, "segments samples"], *, seconds: float
    ) -> Float[Tensor, "segments 1 frames mels"]:
        """Log-mel of each segment, repeated (or cut) to `seconds`, at most `longest`; what `ClapAudioModel` takes."""
        length = round(min(seconds, self.longest) * self.rate)
        power = tiled_power(wave, length, window=self.window, hop=self.hop)
        return self._decibels(power)[:, None]

    def period(self, wave: Float[Tensor, "segments samples"]) -> Float[Tensor, "segments frames mels"]:
        """Waves of one second -> what their log-mel consists of, whatever length they are repeated to: the frames that
        see the clip's beginning, those of one second, those that see its end (104 at 32 kHz). The whole clip of
        `longest` where that is not a whole number of seconds from 2 on."""
        if not self._periodic:
            return self(wave, seconds=self.longest)[:, 0]
        power = tiled_power(wave, 3 * self.rate, window=self.window, hop=self.hop)
        own = torch.cat([power[:, : self._edge + self._second], power[:, 3 * self._second + 1 - self._edge :]], dim=1)
        return self._decibels(own)

    def can_repeat(self, seconds: float) -> bool:
        """Whether `repeated` can make clips of so many seconds."""
        seconds = min(seconds, self.longest)
        return seconds == int(seconds) and seconds >= 2 if self._periodic else seconds == self.longest

    def repeated(
        self, period: Float[Tensor, "segments frames mels"], *, seconds: float
    ) -> Float[Tensor, "segments 1 time mels"]:
        """The log-mel of clips of so many seconds from what `period` gave."""
        assert self.can_repeat(seconds)
        if not self._periodic:
            return period[:, None]
        edge, second = self._edge, self._second
        middle = torch.arange(self.frames(seconds) - 2 * edge) % second + edge
        ends = torch.arange(edge), torch.arange(edge + second, 2 * edge + second)
        return period[:, torch.cat([ends[0], middle, ends[1]]).to(period.device)][:, None]

    @property
    def _periodic(self) -> bool:
        whole = self.longest == int(self.longest) and self.longest >= 2
        return whole and self.rate % self.hop == 0 and self.window <= self.rate

    @property
    def _second(self) -> int:
        """Frames of a second."""
        return self.rate // self.hop

    @property
    def _edge(self) -> int:
        """Frames at an end that see the reflection there."""
        return -(-(self.window // 2) // self.hop)

    def _decibels(self, power: Float[Tensor, "... frequencies"]) -> Float[Tensor, "... mels"]:
        filters = self.filters().to(power.device, power.dtype, non_blocking=True)
        return 10 * torch.log10((power @ filters).clamp_min(1e-10))

    def filters(self) -> Float[Tensor, "frequencies mels"]:
        """Slaney's mel filters with unit area."""
        return _filters(self.window, self.mels, self.lowest, self.highest, self.reference_rate)


@lru_cache(maxsize=8)
def _filters(window: int, mels: int, lowest: float, highest: float, rate: int) -> Tensor:
    bank = mel_filter_bank(window // 2 + 1, mels, lowest, highest, rate, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(bank).to(torch.float32)


def repeat_to(wave: Float[Tensor, "segments samples"], length: int) -> Float[Tensor, "segments length"]:
    """Each wave over and over until `length` samples are full."""
    times = -(-length // wave.shape[1])
    return wave.repeat(1, times)[:, :length]


def tiled_power(
    wave: Float[Tensor, "segments samples"], length: int, *, window: int, hop: int
) -> Float[Tensor, "segments frames frequencies"]:
    """Power spectrogram of the wave repeated to `length` samples (centred frames, reflected ends).

    Frames that see no end of the clip repeat with the wave's period, so that only the first period and the frames
    at the two ends are computed: a ninth of the work for one second repeated to ten.
    """
    period, half = wave.shape[1] // hop, window // 2
    edge = -(-half // hop)  # frames at each end that see the reflection
    total = length // hop + 1
    last_whole = (length - half) // hop  # last frame that ends within the clip
    if wave.shape[1] % hop or last_whole - edge < 2 * period or wave.shape[1] < window:
        return _power(F.pad(repeat_to(wave, length)[:, None], (half, half), mode="reflect")[:, 0], window, hop)
    head_frames = edge + period
    head = repeat_to(wave, (head_frames - 1) * hop + half)
    first = _power(F.pad(head[:, None], (half, 0), mode="reflect")[:, 0], window, hop)
    begin = last_whole * hop - half  # a frame more than is taken, so that there is enough to reflect
    tail = repeat_to(wave, length)[:, begin:]
    last = _power(F.pad(tail[:, None], (0, half), mode="reflect")[:, 0], window, hop)
    middle = torch.arange(edge, last_whole + 1, device=wave.device)
    index = torch.cat([torch.arange(edge, device=wave.device), edge + (middle - edge) % period])
    return torch.cat([first[:, index], last[:, 1 : total - last_whole]], dim=1)


def _power(padded: Tensor, window: int, hop: int) -> Tensor:
    """``[segments frames frequencies]`` of a wave whose ends are padded already.

    A product with the windowed Fourier matrix rather than an FFT: bands 100 dB below the loudest are rounding noise
    in float32, and this way it is the noise that the published front end makes.
    """
    basis = _fourier(window).to(padded.device, padded.dtype, non_blocking=True)
    real, imaginary = F.conv1d(padded[:, None], basis, stride=hop).chunk(2, dim=1)
    return (real**2 + imaginary**2).transpose(1, 2)


@lru_cache(maxsize=4)
def _fourier(window: int) -> Float[Tensor, "parts 1 window"]:
    """Hann-windowed cosines, then sines, of all frequencies up to half the rate."""
    turns = torch.outer(torch.arange(window // 2 + 1), torch.arange(window)).remainder(window)
    phase = turns.double() * (2 * torch.pi / window)
    hann = torch.hann_window(window, dtype=torch.float64)
    return torch.cat([phase.cos() * hann, -phase.sin() * hann])[:, None]
