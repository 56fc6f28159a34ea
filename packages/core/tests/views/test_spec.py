import pytest

from ssl_core.views import (
    JITTER_ORDERS,
    CenterCrop,
    Choice,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Jigsaw,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Solarize,
    ViewSpec,
    derive,
    num_parameters,
    parameter_names,
)

WEAK = ViewSpec((RandomResizedCrop(), HorizontalFlip()), (32,), name="weak")


def test_parameters_are_named_by_op_and_a_repeated_op_is_numbered():
    view = ViewSpec((CenterCrop(), Solarize(), RandomCrop(padding=4), Solarize()), (8,))
    names = ("solarize.solarize", "random_crop.top", "random_crop.left", "solarize_2.solarize")
    assert parameter_names(view) == names
    assert num_parameters(view) == 4


def test_a_drawn_distortion_has_a_name_and_a_magnitude_for_each_draw():
    view = ViewSpec((CenterCrop(), RandAugment(num_ops=2)), (8,))
    parts = ("distortion_1", "magnitude_1", "distortion_2", "magnitude_2")
    assert parameter_names(view) == tuple(f"rand_augment.{part}" for part in parts)


def test_a_drawn_distortion_has_a_place_only_where_the_pool_has_cutout():
    assert RandAugment("dssl_code16", num_ops=1).parameters == ("distortion_1", "magnitude_1", "x_1", "y_1")
    assert RandAugment("dssl_paper14", num_ops=1).parameters == ("distortion_1", "magnitude_1")


def test_a_choice_names_the_parameters_of_both_and_numbers_what_is_repeated():
    view = ViewSpec((CenterCrop(), Choice(0.5, (Solarize(), Solarize()), (Jigsaw(2),))), (8,))
    first = ("takes_first", "first.solarize.solarize", "first.solarize_2.solarize")
    second = tuple(f"second.jigsaw.cell_{place}" for place in range(4))
    assert parameter_names(view) == tuple(f"choice.{name}" for name in (*first, *second))
    assert num_parameters(view) == 7


