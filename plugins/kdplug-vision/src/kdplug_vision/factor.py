"""Factor transfer: the student learns a compressed form of the teacher's map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from kdplug_vision.maps import check_maps, check_setting, to_smaller


class FT(nn.Module):
    """L1 distance of the attention maps of two factors: the teacher's from its paraphraser, the student's from a translator.

    ``mean |Q(T(F_s)) - Q(P(F_t))|``: ``Q`` is the mean over channels of the square, flattened, divided by its L2 norm; both
    factors have ``ratio`` times the teacher's channels. ``P`` is the encoder of an autoencoder of the teacher's map. Until
    ``progress`` reaches ``pretraining`` the loss is the autoencoder's mean squared error and trains nothing else; then the
    paraphraser is fixed. The authors train it for 30 epochs. The larger factor is pooled to the smaller one. Usual weight:
    200, on the last map.

    Settings: ``ratio`` of the factor's channels to the teacher's; ``pretraining``, share of the run in which only
    the autoencoder is trained.

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H', W']``; returns a scalar, since batch norm compares the examples of a
    batch.
    Raises: ``SettingError`` unless ``0 < ratio`` and ``0 <= pretraining < 1``; ``ShapeError`` for other shapes.
    Source: Kim et al. 2018, arXiv:1802.04977; RepDistiller, distiller_zoo/FT.py and models/util.py.
    """

    axis = 1
    own_parameters = True

    def __init__(self, in_dim: int, out_dim: int, *, ratio: float = 0.5, pretraining: float = 0.1) -> None:
        super().__init__()
        check_setting("ratio", ratio, above=0)
        check_setting("pretraining", pretraining, least=0, below=1)
        width = max(1, int(out_dim * ratio))
        self.pretraining = pretraining
        self.translator = _encoder(in_dim, width, batch_norm=True)
        self.paraphraser = _encoder(out_dim, width, batch_norm=False)
        self.decoder = nn.Sequential(
            *_block(nn.ConvTranspose2d(width, width, 3, padding=1)),
            *_block(nn.ConvTranspose2d(width, out_dim, 3, padding=1)),
            *_block(nn.ConvTranspose2d(out_dim, out_dim, 3, padding=1)),
        )

    def forward(self, student_features: Tensor, teacher_features: Tensor, progress: float) -> Tensor:
        """Return the error of the autoencoder, then the distance of the factors."""
        check_maps("ft", student_features, teacher_features)
        theirs = teacher_features.detach()
        if progress < self.pretraining:
            return mse_loss(self.decoder(self.paraphraser(theirs)), theirs)
        with torch.no_grad():
            factor = self.paraphraser(theirs)
        own, other = (
            normalize(one.square().mean(1).flatten(1)) for one in to_smaller(self.translator(student_features), factor)
        )
        return (own - other).abs().mean()


def _encoder(in_dim: int, out_dim: int, *, batch_norm: bool) -> nn.Sequential:
    widths = [(in_dim, in_dim), (in_dim, out_dim), (out_dim, out_dim)]
    return nn.Sequential(
        *(part for each in widths for part in _block(nn.Conv2d(*each, 3, padding=1), batch_norm=batch_norm))
    )


def _block(convolution: nn.Conv2d | nn.ConvTranspose2d, *, batch_norm: bool = False) -> list[nn.Module]:
    norms: list[nn.Module] = [nn.BatchNorm2d(convolution.out_channels)] if batch_norm else []
    return [convolution, *norms, nn.LeakyReLU(0.1)]
