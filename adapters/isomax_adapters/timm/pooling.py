"""timm's test-time pooling over a distance head."""

from functools import wraps
from typing import Any

from timm.layers import TestTimePoolHead

from isomax.heads import DistanceHead


def pool_distances() -> None:
    """Have ``timm.layers.apply_test_time_pool`` keep a distance head as it is.

    It makes a 1x1 convolution of a linear classifier's weights, to get logits at each place of a
    map. A head gives those by itself, and its prototypes are no weights of a convolution.
    """
    plain = TestTimePoolHead.__init__

    @wraps(plain)
    def init(self: Any, base: Any, original_pool: Any = 7) -> None:
        classifier = base.get_classifier()
        plain(self, base, original_pool)
        if isinstance(classifier, DistanceHead):
            self.fc = classifier

    TestTimePoolHead.__init__ = init
