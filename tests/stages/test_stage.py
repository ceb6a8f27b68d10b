import pytest

from pipeline.errors import IntegrityError, ShardError
from pipeline.stages.stage import DeferredErrors


@pytest.mark.parametrize("order", [(ShardError, IntegrityError), (IntegrityError, ShardError)])
def test_an_error_that_another_try_may_cure_is_raised_rather_than_one_that_lasts(
    order: tuple[type[Exception], ...],
) -> None:
    errors = DeferredErrors()
    for kind in order:
        with errors.deferring():
            raise kind(kind.__name__)
    with pytest.raises(IntegrityError):
        errors.raise_first()
