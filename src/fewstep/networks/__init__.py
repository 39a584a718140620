"""Small real networks: their code, the scripts that trained them, and the weights that ship.

python -m fewstep.networks.train            the diffusion network
python -m fewstep.networks.train_features   the feature network (a classifier)
python -m fewstep.networks.reference        feature statistics, reference features, sample images
python -m fewstep.networks.train_points     the networks for points in the plane (`fewstep.networks.points`)
"""

from fewstep.networks.mnist import (
    CLASS_SHARES,
    Images,
    classes_of,
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
    "Images",
    "classes_of",
    "mnist_classify",
    "mnist_denoiser",
    "mnist_features",
    "mnist_floors",
    "mnist_images",
    "mnist_reference",
    "mnist_reference_features",
]
