"""Networks written as NIR and read back: on a hundred inputs every neuron fires when it did."""

import pytest
import torch
from nir_networks import STEPS, assert_same, images, network, neurons, nir, spikes
from torch import nn

from stalwart.convert import convert
from stalwart.interchange import read_nir, run_nir, write_nir
from stalwart.models.classifier import Classifier, Normalise
from stalwart.spiking import Direct, EventFrames, InTime, SpikingNetwork, make_encoder
from stalwart.spiking.recurrent import RecurrentLIF


def flat(*layers):
    return nn.Flatten(), nn.Linear(288, 24), *layers


UNFOLDED = {
    "linear": lambda: flat(neurons(), nn.Linear(24, 3)),
    "without-bias": lambda: (nn.Flatten(), nn.Linear(288, 24, bias=False), neurons(), nn.Linear(24, 3, bias=False)),
    "conv2d": lambda: (
        nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2),
        neurons(0.75),
        nn.Flatten(),
        nn.Linear(100, 3),
    ),
    "same": lambda: (nn.Conv2d(2, 3, 5, padding="same"), neurons(), nn.Conv2d(3, 2, 3, padding="valid"), neurons(0.5)),
    "lif": lambda: flat(neurons(0.9), nn.Linear(24, 12), neurons(0.3), nn.Linear(12, 3)),
    "leak-0": lambda: flat(neurons(0.0), nn.Linear(24, 3)),
    "leaks": lambda: flat(neurons(shape=(24,), leak=0.9), nn.Linear(24, 3)),
    "neurons-last": lambda: flat(neurons(0.8)),
    "recurrent": lambda: flat(InTime(RecurrentLIF(24, 12, 0.8, 0.3, "hard"), STEPS), nn.Linear(12, 3)),
    "recurrent-leak-1": lambda: (
        nn.Flatten(),
        InTime(RecurrentLIF(288, 12, 1.0, 0.3, "hard"), STEPS),
        nn.Linear(12, 3),
    ),
}


@pytest.mark.parametrize("kind", UNFOLDED)
def test_layers_come_back_bit_by_bit(kind, tmp_path):
    ours, path, x = network(*UNFOLDED[kind]()), tmp_path / "net.nir", images()
    if kind == "leaks":
        ours.layers[2].neuron.fill(leak=torch.linspace(0, 1, 24), threshold=torch.linspace(0.2, 0.7, 24))
    assert write_nir(ours, x, path) < 1e-5
    assert_same(ours, read_nir(path), x, exact=True)


def test_conv1d_comes_back_bit_by_bit(tmp_path):
    x = images(shape=(3, 20))
    ours = network(nn.Conv1d(3, 4, 3, 2, 1), neurons(0.5), nn.Flatten(), nn.Linear(40, 3))
    write_nir(ours, x, tmp_path / "net.nir")
    assert_same(ours, read_nir(tmp_path / "net.nir"), x, exact=True)


FOLDED = {
    "avgpool": lambda: (nn.Conv2d(2, 4, 3), neurons(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(100, 3)),
    "avgpool-3": lambda: (nn.Conv2d(2, 4, 3), neurons(), nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 2, 3), neurons()),
    "avgpool-before-neurons": lambda: (
        nn.Conv2d(2, 4, 3),
        nn.AvgPool2d(2),
        neurons(0.5, 0.2),
        nn.Flatten(),
        nn.Linear(100, 3),
    ),
    "avgpool-first": lambda: (nn.AvgPool2d(2), nn.Conv2d(2, 4, 3), neurons(0.5, 0.2)),
    "avgpool-last": lambda: (nn.Conv2d(2, 4, 3), neurons(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "groups": lambda: (nn.Conv2d(2, 4, 3, groups=2), neurons(), nn.Conv2d(4, 4, 3, groups=4), neurons()),
    "dropout": lambda: flat(nn.Identity(), neurons(), nn.Dropout(0.5), nn.Linear(24, 3)),
    "batch-norm": lambda: (
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        neurons(),
        nn.Flatten(),
        nn.Linear(400, 5),
        nn.BatchNorm1d(5),
    ),
    "batch-norm-1d": lambda: flat(nn.BatchNorm1d(24), neurons(), nn.Linear(24, 3)),
}


@pytest.mark.parametrize("kind", FOLDED)
def test_what_is_folded_leaves_the_spikes_as_they_are(kind, tmp_path):
    ours, path, x = network(*FOLDED[kind]()), tmp_path / "net.nir", images()
    for layer in ours.layers:
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            size = len(layer.weight)
            layer.load_state_dict(
                {
                    "weight": torch.linspace(0.8, 1.5, size),
                    "bias": torch.linspace(0.3, 0.1, size),
                    "running_mean": torch.linspace(-0.1, 0.1, size),
                    "running_var": torch.linspace(0.5, 1.0, size),
                    "num_batches_tracked": torch.tensor(1),
                }
            )
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    assert write_nir(ours.train(), x, path) < 1e-5
    assert ours.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())
    kinds = {type(node).__name__ for node in nir.read(path).nodes.values()}
    assert kinds <= {"Input", "Output", "Conv2d", "Affine", "Linear", "SumPool2d", "Flatten", "IF", "LIF", "Scale"}
    assert ("SumPool2d" in kinds) == kind.startswith("avgpool")
    assert_same(ours.eval(), read_nir(path), x)


@pytest.mark.parametrize("channels", [False, True])
def test_what_spikes_are_worth_and_constant_currents_go_into_weights(channels, tmp_path):
    extras = {"height": (4, 1, 1), "bias": (4, 1, 1)} if channels else {"height": (), "bias": ()}
    ours = network(
        nn.Conv2d(2, 4, 3), neurons(extras=extras), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, bias=False),
        neurons(0.8, extras=extras), nn.Flatten(), nn.Linear(36, 3),
    )  # fmt: skip
    for at in (1, 4):
        worth = torch.linspace(0.4, 1.7, 4).reshape(4, 1, 1) if channels else torch.tensor(0.6)
        ours.layers[at].neuron.fill(height=worth, bias=worth / 8)
    x = images()
    assert write_nir(ours, x, tmp_path / "net.nir") < 1e-5
    back = read_nir(tmp_path / "net.nir")
    assert_same(ours, back, x)
    assert all(layer.neuron.height is None for layer in back.modules() if isinstance(layer, InTime))


