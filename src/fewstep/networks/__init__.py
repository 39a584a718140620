"""Small real networks: their code, the scripts that trained them, and the weights that ship; and EDM's, from files.

python -m fewstep.networks.train            the diffusion network
python -m fewstep.networks.train_features   the feature network (a classifier)
python -m fewstep.networks.reference        feature statistics, reference features, sample images
python -m fewstep.networks.train_points     the networks for points in the plane (`fewstep.networks.points`)
"""

from fewstep.networks.edm_denoiser import edm_denoiser
from fewstep.networks.labels import classes_of
from fewstep.networks.mnist import (
    CLASS_SHARES,
    DigitNetwork,
    Images,
    mnist_classify,
    mnist_denoiser,
    mnist_features,
    mnist_floors,
    mnist_images,
    mnist_reference,
    mnist_reference_features,
)

__all__ = [
    "CLASS_SHARES",
    "DigitNetwork",
    "Images",
    "classes_of",
    "edm_denoiser",
    "mnist_classify",
    "mnist_denoiser",
    "mnist_features",
    "mnist_floors",
    "mnist_images",
    "mnist_reference",
    "mnist_reference_features",
]