def test_jitter_orders_are_all_orders_of_four():
    assert len(set(JITTER_ORDERS)) == 24
    assert all(sorted(order) == [0, 1, 2, 3] for order in JITTER_ORDERS)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomResizedCrop(scale=(0.0, 1.0)), "random_resized_crop: scale .* got"),
        (lambda: RandomResizedCrop(scale=(0.5, 1.5)), "scale .* 1.5"),
        (lambda: RandomResizedCrop(ratio=(2.0, 1.0)), "ratio .* rising"),
        (lambda: RandomResizedCrop(interpolation="nearest"), "bilinear, bicubic.*'nearest'"),
        (lambda: RandomCrop(padding=-1), "padding .* -1"),
        (lambda: Resize(side=0), "side .* 0"),
        (lambda: Resize(mode="stretch"), "squash or pad, got 'stretch'"),
        (lambda: RandAugment("clsa14"), "'clsa14'.*clsa_code14, clsa_paper14"),
        (lambda: RandAugment(num_ops=0), "num_ops .* 0"),
        (lambda: RandAugment(prob=1.5), "rand_augment: prob .* 1.5"),
        (lambda: RandAugment(level_range=(9, 1)), r"rising levels in \[0, 10\] .*\(9, 1\)"),
        (lambda: RandAugment(level_range=(1, 11)), r"\(1, 11\)"),
        (lambda: RandAugment(level_range="code"), "or 'continuous', got 'code'"),
        (lambda: RandAugment(level_range=(-1, 9)), r"\(-1, 9\)"),
        (lambda: RandAugment("dssl_code16", level_range=(31, 31)), r"in \[0, 30\] .*\(31, 31\)"),
        (lambda: Jigsaw(grid=1), "jigsaw: grid must be >= 2 .* 1"),
        (lambda: Jigsaw(prob=-1.0), "jigsaw: prob .* -1"),
        (lambda: Choice(1.5, (), ()), "choice: prob .* 1.5"),
        (lambda: Choice(0.5, (RandomResizedCrop(),), ()), "choice: random_resized_crop cannot be one of its ops"),
        (lambda: Choice(0.5, (), (Jigsaw(), Resize())), "choice: resize cannot be"),
        (lambda: Choice(0.5, (), (Choice(0.5, (), ()),)), "choice: choice cannot be"),
        (lambda: ViewSpec((RandomResizedCrop(), Jigsaw(3)), (32,)), "jigsaw's grid 3 does not divide .* 32"),
        (lambda: ViewSpec((RandomResizedCrop(), Jigsaw(4)), (32, 18)), "grid 4 does not divide .* 18"),
        (lambda: ViewSpec((Resize(30), Jigsaw(4), RandomCrop()), (32,)), "grid 4 does not divide .* 30"),
        (lambda: ViewSpec((CenterCrop(), Choice(0.5, (Jigsaw(5),), ())), (32,)), "grid 5 does not divide .* 32"),
        (lambda: ViewSpec((CenterCrop(), Choice(0.5, (), (Jigsaw(5),))), (32,)), "grid 5 does not divide .* 32"),
        (lambda: derive([WEAK], 0, [Jigsaw(4)], sizes=(30,)), "grid 4 does not divide .* 30"),
        (lambda: ViewSpec((Jigsaw(), RandomResizedCrop()), (32,)), "jigsaw comes before .* put it after"),
        (lambda: HorizontalFlip(prob=1.5), "prob .* 1.5"),
        (lambda: Grayscale(prob=-0.1), "grayscale: prob"),
        (lambda: ColorJitter(contrast=-1.0), "contrast .* -1"),
        (lambda: ColorJitter(hue=0.6), "hue .* 0.6"),
        (lambda: ColorJitter(brightness=float("nan")), "brightness .* nan"),
        (lambda: GaussianBlur(sigma=(0.0, 1.0)), "sigma"),
        (lambda: Solarize(threshold=128.0), "threshold .* 128"),
        (lambda: ViewSpec(WEAK.ops, ()), "sizes"),
        (lambda: ViewSpec(WEAK.ops, (0,)), "sizes"),
        (lambda: ViewSpec(WEAK.ops, (32, 32)), "different"),
        (lambda: ViewSpec((HorizontalFlip(),), (32,)), "do not end at the view's size"),
        (lambda: ViewSpec((RandomResizedCrop(), Resize(side=48)), (32,)), "do not end at the view's size"),
        (lambda: ViewSpec((Resize(side=32),), (32, 300)), "do not end at the view's size"),
        (lambda: ViewSpec((RandomCrop(),), (32, 16)), "one geometric op that resizes"),
        (lambda: ViewSpec((CenterCrop(), RandomResizedCrop()), (32, 16)), "one geometric op that resizes"),
        (lambda: ViewSpec((CenterCrop(short_side=30),), (32,)), "short_side 30 is smaller"),
        (lambda: ViewSpec(WEAK.ops, (32,), derived_from=0), "ssl_core.views.derive"),
        (lambda: ViewSpec(WEAK.ops, (32,), shared_ops=1), "ssl_core.views.derive"),
        (lambda: derive([WEAK], 1, [Solarize()]), "derived_from 1 is not the index of an earlier view"),
        (lambda: derive([WEAK, derive([WEAK], 0, [])], 1, [Solarize()]), "derive from 0"),
    ],
)
def test_numbers_and_ops_that_cannot_be_are_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_jigsaw_may_stand_wherever_its_grid_divides_the_side_there():
    ViewSpec((Resize(30), Jigsaw(5), RandomCrop(), Jigsaw(4)), (32,))
    ViewSpec((RandomResizedCrop(), Choice(0.5, (), (Jigsaw(7),))), (224, 21))


def test_a_derived_view_holds_its_parents_ops_and_its_own():
    view = derive([WEAK, WEAK], 1, [Solarize(prob=1.0)], name="heavy")
    assert view.ops == (*WEAK.ops, Solarize(prob=1.0))
    assert (view.sizes, view.derived_from, view.shared_ops) == ((32,), 1, 2)
    crop_only = derive([WEAK], 0, [Grayscale()], shared_ops=1, sizes=(16,))
    assert crop_only.ops == (WEAK.ops[0], Grayscale())
    assert (crop_only.sizes, crop_only.shared_ops) == ((16,), 1)