def test_what_no_weights_can_hold_is_a_scale(tmp_path):
    ours = network(*flat(neurons(extras={"height": (24,)})))
    ours.layers[2].neuron.fill(height=torch.linspace(0.5, 2, 24))
    write_nir(ours, images(), tmp_path / "net.nir")
    scale = nir.read(tmp_path / "net.nir").nodes["output.scale"]
    assert scale.scale == pytest.approx(torch.linspace(0.5, 2, 24).numpy())
    back = read_nir(tmp_path / "net.nir")
    assert_same(ours, back, images(), exact=True)
    write_nir(back, images(), tmp_path / "again.nir")
    assert_same(ours, read_nir(tmp_path / "again.nir"), images(), exact=True)


def test_a_leak_of_1_is_an_integrate_and_fire_node(tmp_path):
    write_nir(network(*flat(neurons(1.0), nn.Linear(24, 3))), images(), tmp_path / "net.nir")
    nodes = nir.read(tmp_path / "net.nir").nodes
    assert list(nodes) == ["input", "layers.0", "layers.1", "layers.2", "layers.3", "output"]
    node = nodes["layers.2"]
    assert isinstance(node, nir.IF)
    assert node.r.tolist() == [1e4] * 24
    assert node.v_reset.tolist() == [0.0] * 24
    # A reader that fires above the threshold in float32 fires where v >= 0.4.
    assert node.v_threshold.dtype == "float32"
    assert (node.v_threshold < torch.tensor(0.4).numpy()).all()
    assert node.v_threshold == pytest.approx(0.4)
    assert node.metadata["reset"] == "hard"


@pytest.mark.parametrize("dt", [1e-4, 1, 0.3])
def test_a_leak_is_a_time_constant_in_steps(dt, tmp_path):
    ours = network(*flat(neurons(0.75), nn.Linear(24, 3)))
    write_nir(ours, images(), tmp_path / "net.nir", dt=dt)
    node = nir.read(tmp_path / "net.nir").nodes["layers.2"]
    assert isinstance(node, nir.LIF)
    assert node.tau == pytest.approx(4 * dt)
    assert node.r.tolist() == [4.0] * 24
    assert_same(ours, read_nir(tmp_path / "net.nir"), images(), exact=True)


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_soft_reset_is_left_to_metadata_only_if_asked(recurrent, tmp_path):
    layer = InTime(RecurrentLIF(24, 12, 0.8, 0.3, "soft"), STEPS) if recurrent else neurons(0.7, reset="soft")
    ours, path = network(*flat(layer, nn.Linear(12 if recurrent else 24, 3))), tmp_path / "net.nir"
    with pytest.raises(ValueError, match=r"'layers.2' subtracts its threshold .* allow_lossy=\('soft-reset',\)"):
        write_nir(ours, images(), path)
    assert not path.exists()
    write_nir(ours, images(), path, allow_lossy=("soft-reset",))
    assert_same(ours, read_nir(path), images(), exact=True)


