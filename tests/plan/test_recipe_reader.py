"""Faults of recipes: each is refused in one line that names the field, the value and the remedy."""

from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.plan.recipe_reader import load_recipe
from tests.plan.recipes import GOOD, GRID, load


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('epsilon = "16/255"', 'epsilon = "0/255"', r"epsilon = 0: must lie in \(0, 1\]"),
        ('epsilon = "16/255"', "epsilon = 16", "epsilon = 16: must lie"),
        ('epsilon = "16/255"', 'epsilon = "much"', "budget.epsilon"),
        ('epsilon = "16/255"', 'epsilon = "16/0"', "budget.epsilon"),
        ('epsilon = "16/255"', 'epsilom = "16/255"', r"budget\.epsilom: unknown key; did you mean epsilon"),
        ("steps = 20", "steps = 0", "steps = 0: must be from 1 to 1,000,000"),
        ('targets = ["vgg19_bn.tv_in1k", {model = "inception_v3.tv_in1k", policy = "crop"}]', "", "targets: missing"),
        (
            '"vgg19_bn.tv_in1k", {model = "inception_v3.tv_in1k", policy = "crop"}',
            "",
            r"targets = \[\]: is empty; at",
        ),
        ("vgg19_bn.tv_in1k", "vgg19_bn.tv_in2k", r"targets\.0: unknown timm tag.*did you mean vgg19_bn\.tv_in1k"),
        ('policy = "crop"', 'policy = "squash"', r"targets\.1\.policy = 'squash'"),
        ('policy = "crop"', 'polisy = "crop"', "polisy: unknown key; did you mean policy"),
        ("inception_v3.tv_in1k", "vgg19_bn.tv_in1k", "targets: two are called 'vgg19_bn.tv_in1k'"),
        ('"mi",', '"gnp",', r"attacks\.0: attack = 'gnp': expected noise, or one of"),
        ('"mi",', "[],", r"attacks\.0 = \[\]: input should be a valid string"),
        ('"mi",', '{attack = "mi", gnp = {}},', "gnp is set, but attack = 'mi' does not name it"),
        ('form = "backward"', 'form = "sideways"', r"gnp\.form = 'sideways'"),
        ('form = "backward"', "r = -1.0", r"attacks\.1\.gnp: r = -1\.0: must be positive"),
        ('name = "val"', 'name = "v a l"', r"data: name = 'v a l'"),
        ('name = "val"', "", r"data\.name: missing"),
        ('name = "val"', 'name = "val"\npart_size = 0', "part_size = 0: must be at least 1"),
        ('name = "val"', 'name = "val"\nfraction = 1.5', "fraction = 1.5"),
        ('name = "val"', 'name = "val"\npreparation = {resize = 10}', "resize = 10: must be at least crop"),
        ('name = "val"', 'name = "val"\npreparation = {rezise = 300}', "rezise: unknown key; did you mean resize"),
        ("[data]", "[engine]\ngenerators = 0\n[data]", "generators = 0"),
        ("[data]", "[data", "not TOML"),
        ("steps = 20", "steps = true", r"attacks\.1\.steps = true: only a model's args are true or false"),
        ('epsilon = "16/255"', "epsilon = true", r"budget\.epsilon = true"),
        ('"mi",', '{attack = "noise", steps = 3},', "takes no steps"),
        ('"mi",', '{attack = "i", gnp = {}},', "does not name it"),
        ("steps = 20", "decay = nan", "decay = nan"),
        ("steps = 20", 'steps = "20"', r"attacks\.1\.steps = '20': write the number without quotes"),
        ("steps = 20", "step_size = 1.5", r"step_size = 3/2: must lie in \(0, 1\]"),
        ('form = "backward"', "r = 1.5", "r = 1.5: must be positive, and at most 1 with norm = 'mean-abs'"),
        ('form = "backward", norm = "mean-abs"', "r = 1001.0", "r = 1001.0: must be positive, and at most 1000"),
        ('"16/255"', '"1e999999999"', "budget.epsilon: '1e999999999' is not a number"),
        ("steps = 20", "steps = " + "9" * 5000, "not TOML: .*4300 digits"),
        ("steps = 20", "steps = 0x" + "9" * 5000, r"attacks\.1\.steps: a whole number of more than 64 bits"),
        ('"16/255"', "[" * 3000 + "]" * 3000, "not TOML: .*recursion"),
        ('epsilon = "16/255"', "a." * 200 + "a = 1", r"budget\.a\.a.*nested too deeply"),
        ('epsilon = "16/255"', r'"a\nb\u001b" = 1', r"budget\.a\\nb\\x1b: unknown key"),
        ('form = "backward"', "beta = nan", "beta = nan"),
    ],
)
def test_a_fault_names_field_value_and_remedy(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError, match=message) as refused:
        load(tmp_path, GOOD.replace(old, new))
    assert "recipe.toml" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("beta = [0.0, 0.4, 0.8]", "beta = [0.0, -1.0]", r"attacks\.1\.gnp: beta = -1\.0: must be a number from 0"),
        ("beta = [0.0, 0.4, 0.8]", "beta = []", r"attacks\.1: its lists make 0 attacks"),
        ("beta = [0.0, 0.4, 0.8]", f"beta = {[index / 1000 for index in range(600)]}", "make 1200 attacks; from 1 to"),
        ("beta = [0.0, 0.4, 0.8]", 'beta = ["0.4"]', "gnp.beta.0 = '0.4': write the number without quotes"),
        (
            "beta = [0.0, 0.4, 0.8]",
            "beta = [0.4, 0.4]",
            "two are called .*; leave one out, or give one",
        ),
        ("steps = [10, 50]", "steps = [10, 0]", r"attacks: gnp\+mi\+di\+ti.*: steps = 0: must be from 1 to 1,000,000"),
        ("steps = 20", "steps = 1000000000", r"attacks\.2: steps = 1000000000: must be from 1 to 1,000,000"),
        ("steps = [10, 50]", 'steps = ["10"]', r"budget\.steps\.0 = '10': write the number without quotes"),
        ("steps = [10, 50]", "steps = []", r"budget\.steps = \[\]: is empty; at least one is wanted"),
        ('epsilon = ["4/255", "8/255"]', 'epsilon = ["4/255", "x"]', r"budget\.epsilon\.1: 'x' is not a number"),
        ('epsilon = ["4/255", "8/255"]', 'epsilon = ["4/255", ""]', r"budget\.epsilon\.1: '' is not a number"),
        ('epsilon = ["4/255", "8/255"]', "epsilon = [16]", r"attacks: noise: epsilon = 16: must lie in \(0, 1\]"),
        ('epsilon = ["4/255", "8/255"]', "epsilon = [1979-05-27]", r"budget\.epsilon\.0 = 1979-05-27: nothing .* date"),
        (
            'gnp = { beta = [0.0, 0.4, 0.8], r = [0.01, 0.1], norm = "mean-abs" }',
            'gnp = "literal"',
            r"attacks\.1\.gnp = 'literal': a table is wanted, such as \{ \.\.\. \}",
        ),
        (
            'gnp = { beta = [0.0, 0.4, 0.8], r = [0.01, 0.1], norm = "mean-abs" }',
            "gnp = [{r = 0.1}, {r = 0.2}]",
            r"attacks\.1: gnp is a list of tables; lists go inside",
        ),
        ("r = [0.01, 0.1]", 'r = ["1/x"]', r"attacks\.1\.gnp: r: '1/x' is not a number"),
        (
            'name = "wanting"',
            'name = "want\\ning"',
            r"attacks\.2: name = 'want\\n.*: holds a character that no",
        ),
        (
            'name = "wanting"',
            f'name = "{"x" * 101}"',
            r"attacks\.2: name = .*longer than 100 characters; set a",
        ),
        ("gnp+mi+di+ti", "gnp+mi+di+to", r"attacks\.1: attack = 'gnp\+mi\+di\+to': expected noise, or one of fgsm"),
        ("gnp+mi+di+ti", "gnp+mi+di", r"attacks\.1: ti is set, but attack = 'gnp\+mi\+di' does not name it"),
        ('kernel = "linear"', 'kernel = "round"', r"attacks\.1\.ti\.kernel = 'round'"),
        ('kernel = "linear"', 'kernl = "linear"', r"attacks\.1\.ti\.kernl: unknown key; did you mean kernel"),
        ("size = 7", "size = 8", r"attacks\.1\.ti: size = 8: must be an odd number"),
        ("ti = {", "di = { rate = 1.0 }\nti = {", r"attacks\.1\.di: rate = 1\.0: must lie between"),
        ('norm = "l2"', 'norm = "l1"', r"attacks\.2\.norm = 'l1'"),
        ('norm = "l2"', "", r"attacks\.2: epsilon = 3: must lie in \(0, 1\]"),
        ('loss = "margin"', 'loss = "hinge"', r"attacks\.2\.loss = 'hinge'"),
        ('"least-likely"', '"likely"', r"attacks\.2\.target_class: 'likely' is not a target class; write \"shard\""),
        ('"least-likely"', "-1", r"attacks\.2: target_class = -1: must be a class index"),
        ('attack = "noise"', 'attack = "noise"\nloss = "logit"', r"attacks\.0: attack = 'noise': takes no loss"),
        ('attack = "noise"', 'attack = "noise"\ngnp = {r = 0.1}', r"attacks\.0: attack = 'noise': takes no gnp"),
        ('"least-likely"', "1000", r"target_class = 1000, and data\.classes = 1000: classes count from 0"),
        ('attack = "ni"', 'attack = "vt+ni"', r"attacks\.2: norm = 'l2': vt draws neighbours from a cube"),
        (
            'attack = "noise"',
            'attack = "mi+di+admix"\ndi = {variant = "no-resize-back"}',
            r"attacks\.0: admix after di",
        ),
        ('attack = "noise"', 'attack = "fgsm"\nsteps = 4', r"attacks\.0: steps = 4: fgsm takes one"),
        ('"bits+jpeg"', '"bits+jpg"', r"targets\.1: defense = 'bits\+jpg': expected any of rp, bits, jpeg"),
        ('"bits+jpeg"', '"bits+bits+jpeg"', r"targets\.1: defense = .*each once"),
        (
            '"bits+jpeg", jpeg = {quality = 50}',
            '"nrp"',
            r"targets\.1: nrp = \{ checkpoint = \"…\" \} is wanted: NRP\.pth, .* github\.com/Muz",
        ),
        (
            '"bits+jpeg", jpeg = {quality = 50}',
            '"hgd+bits"',
            r"targets\.1: hgd = .* is wanted: denoise_incepv3_012\.ckpt, .* github\.com/lfz",
        ),
        ('"bits+jpeg"', '"bits"', r"targets\.1: jpeg is set, but defense = 'bits' does not name it"),
        ("quality = 50", "quality = 0", r"targets\.1\.jpeg: quality = 0: must be from 1 to 100"),
        ("quality = 50", "qality = 50", r"targets\.1\.jpeg\.qality: unknown key; did you mean quality"),
        ("quality = 50", 'quality = "50"', r"targets\.1\.jpeg\.quality = '50': write the number without quotes"),
        ('fuse = "losses"', 'defense = "jpeg"', r"sources\.0\.defense: unknown key; known here: ensemble, fuse, name$"),
        (
            'fuse = "losses"',
            'model = "resnet50.tv_in1k"',
            r"sources\.0\.model: unknown key; known here: ensemble",
        ),
        (
            'ensemble = ["resnet50.tv_in1k", {model = "vgg19_bn.tv_in1k"}]',
            'model = "resnet50.tv_in1k"',
            r"sources\.0\.fuse: unknown key; known here: model, name, checkpoint",
        ),
        ("jpeg = {quality = 50}", "jpeg = 4", r"targets\.1\.jpeg = 4: a table is wanted"),
        ('"losses"', '"votes"', r"sources\.0\.fuse = 'votes'"),
        ('"resnet50.tv_in1k", {', '"resnet50.tv_in2k", {', r"sources\.0: unknown timm tag 'resnet50\.tv_in2k'"),
        (
            '{model = "vgg19_bn.tv_in1k"}]',
            '{model = "resnet50.tv_in1k", name = "b"}]',
            r"sources\.0: ensemble: a model is named twice",
        ),
        ('["resnet50.tv_in1k", {model = "vgg19_bn.tv_in1k"}]', "[]", r"sources\.0: ensemble: 0 models are named"),
        ('fuse = "losses"', 'fuze = "losses"', r"sources\.0\.fuze: unknown key; did you mean fuse"),
    ],
)
def test_a_fault_of_a_grid_or_an_ensemble_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GRID
    with pytest.raises(RecipeError, match=message) as refused:
        load(tmp_path, GRID.replace(old, new))
    assert len(str(refused.value).splitlines()) == 1, refused.value


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    assert load(tmp_path, "\ufeff" + GOOD).job().data.name == "val"


def test_each_fault_gets_its_own_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        load(tmp_path, GOOD.replace('"16/255"', '"x"').replace('name = "val"', "").replace("steps = 20", "stepz = 20"))
    assert len(str(refused.value).splitlines()) == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml: cannot be read"):
        load_recipe(tmp_path / "none.toml")
