"""Places of a profile."""

import pytest

from g2g_utils import config
from g2g_utils.runs import places


@pytest.mark.parametrize("name", ["a{b}c", "x}", "{"])
def test_a_build_folder_with_braces_is_one_line(monkeypatch, tmp_path, name):
    monkeypatch.setenv("G2G_BUILD", str(tmp_path / name))
    with pytest.raises(ValueError, match="braces in the path of the build folder"):
        places.build(config.load("smoke"))