def test_first_membranes_are_left_to_metadata_only_if_asked(tmp_path):
    ours, path = network(*flat(neurons(0.7, extras={"initial": (24,)}), nn.Linear(24, 3))), tmp_path / "net.nir"
    write_nir(ours, images(), path)  # they are 0
    ours.layers[2].neuron.fill(initial=torch.linspace(-0.2, 0.2, 24))
    with pytest.raises(ValueError, match="'layers.2' starts from membranes other than 0"):
        write_nir(ours, images(), path)
    write_nir(ours, images(), path, allow_lossy=("initial",))
    assert_same(ours, read_nir(path), images(), exact=True)


def test_steps_wait_and_encoder_come_back(tmp_path):
    options = {"name": "poisson", "signed": False, "rate": 0.5, "bits": 3}
    ours = network(*flat(neurons(), nn.Linear(24, 3)), encoder=make_encoder(options, STEPS))
    ours.wait = 2
    write_nir(ours, images(rows=4), tmp_path / "net.nir")
    back = read_nir(tmp_path / "net.nir")
    assert (back.steps, back.wait) == (STEPS, 2)
    inner = back.encoder.encoder
    assert (back.encoder.bits, inner.signed, inner.rate, inner.steps) == (3, False, 0.5, STEPS)
    longer = read_nir(tmp_path / "net.nir", steps=9)
    assert (longer.steps, longer.encoder.encoder.steps, longer.layers[2].steps) == (9, 9, 9)
    with pytest.raises(ValueError, match="waits for 2 of its steps"):
        read_nir(tmp_path / "net.nir", steps=2)


def test_frames_of_events_enter_one_a_step(tmp_path):
    ours = network(*flat(neurons(), nn.Linear(24, 3)), encoder=EventFrames(STEPS))
    x = images(shape=(STEPS, 2, 12, 12), rows=20)
    write_nir(ours, x, tmp_path / "net.nir")
    assert nir.read(tmp_path / "net.nir").nodes["input"].input_type["input"].tolist() == [2, 12, 12]
    assert_same(ours, read_nir(tmp_path / "net.nir"), x, exact=True)


def test_a_whole_classifier_is_written(tmp_path):
    backbone = network(nn.Conv2d(2, 4, 3), neurons(0.5), nn.Flatten())
    model = Classifier(Normalise((0.5, 0.4), (0.3, 0.2)), backbone, nn.Linear(400, 3)).eval()
    assert write_nir(model, images(), tmp_path / "net.nir") < 1e-5
    back = read_nir(tmp_path / "net.nir")
    assert isinstance(back.layers[-1], nn.Linear)
    assert_same(model, back, images())


def test_a_padded_first_convolution_takes_means_of_0_only(tmp_path):
    def model(mean):
        inside = nn.Sequential(Normalise(mean, (0.3, 0.2)), nn.Conv2d(2, 4, 3, padding=1), neurons(0.5))
        return SpikingNetwork(Direct(STEPS), inside, STEPS)

    with pytest.raises(ValueError, match="means other than 0 stands before 'layers.1'"):
        write_nir(model((0.5, 0.4)), images(), tmp_path / "net.nir")
    assert write_nir(model((0.0, 0.0)), images(), tmp_path / "net.nir") < 1e-5


def test_a_converted_network_is_written(tmp_path):
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(100, 16), nn.ReLU(),
        nn.Linear(16, 3),
    )  # fmt: skip
    x = images()
    snn = convert(ann, x, steps=STEPS, method="rate", reset="hard", start=0.0, per="channel")
    assert write_nir(snn, x, tmp_path / "net.nir") < 1e-5
    assert_same(snn, read_nir(tmp_path / "net.nir"), x)
    default = convert(ann, x, steps=STEPS)
    write_nir(default, x, tmp_path / "net.nir", allow_lossy=("soft-reset", "initial"))
    assert_same(default, read_nir(tmp_path / "net.nir"), x)


def test_numpy_runs_the_file_freely_to_the_same_counts(tmp_path):
    layers = (nn.Conv2d(2, 4, 3), neurons(0.75), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(100, 12))
    ours = network(*layers, InTime(RecurrentLIF(12, 8, 0.9, 0.3, "hard"), STEPS), nn.Linear(8, 3))
    x = images()
    write_nir(ours, x, tmp_path / "net.nir")
    ran = run_nir(nir.read(tmp_path / "net.nir"), x.expand(STEPS, *x.shape).numpy())
    found, y = spikes(ours, x)
    assert list(ran.spikes) == ["layers.1", "layers.5/lif"]
    for one, other in zip(found, ran.spikes.values(), strict=True):
        assert (one.numpy() == (other != 0)).all()
    torch.testing.assert_close(torch.from_numpy(ran.output), y)
