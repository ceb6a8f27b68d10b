from fractions import Fraction
from pathlib import Path

import pytest

from pipeline.attack.gradient_transforms import Form, GradientNormPenalty, Norm, ReversePerturbation, Smoothing
from pipeline.attack.loop import Iterative, Noise
from pipeline.attack.recipe import build
from pipeline.errors import RecipeError
from pipeline.models.defenses import BitDepth, Jpeg, RandomResizePad
from pipeline.models.load import EnsembleSpec, ModelSpec
from pipeline.plan import recipe
from tests.conftest import ROOT

GOOD = """
sources = ["resnet50.tv_in1k"]
targets = ["vgg19_bn.tv_in1k", {model = "inception_v3.tv_in1k", policy = "crop"}]
attacks = ["mi", {attack = "gnp+mi", name = "strong", steps = 20, gnp = {form = "backward", norm = "mean-abs"}}]
[data]
name = "val"
shards = "s3://bucket/val-{0000..0063}.tar"
[budget]
epsilon = "16/255"
"""


def load(tmp_path: Path, text: str) -> recipe.Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return recipe.load(path)


def test_a_recipe_becomes_the_components_own_terms(tmp_path: Path) -> None:
    job = load(tmp_path, GOOD).job()
    assert job.data.shards == ("s3://bucket/val-{0000..0063}.tar",)
    assert [(spec.name, spec.policy) for spec in job.targets] == [
        ("vgg19_bn.tv_in1k", "direct"),
        ("inception_v3.tv_in1k", "crop"),
    ]
    epsilon = Fraction(16, 255)
    assert job.attacks == (
        Iterative("mi", epsilon, 10, epsilon / 10, decay=1.0),
        Iterative("strong", epsilon, 20, epsilon / 20, 1.0, transforms=(GradientNormPenalty("backward", "mean-abs"),)),
    )
    assert load(tmp_path, GOOD).job(limit=7).data.limit == 7


@pytest.mark.parametrize(
    ("written", "meant"),
    [('"16/255"', Fraction(16, 255)), ("0.03", Fraction(3, 100)), ('"0.1"', Fraction(1, 10)), ("1", Fraction(1))],
)
def test_epsilon_is_what_its_digits_say(tmp_path: Path, written: str, meant: Fraction) -> None:
    job = load(tmp_path, GOOD.replace('"16/255"', written)).job()
    assert job.attacks[0].epsilon == meant


def test_the_ablation_recipe_is_a_whole_grid() -> None:
    names = [attack.name for attack in recipe.load(ROOT / "jobs/recipes/ablation.toml").job().attacks]
    assert sum(name.startswith("gnp+mi[") for name in names) == 3 * 4 * 3 * 2


@pytest.mark.parametrize("name", ["demo", "imagenet", "gnp", "gnp-literal", "gnp-lookahead", "evidence", "curvature"])
def test_shipped_recipes_validate(name: str) -> None:
    job = recipe.load(ROOT / f"jobs/recipes/{name}.toml").job()
    assert any(isinstance(attack, Noise) for attack in job.attacks)


@pytest.mark.parametrize(
    ("name", "form", "norm"),
    [("gnp", "backward", "mean-abs"), ("gnp-literal", "literal", "l2"), ("gnp-lookahead", "look-ahead", "mean-abs")],
)
def test_the_presets_are_the_forms_that_they_name(name: str, form: Form, norm: Norm) -> None:
    job = recipe.load(ROOT / f"jobs/recipes/{name}.toml").job()
    penalties = {part for attack in job.attacks if isinstance(attack, Iterative) for part in attack.transforms}
    assert penalties == {GradientNormPenalty(form, norm, 0.01, 0.8)}


def test_the_imagenet_recipe_is_the_papers_setting() -> None:
    job = recipe.load(ROOT / "jobs/recipes/imagenet.toml").job()
    assert [spec.name for spec in job.sources] == ["resnet50.tv_in1k"]
    assert len(job.targets) == 10
    assert {attack.epsilon for attack in job.attacks} == {Fraction(16, 255)}
    assert GradientNormPenalty("literal", "l2", 0.01, 0.8) in [
        transform for attack in job.attacks if isinstance(attack, Iterative) for transform in attack.transforms
    ]


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
        ("steps = 20", "steps = true", r"attacks\.1\.steps = true: nothing in a recipe is true or false"),
        ('epsilon = "16/255"', "epsilon = true", r"budget\.epsilon = true"),
        ('"mi",', '{attack = "noise", steps = 3},', "takes no steps"),
        ('"mi",', '{attack = "i", gnp = {}},', "does not name it"),
        ("steps = 20", "decay = nan", "decay = nan"),
        ("steps = 20", 'steps = "20"', r"attacks\.1\.steps = '20': write the number without quotes"),
        ("steps = 20", "step_size = 1.5", r"step_size = 3/2: must lie in \(0, 1\]"),
        ('form = "backward"', "r = 1.5", "r = 1.5: must be positive, and at most 1 with norm = 'mean-abs'"),
        ('form = "backward", norm = "mean-abs"', "r = 1001.0", "r = 1001.0: must be positive, and at most 1000"),
        ('"16/255"', '"1e999999999"', "budget.epsilon: '1e999999999' is no number"),
        ("steps = 20", "steps = " + "9" * 5000, "not TOML: .*4300 digits"),
        ("steps = 20", "steps = 0x" + "9" * 5000, r"attacks\.1\.steps: a whole number of more than 64 bits"),
        ('"16/255"', "[" * 3000 + "]" * 3000, "not TOML: .*recursion"),
        ('epsilon = "16/255"', "a." * 200 + "a = 1", r"budget\.a\.a.*nothing in a recipe lies so deep"),
        ('epsilon = "16/255"', r'"a\nb\u001b" = 1', r"budget\.a\\nb\\x1b: unknown key"),
        ('form = "backward"', "beta = nan", "beta = nan"),
    ],
)
def test_a_fault_is_refused_by_field_value_and_remedy(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError, match=message) as refused:
        load(tmp_path, GOOD.replace(old, new))
    assert "recipe.toml" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


