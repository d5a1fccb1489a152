"""The training loop: exact resume, damaged checkpoints, logs, SIGTERM."""

import json
import os
import signal
import warnings

import pytest
import torch
from torch import nn

from g2g_utils.training import fit

STEPS = 8


def train(folder, stop_at=None, accumulate=1, signal_at=None):
    """A tiny regression with EMA; `stop_at` raises in the loss, as a crash would."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)

    def loss(step, modules, accelerator):
        if step == stop_at:
            raise KeyboardInterrupt
        if step == signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.randn((4, 3), generator=fit.seeded(5, step))
        return (modules["m"](x) - x[:, :2]).square().mean()

    options = fit.Options(
        STEPS, warmup=2, ema=0.8, checkpoint_every=3, log_every=2, accumulate=accumulate
    )
    groups = [{"params": list(model.parameters()), "lr": 1e-2}]
    ema = fit.fit("test", {"m": model}, groups, loss, folder, options, averaged="m")
    return model, ema


def weights(model, ema):
    return [p.detach().clone() for p in model.parameters()] + list(ema.shadow_params)


def test_a_resumed_run_equals_the_uninterrupted_one_bit_by_bit(tmp_path):
    whole = weights(*train(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", stop_at=5)
    resumed = weights(*train(tmp_path / "killed"))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    logs = [fit.read_log(tmp_path / name) for name in ("whole", "killed")]
    assert logs[0] == logs[1] and [row["step"] for row in logs[0]] == [2, 4, 6, 8]


def test_resuming_really_continues_and_does_not_start_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop_at=5)
    train(tmp_path, stop_at=2)  # step 2 lies before the checkpoint at 3: never reached


def test_a_damaged_checkpoint_is_noticed_and_training_starts_again(tmp_path):
    whole = weights(*train(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", stop_at=5)
    state = tmp_path / "killed" / "checkpoint.pt"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"checkpoint\.pt: damaged; training starts again"):
        again = weights(*train(tmp_path / "killed"))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_no_changed_byte_of_a_checkpoint_goes_unnoticed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop_at=5)
    path = tmp_path / "checkpoint.pt"
    content, sound = path.read_bytes(), str(fit.read_checkpoint(tmp_path))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for place in range(0, len(content), 7):
            spoilt = bytearray(content)
            spoilt[place] ^= 255
            path.write_bytes(spoilt)
            state = fit.read_checkpoint(tmp_path)
            assert state is None or str(state) == sound, place  # padding has no content
    assert len(said) > len(content) / 7 / 4


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    whole = weights(*train(tmp_path / "whole"))
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        train(folder, stop_at=5)
    (folder / ".checkpoint.pt.other-machine-77.tmp").write_bytes(b"torn")
    assert fit.read_checkpoint(folder)["step"] == 3
    again = weights(*train(folder))
    assert {p.name for p in folder.iterdir() if "checkpoint" in p.name} == {"checkpoint.pt"}
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_sigterm_writes_a_checkpoint_and_stops_with_143(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, signal_at=4)
    assert stopped.value.code == 143
    assert fit.read_checkpoint(tmp_path)["step"] == 5


def test_accumulation_takes_that_many_micro_steps(tmp_path):
    seen = []
    model = nn.Linear(1, 1)

    def loss(step, modules, accelerator):
        seen.append(step)
        return modules["m"](torch.ones(1, 1)).square().mean()

    options = fit.Options(3, warmup=1, accumulate=2, tensorboard=False)
    fit.fit("test", {"m": model}, [{"params": model.parameters()}], loss, tmp_path, options)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_a_diverging_loss_is_an_error_that_says_what_to_do(tmp_path):
    model = nn.Linear(1, 1)

    def loss(step, modules, accelerator):
        return modules["m"](torch.ones(1, 1)).mean() * float("nan")

    with pytest.raises(FloatingPointError, match="learning rate"):
        groups = [{"params": model.parameters()}]
        fit.fit("test", {"m": model}, groups, loss, tmp_path, fit.Options(2, tensorboard=False))


def test_torn_log_lines_are_dropped_on_resume(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop_at=5)
    with open(tmp_path / "log.jsonl", "a") as stream:
        stream.write('{"step": 4, "lo')
    train(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
