"""The ablation of the zero-shot method: its base is the method, and every factor acts."""

import pytest
import torch

from g2g_utils import bench
from g2g_utils.bench import zero_shot
from g2g_utils.methods.zero_shot_ldm import ZeroShotLDM
from tests.duck import Model, examples


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def pairs():
    return examples(torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def table(model, pairs):
    return zero_shot.study(model, pairs, 10, progress=False)


def test_the_base_is_the_method(table, model, pairs):
    own = table[table["choice"] == zero_shot.AS_PUBLISHED].reset_index(drop=True)
    asked = ZeroShotLDM(name="zero-shot", model=model, timesteps=10)
    for column, values in bench.score(asked, pairs, progress=False).items():
        if column in ("cnr", "auc_roc", "threshold_iou", "iou", "specificity"):
            assert own[column].tolist() == pytest.approx(values.tolist(), abs=1e-4)


def test_every_choice_differs_in_one_factor_and_is_scored(table, model):
    made = zero_shot.choices(model, 10)
    base = made.pop(zero_shot.AS_PUBLISHED)
    for choice in made.values():
        changed = [n for n in vars(base) if n != "factor" and vars(base)[n] != vars(choice)[n]]
        assert len(changed) == 1
    assert set(table["choice"]) == {zero_shot.AS_PUBLISHED, *made, "input: inversion P",
                                    "input: noising"}  # fmt: skip
    assert table.groupby("choice")["cnr"].count().eq(3).all()
    base_rows = table[table["choice"] == zero_shot.AS_PUBLISHED]["cnr"].to_numpy()
    for name, part in table.groupby("choice"):
        if name not in (zero_shot.AS_PUBLISHED, "content words alone"):
            assert abs(part["cnr"].to_numpy() - base_rows).max() > 1e-6, name


def test_differences_are_paired(table):
    gaps = zero_shot.compared(table, ["cnr"], 50)
    assert zero_shot.AS_PUBLISHED not in gaps
    means = table.groupby("choice")["cnr"].mean()
    for name, gap in gaps.items():
        expected = means[name] - means[zero_shot.AS_PUBLISHED]
        assert gap["cnr"].value == pytest.approx(expected, abs=1e-9)