GRID = """
sources = [{name = "both", ensemble = ["resnet50.tv_in1k", {model = "vgg19_bn.tv_in1k"}], fuse = "losses"}]
targets = [
  "vgg19_bn.tv_in1k",
  {model = "vgg19_bn.tv_in1k", defense = "bits+jpeg", jpeg = {quality = 50}},
  {model = "vgg19_bn.tv_in1k", defense = "rp", name = "random", defense_seed = 3},
]
[data]
name = "val"
shards = "in/*.tar"
[budget]
epsilon = ["4/255", "8/255"]
steps = [10, 50]
[[attacks]]
attack = "noise"
[[attacks]]
attack = "gnp+mi+di+ti"
gnp = { beta = [0.0, 0.4, 0.8], r = [0.01, 0.1], norm = "mean-abs" }
ti = { kernel = "linear", size = 7 }
[[attacks]]
attack = "ni"
name = "wanting"
epsilon = 3
norm = "l2"
steps = 20
loss = "margin"
target_class = "least-likely"
"""


GNP = next(line for line in GRID.splitlines() if line.startswith("gnp = "))
ENSEMBLE = 'ensemble = ["resnet50.tv_in1k", {model = "vgg19_bn.tv_in1k"}]'


def test_lists_make_a_grid_whose_names_say_where_each_lies(tmp_path: Path) -> None:
    job = load(tmp_path, GRID).job()
    names = [each.name for each in job.attacks]
    assert len(names) == len(set(names)) == 2 + 3 * 2 * 2 * 2 + 1
    assert names[:3] == ["noise[epsilon=4/255]", "noise[epsilon=8/255]", names[2]]
    assert names[2] == "gnp+mi+di+ti[gnp.beta=0.0,gnp.r=0.01,epsilon=4/255,steps=10]"
    assert names[-1] == "wanting"
    last = job.attacks[-2]
    assert load(tmp_path, GRID.replace('"noise"', '"gnp+fgsm"')).job().attacks[0].steps == 1  # type: ignore[union-attr]
    assert last == build(
        "gnp+mi+di+ti",
        name=names[-2],
        epsilon=Fraction(8, 255),
        steps=50,
        parts={"gnp": GradientNormPenalty("literal", "mean-abs", 0.1, 0.8), "ti": Smoothing("linear", 7)},
    )
    assert job.attacks[-1] == build(
        "ni", name="wanting", epsilon=Fraction(3), norm="l2", steps=20, loss="margin", target_class="least-likely"
    )
    assert [target.name for target in job.targets] == [
        "vgg19_bn.tv_in1k",
        "vgg19_bn.tv_in1k behind bits+jpeg",
        "random",
    ]
    assert [target.defenses for target in job.targets] == [(), (BitDepth(4), Jpeg(50)), (RandomResizePad(),)]
    assert job.sources == (
        EnsembleSpec((ModelSpec("resnet50.tv_in1k"), ModelSpec("vgg19_bn.tv_in1k")), "losses", "both"),
    )


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
        ('epsilon = ["4/255", "8/255"]', 'epsilon = ["4/255", "x"]', r"budget\.epsilon\.1: 'x' is no number"),
        ('epsilon = ["4/255", "8/255"]', 'epsilon = ["4/255", ""]', r"budget\.epsilon\.1: '' is no number"),
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
        ("r = [0.01, 0.1]", 'r = ["1/x"]', r"attacks\.1\.gnp: r: '1/x' is no number"),
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
        ('"least-likely"', '"likely"', r"attacks\.2\.target_class: 'likely' is no target; write \"shard\""),
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
            r"sources\.0: ensemble: one model is",
        ),
        ('["resnet50.tv_in1k", {model = "vgg19_bn.tv_in1k"}]', "[]", r"sources\.0: ensemble: 0 models are named"),
        ('fuse = "losses"', 'fuze = "losses"', r"sources\.0\.fuze: unknown key; did you mean fuse"),
    ],
)
def test_a_fault_of_a_grid_or_an_ensemble_is_refused_in_one_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GRID
    with pytest.raises(RecipeError, match=message) as refused:
        load(tmp_path, GRID.replace(old, new))
    assert len(str(refused.value).splitlines()) == 1, refused.value


def test_settings_may_be_fractions_as_budgets_are(tmp_path: Path) -> None:
    written = 'attack = "rap+mi"\nrap = { epsilon = "16/255", step_size = ["2/255", "4/255"] }'
    first, second = load(tmp_path, GRID.replace('attack = "noise"', written)).job().attacks[:8:4]
    assert [each.transforms for each in (first, second)] == [  # type: ignore[union-attr]
        (ReversePerturbation(16 / 255, 8, 2 / 255),),
        (ReversePerturbation(16 / 255, 8, 4 / 255),),
    ]


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert load(tmp_path, "\ufeff" + GOOD).job().data.name == "val"


def test_every_fault_has_a_line_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        load(tmp_path, GOOD.replace('"16/255"', '"x"').replace('name = "val"', "").replace("steps = 20", "stepz = 20"))
    assert len(str(refused.value).splitlines()) == 3


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml: cannot be read"):
        recipe.load(tmp_path / "none.toml")
