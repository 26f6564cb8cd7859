"""Denoise the student's features with a diffusion model of the teacher's: DiffKD."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from kdplug import ShapeError
from kdplug_vision.maps import check_batch, check_equal, check_setting

_TRAINING_STEPS = 1000
_FIRST_BETA, _LAST_BETA = 1e-4, 0.02


class DiffKD(nn.Module):
    """Error of the student's denoised features and the teacher's, plus the losses that train the denoiser.

    The student's features, after a 1 × 1 convolution to the teacher's channels, are taken as noisy features: a small network
    chooses, for each example, the share of Gaussian noise that is mixed in, and ``steps`` DDIM steps with a diffusion model
    of the teacher's features denoise them; a 1 × 1 convolution with batch norm follows. The loss is the mean squared error
    to the teacher's features, plus the mean squared error of the noise that the diffusion model predicts for noisy teacher
    features. With ``latent`` channels an autoencoder compresses the teacher's features first, and its mean squared error is
    added. Usual weight: 1, on the last map (``latent: 1024`` for ResNet-50) and, with ``kernel_size: 1``, on the logits.

    With ``kernel_size: 1`` all convolutions are 1 × 1, and KL divergence at temperature 1 over the channels replaces the
    first squared error, as the authors do on logits.

    Settings: ``kernel_size``, 3 for maps or 1 for logits; ``steps``, number of denoising steps; ``latent``,
    channels of the autoencoder, by default none.

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H, W]``, or ``[B, C]``; returns a scalar, since batch norm compares the
    examples of a batch.
    Raises: ``SettingError`` for a setting out of range; ``ShapeError`` for other shapes.
    Source: Huang et al. 2023, arXiv:2305.15712; hunto/image_classification_sota, lib/models/losses/diffkd.
    """

    axis = 1
    random = own_parameters = True

    products: Tensor

    def __init__(
        self, in_dim: int, out_dim: int, *, kernel_size: int = 3, steps: int = 5, latent: int | None = None
    ) -> None:
        super().__init__()
        check_setting("kernel_size", kernel_size, least=1, below=4)
        check_setting("steps", steps, least=1, below=_TRAINING_STEPS // 2 + 1)
        if latent is not None:
            check_setting("latent", latent, least=1)
        if kernel_size == 2:
            check_setting("kernel_size", kernel_size, least=3)
        width = latent or out_dim
        self.kernel_size, self.steps = kernel_size, steps
        self.encoder = None if latent is None else _with_norm(out_dim, latent)
        self.decoder = None if latent is None else nn.Conv2d(latent, out_dim, 1)
        self.align = nn.Conv2d(in_dim, width, 1)
        self.times = nn.Embedding(_TRAINING_STEPS, width)
        self.denoiser = _denoiser(width) if kernel_size == 3 else _flat_denoiser(width)
        self.noise_level = nn.Sequential(
            _Bottleneck(width, 8) if kernel_size == 3 else _flat_block(width, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.noise_level.append(nn.Linear(width, 2))
        self.project = _with_norm(width, width)
        betas = torch.linspace(_FIRST_BETA, _LAST_BETA, _TRAINING_STEPS, dtype=torch.float64)
        self.register_buffer("products", (1 - betas).cumprod(0).float())

    def forward(self, student_features: Tensor, teacher_features: Tensor, draw_seed: int) -> Tensor:
        """Return the sum of the errors."""
        check_batch("diffkd", student_features, teacher_features)
        student, teacher = (_as_map(one) for one in (student_features, teacher_features.detach()))
        own: Tensor = self.align(student)
        generator = torch.Generator(device=own.device).manual_seed(draw_seed)
        total = own.new_zeros(())
        if self.encoder is not None and self.decoder is not None:
            hidden = self.encoder(teacher)
            total = mse_loss(self.decoder(hidden), teacher)
            teacher = hidden.detach()
        check_equal("diffkd", own, teacher)
        denoised = self.project(self._denoised(own, generator))
        found: Tensor = total + self._distance(denoised, teacher) + self._noise_error(teacher, generator)
        return found

    def _distance(self, own: Tensor, other: Tensor) -> Tensor:
        if self.kernel_size == 3:
            return mse_loss(own, other)
        log_q, log_p = (one.flatten(2).mean(2).log_softmax(1) for one in (own, other))
        return (log_p.exp() * (log_p - log_q)).sum(1).mean()

    def _denoised(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Mix noise into the features, and remove it by DDIM steps from the middle of the diffusion."""
        kept = self.noise_level(features).softmax(1)[:, :1, None, None]
        value: Tensor = kept * features + (1 - kept) * _noise(features, generator)
        stride = _TRAINING_STEPS // (2 * self.steps)
        for place in reversed(range(self.steps)):
            product = self.products[place * stride]
            before = self.products[(place - 1) * stride] if place else torch.ones_like(product)
            noise = self._predicted(value, torch.full((len(value),), place * stride, device=value.device))
            clean = (value - (1 - product).sqrt() * noise) / product.sqrt()
            value = before.sqrt() * clean + (1 - before).sqrt() * noise
        return value

    def _noise_error(self, teacher: Tensor, generator: torch.Generator) -> Tensor:
        noise = _noise(teacher, generator)
        times = torch.randint(_TRAINING_STEPS, (len(teacher),), generator=generator, device=teacher.device)
        product = self.products[times].to(teacher.dtype).view(-1, 1, 1, 1)
        return mse_loss(self._predicted(product.sqrt() * teacher + (1 - product).sqrt() * noise, times), noise)

    def _predicted(self, noisy: Tensor, times: Tensor) -> Tensor:
        predicted: Tensor = self.denoiser(noisy + self.times(times)[:, :, None, None])
        return predicted


class _Bottleneck(nn.Module):
    """Convolutions 1 × 1, 3 × 3 and 1 × 1 with batch norm, added to their input."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        middle = max(1, width // reduction)
        self.block = nn.Sequential(
            *_with_norm(width, middle),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 3, padding=1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            *_with_norm(middle, width),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of the same shape."""
        return maps + self.block(maps)  # type: ignore[no-any-return]


def _with_norm(in_dim: int, out_dim: int) -> nn.Sequential:
    """Return a 1 × 1 convolution and batch norm, whose shift makes a bias before it useless."""
    return nn.Sequential(nn.Conv2d(in_dim, out_dim, 1, bias=False), nn.BatchNorm2d(out_dim))


def _denoiser(width: int) -> nn.Sequential:
    return nn.Sequential(_Bottleneck(width, 4), _Bottleneck(width, 4), _with_norm(width, width))


def _flat_block(width: int, factor: int) -> nn.Sequential:
    return nn.Sequential(*_with_norm(width, factor * width), nn.ReLU(), *_with_norm(factor * width, width))


def _flat_denoiser(width: int) -> nn.Sequential:
    last = nn.Sequential(*_with_norm(width, 4 * width), nn.ReLU(), nn.Conv2d(4 * width, width, 1))
    return nn.Sequential(_flat_block(width, 4), last)


def _as_map(features: Tensor) -> Tensor:
    if features.dim() not in (2, 4):
        raise ShapeError(f"diffkd compares maps or pooled features [batch, width], got {list(features.shape)}")
    return features if features.dim() == 4 else features[:, :, None, None]


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return float32 noise in the type of ``like``, so that every type gets the same noise."""
    return torch.randn(like.shape, generator=generator, device=like.device).to(like.dtype)
