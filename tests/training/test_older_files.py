"""Files that version 0.1.0 wrote before the package moved into rooms still load, and its trainings go on."""

import shutil
from pathlib import Path

import torch

import pyro_vae as pv

FIXTURES = Path(__file__).parent / "fixtures"


def data():
    return torch.bernoulli(torch.full((40, 6), 0.3), generator=torch.Generator().manual_seed(0))


def small_vae():
    torch.manual_seed(0)
    return pv.presets.mlp_vae(data_shape=(6,), latent_dim=2, hidden=(4,))


def test_a_model_loads_and_is_the_one_that_was_saved():
    vae = pv.load(FIXTURES / "model.safetensors")
    again = small_vae()
    pv.fit(again, data(), num_epochs=2, batch_size=20, progress=False)
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name])


def test_an_interrupted_training_goes_on(tmp_path):
    class Data:  # as it was then: data that no fingerprint tells from others
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return data()[index]

    shutil.copy(FIXTURES / "training.safetensors", tmp_path)
    run = {"num_epochs": 3, "batch_size": 20, "learning_rate": 1e-2, "schedule": "cosine", "seed": 3, "progress": False}
    resumed, whole = small_vae(), small_vae()
    history = pv.fit(resumed, Data(), checkpoint=tmp_path / "training.safetensors", **run)
    expected = pv.fit(whole, Data(), **run)
    assert [epoch.step for epoch in history.epochs] == [2, 4, 6]
    for name, value in resumed.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name])
    assert abs(history.epochs[0].train_bound - expected.epochs[0].train_bound) < 1e-4
