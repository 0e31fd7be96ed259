"""Products of half in 16 bits: their numbers, when weights are rounded, and what stays float32."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from launch import together
from programs import Body, infer, make_options

import poptorch
from poptorch.device import half_products, half_units, native, policy
from poptorch.engine.as_one.number import VARIABLE
from poptorch.engine.numerics import RECORD

BFLOAT16 = torch.bfloat16
T, C, H, V = 8, 32, 4, 1536
# Half a unit in the last place, the largest error of rounding: 8 bits of mantissa, or 11.
EPSILON = {"bfloat16": 2.0**-9, "float16": 2.0**-12}


@pytest.fixture(params=["bfloat16", "float16"])
def word(request, monkeypatch):
    monkeypatch.setenv(policy.HALF_VARIABLE, request.param)
    return request.param


@pytest.fixture
def bfloat16(monkeypatch):
    monkeypatch.setenv(policy.HALF_VARIABLE, "bfloat16")


class Transformer(torch.nn.Module):
    """Two layers in GPT-2's order, attention by plain operations: (B, T) ids, (B, T) labels -> logits' argmax, loss."""

    def __init__(self, dropout: float = 0.0, fused: bool = True):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(V, C)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {
                    "ln_1": torch.nn.LayerNorm(C), "qkv": torch.nn.Linear(C, 3 * C), "out": torch.nn.Linear(C, C),
                    "ln_2": torch.nn.LayerNorm(C), "up": torch.nn.Linear(C, 4 * C), "down": torch.nn.Linear(4 * C, C),
                }
            )
            for _ in range(2)
        )  # fmt: skip
        self.norm, self.dropout, self.fused = torch.nn.LayerNorm(C), dropout, fused

    def forward(self, ids, labels):
        x = self.embed(ids)
        for layer in self.layers:
            q, k, v = (p.view(*p.shape[:2], H, -1).transpose(1, 2) for p in layer["qkv"](layer["ln_1"](x)).split(C, 2))
            scores = torch.where(torch.ones(T, T, dtype=torch.bool).tril(), q @ k.transpose(-1, -2) * 0.35, -1e4)
            context = F.dropout(torch.softmax(scores, -1), self.dropout) @ v
            x = layer["out"](context.transpose(1, 2).reshape(x.shape)) + x
            x = layer["down"](F.gelu(layer["up"](layer["ln_2"](x)))) + x
        logits = F.linear(self.norm(x), self.embed.weight)
        if not self.fused:
            logits = logits * 1.0
        logits = logits.float().view(-1, V)
        return logits.argmax(-1), poptorch.identity_loss(F.cross_entropy(logits, labels.view(-1)), "none")


def batch(samples: int = 3, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, V, (samples, T), generator=generator) for _ in range(2))


def gradients(model, scaling: float = 1.0, options=None):
    """The program's loss and gradients for a batch, by name, float64."""
    options = options or make_options()
    for name, _ in model.named_parameters():
        options.anchorTensor(name, f"Gradient___{name}")
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.0, loss_scaling=scaling)
    executor = poptorch.trainingModel(model, options, optimizer)
    _, loss = executor(*batch())
    return loss.item(), {name: executor.getAnchoredTensor(name).double() for name, _ in model.named_parameters()}


def reference(model, autocast: bool = False):
    """Loss and gradients of the same weights by torch alone, in float64 or by its autocast."""
    model = copy.deepcopy(model).to(torch.float32 if autocast else torch.float64)
    with torch.autocast("cpu", BFLOAT16, enabled=autocast):
        _, loss = model(*batch())
    loss.backward()
    return loss.item(), {name: parameter.grad.double() for name, parameter in model.named_parameters()}


def errors(found, exact):
    """||found - exact|| / ||exact|| of each tensor."""
    return {name: ((found[name] - exact[name]).norm() / exact[name].norm()).item() for name in exact}


# -- numbers -----------------------------------------------------------------------------------------------------------

PRODUCTS = {  # of (6, 16) and (16, 5)
    "linear": lambda a, b: F.linear(a, b.t()),
    "linear with bias": lambda a, b: F.linear(a, b.t(), b[0]),
    "matmul": torch.matmul,
    "mm": torch.mm,
    "addmm": lambda a, b: torch.addmm(b[0], a, b),
    "addmm of a matrix": lambda a, b: torch.addmm(a[:, :5], a, b, beta=0.5, alpha=2.0),
    "bmm": lambda a, b: torch.bmm(a.expand(2, 6, 16), b.expand(2, 16, 5)),
    "batches of one matrix": lambda a, b: torch.matmul(a.view(2, 3, 16), b),
    "one matrix for batches": lambda a, b: torch.matmul(a, b.expand(2, 16, 5)),
    "a vector on the left": lambda a, b: torch.matmul(a[0], b),
    "a vector on the right": lambda a, b: torch.matmul(a, b[:, 0]),
    "two vectors": lambda a, b: torch.matmul(a[0], b[:, 0]),
    "in steps": lambda a, b: poptorch.serializedMatMul(a, b, poptorch.MatMulSerializationMode.ReducingDim, 4),
}


@pytest.mark.parametrize("case", PRODUCTS)
@pytest.mark.parametrize("reader", ["float32", "16 bits"])
def test_products_are_those_of_rounded_operands(case, reader, word):
    """Operands that the type holds exactly give what float64 gives, but for the rounding of a 16-bit result."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-8, 9, shape, generator=generator).half() / 4 for shape in ((6, 16), (16, 5)))
    weight = torch.nn.Parameter(b)

    def forward(m, x):
        out = PRODUCTS[case](x, m.w)
        out = torch.relu(out + 0.0 if reader == "float32" else out)
        return poptorch.identity_loss(out.float().square().sum(), "sum")

    model = Body(forward, w=weight)
    exact = weight.detach().double().requires_grad_()
    wanted = torch.relu(PRODUCTS[case](a.double(), exact) if case != "in steps" else a.double() @ exact).square().sum()
    wanted.backward()
    options = make_options()
    options.anchorTensor("gradient", "Gradient___w")
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.0))
    torch.testing.assert_close(executor(a).double(), wanted.detach(), rtol=4 * EPSILON[word], atol=0)
    found = executor.getAnchoredTensor("gradient").double()
    assert ((found - exact.grad).norm() / exact.grad.norm()).item() < 2 * EPSILON[word]


@pytest.mark.parametrize("fused", [True, False])
def test_gradients_are_within_rounding_of_float64(fused, bfloat16):
    model = Transformer(fused=fused).half()
    (_, exact), (_, cast) = reference(model), reference(model, autocast=True)
    loss, found = gradients(model)
    assert loss == pytest.approx(reference(model)[0], rel=1e-3)
    ours, theirs = errors(found, exact), errors(cast, exact)
    worst = max(ours, key=lambda name: ours[name] / theirs[name])
    assert ours[worst] < 3 * theirs[worst], (worst, ours[worst], theirs[worst])
    assert max(ours.values()) < 10 * EPSILON["bfloat16"]


def test_float16_has_more_bits(monkeypatch):
    model = Transformer().half()
    exact = reference(model)[1]
    found = {}
    for name in ("bfloat16", "float16", "float32"):
        monkeypatch.setenv(policy.HALF_VARIABLE, name)
        found[name] = sum(errors(gradients(Transformer().half(), scaling=64.0)[1], exact).values())
    assert found["float32"] < found["float16"] / 20 < found["bfloat16"] / 60


def test_units_and_their_emulation_agree(bfloat16, monkeypatch):
    """Where there are none torch multiplies bfloat16 slowly, and the products that are `wide` in float32."""
    found = {}
    for units in (True, False):
        monkeypatch.setattr(policy, "products_of", lambda name, units=units: policy.Products(BFLOAT16, units))
        found[units] = gradients(Transformer().half())
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-3)
    assert max(errors(found[True][1], found[False][1]).values()) < 4 * EPSILON["bfloat16"]


def test_dropout_in_attention(bfloat16):
    """The same random numbers as in float32: only rounding differs."""
    options = [make_options().randomSeed(3) for _ in range(2)]
    found = gradients(Transformer(0.3).half(), options=options[0])
    again = gradients(Transformer(0.3).half(), options=options[1])
    assert found[0] == again[0] and all(torch.equal(found[1][name], again[1][name]) for name in found[1])


# -- what becomes of types ---------------------------------------------------------------------------------------------


def nodes(executor):
    return [node for stage in executor.program.stages for s in stage.segments for node in s.module.graph.nodes]


def compiled(model, word, monkeypatch, training=True):
    monkeypatch.setenv(policy.HALF_VARIABLE, word)
    make = poptorch.trainingModel if training else poptorch.inferenceModel
    executor = make(model)
    executor(*batch())
    return executor


def test_programs_in_float32_are_what_they_were(monkeypatch):
    found = {}
    for word in ("bfloat16", "float32"):
        monkeypatch.setenv(policy.HALF_VARIABLE, word)
        monkeypatch.setattr(policy, "type_of_products", lambda: pytest.fail("asked"))
        model = Transformer()
        optimizer = poptorch.optim.AdamW(model.parameters(), lr=1e-3)
        executor = poptorch.trainingModel(model, make_options(), optimizer)
        found[word] = [executor(*batch()) for _ in range(2)], copy.deepcopy(model.state_dict())
        targets = {node.target for node in nodes(executor)}
        assert half_products.linear not in targets and RECORD not in optimizer.state_dict()
    assert all(
        torch.equal(a, b)
        for x, y in zip(*(f[0] for f in found.values()), strict=True)
        for a, b in zip(x, y, strict=True)
    )
    first, second = (states for _, states in found.values())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_product_that_the_program_has_in_float32_stays_so(bfloat16):
    x = torch.tensor([[1.0 + 2.0**-12]])
    assert infer(lambda m, x: x.float() @ torch.ones(1, 1), x.half()).item() == x.half().item()
    assert infer(lambda m, x: (x.half() @ torch.ones(1, 1).half()).float(), x).item() == 1.0


def test_activations_that_are_kept_have_16_bits(bfloat16):
    """Behind the product: GELU's argument. In front of it: the normalised values."""
    kept = []

    def pack(tensor):
        kept.append((tuple(tensor.shape), tensor.dtype))
        return tensor

    model = Transformer().half()
    executor = poptorch.trainingModel(model, make_options(), torch.optim.SGD(model.parameters(), lr=0.0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        executor(*batch())
    assert ((3, T, 4 * C), torch.float32) not in kept and ((3, T, 4 * C), BFLOAT16) in kept
    for shape in ((C, 3 * C), (3 * C, C), (4 * C, C), (C, 4 * C)):  # weights as products keep them
        assert (shape, torch.float32) not in kept


def test_layer_norm_softmax_and_loss_read_float32(monkeypatch):
    executor = compiled(Transformer(fused=False).half(), "bfloat16", monkeypatch)
    read = {
        str(node.target): source.meta["val"].dtype
        for node in nodes(executor)
        if any(word in str(node.target) for word in ("layer_norm", "softmax", "cross_entropy", "aten.add."))
        for source in node.all_input_nodes
        if "val" in source.meta
        if source.meta["val"].is_floating_point()
    }
    assert {"aten.cross_entropy_loss.default", "aten.add.Tensor"} <= set(read)
    assert any("layer_norm" in name for name in read)  # torch's, or the function around it
    assert set(read.values()) == {torch.float32}


def test_what_is_written_in_place_stays_float32(bfloat16):
    def forward(m, x):
        y = F.linear(x, m.w)
        z = y.view(-1)
        y.add_(1.0)
        return z * 1.0, torch.relu(F.linear(y, m.w))

    w = torch.nn.Parameter(torch.eye(4).half())
    z, out = infer(forward, torch.ones(2, 4).half(), w=w)
    assert z.tolist() == [2.0] * 8 and out.tolist() == [[2.0] * 4] * 2


def test_outputs_and_anchors_have_the_programs_types(bfloat16):
    def forward(m, x):
        y = F.linear(x, m.w)
        return y, torch.relu(y)

    found = infer(forward, torch.ones(2, 4).half(), w=torch.nn.Parameter(torch.eye(4).half()))
    assert [out.dtype for out in found] == [torch.float16] * 2


def test_a_loop_multiplies_in_16_bits_too(bfloat16):
    def forward(m, x):
        (x,) = poptorch.for_loop(3, lambda y: [torch.relu(F.linear(y, m.w))], [x])
        return x

    # 1 + 2^-9 is 1 in bfloat16: three times nothing changes
    w = torch.nn.Parameter(torch.full((1, 1), 1.0 + 2.0**-9).half())
    assert infer(forward, torch.ones(1, 1).half(), w=w).item() == 1.0


# -- weights are rounded once an update --------------------------------------------------------------------------------


@pytest.fixture
def roundings(monkeypatch):
    """Shapes of the weights that were rounded."""
    made, rounded = [], half_products._rounded

    def counted(weight, *arguments, **options):
        made.append(tuple(weight.shape))
        return rounded(weight, *arguments, **options)

    monkeypatch.setattr(half_products, "_rounded", counted)
    return made


def test_weights_are_rounded_once_an_update(bfloat16, roundings):
    model = Body(
        lambda m, x: poptorch.identity_loss(F.linear(torch.relu(F.linear(x, m.w)), m.w, m.b).float().sum(), "sum"),
        w=torch.nn.Parameter(torch.eye(4).half()),
        b=torch.nn.Parameter(torch.ones(4).half()),
    )
    executor = poptorch.trainingModel(model, make_options(2, 3), torch.optim.SGD(model.parameters(), lr=0.1))
    executor(torch.ones(6, 4).half())
    assert roundings.count((4,)) == 2  # two updates of three micro-batches; the weight is read as two views at most
    first = roundings.count((4, 4))
    assert first in (2, 4)
    executor(torch.ones(6, 4).half())
    assert roundings.count((4,)) == 4 and roundings.count((4, 4)) == 2 * first


def kept(executor):
    """The kept copies of each of the device's parameters, and the parameter, by name."""
    parameters = executor._session._state.parameters
    return {name: (list(half_products._WEIGHTS[weight].values()), weight) for name, weight in parameters.items()}


@pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")
@pytest.mark.parametrize("asked", ["bfloat16", "float16"])
def test_adam_rounds_the_weights_that_it_updates(asked, roundings, monkeypatch):
    """What the kernel leaves is what rounding anew would give, and current: no product rounds a weight again."""
    monkeypatch.setenv(policy.HALF_VARIABLE, asked)
    model = Transformer().half()
    executor = poptorch.trainingModel(model, make_options(1, 3), adam(model))
    executor(*batch())
    made = len(roundings)
    roundings.clear()
    versions = {name: weight._version for name, (_, weight) in kept(executor).items()}
    losses = [executor(*batch(seed=call))[1].item() for call in range(2)]
    assert not roundings
    copies = 0
    for name, (entries, weight) in kept(executor).items():
        assert weight._version > versions[name]
        for entry in entries:
            current = entry.copy.flatten() if entry.copy.is_contiguous() else entry.copy.t().flatten()
            assert entry.version == weight._version and torch.equal(current, weight.flatten().to(entry.copy.dtype))
            copies += 1
    assert copies == made >= 16  # weight and bias of each layer's four
    monkeypatch.setattr("poptorch.engine.updating.optimizer.whole_copy", lambda weight: None)
    model = Transformer().half()
    executor = poptorch.trainingModel(model, make_options(1, 3), adam(model))
    executor(*batch())
    assert [executor(*batch(seed=call))[1].item() for call in range(2)] == losses and len(roundings) == 3 * made


@pytest.mark.parametrize("training", [True, False])
def test_weights_are_rounded_before_the_first_pass(training, bfloat16, roundings, monkeypatch):
    """As the products read them, transposed or not: none of the first call rounds one of the two matrices."""
    monkeypatch.setattr(policy, "products_of", lambda name: policy.Products(BFLOAT16, native=True))
    model = Body(
        lambda m, x: poptorch.identity_loss(torch.relu(F.linear(x, m.w) @ m.v).float().sum(), "sum"),
        w=torch.nn.Parameter(torch.randn(256, 64).half()),
        v=torch.nn.Parameter(torch.randn(256, 64).half()),
        other=torch.nn.Parameter(torch.randn(256, 64).half()),
    )
    make = partial(poptorch.trainingModel, optimizer=adam(model)) if training else poptorch.inferenceModel
    executor = make(model)
    x = torch.randn(2, 64).half()
    executor.compile(x)
    before = list(roundings)
    executor(x)
    assert sorted(before) == [(64, 256), (256, 64)] and roundings == before


@pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")
def test_a_part_of_a_weight_is_rounded_by_its_product(bfloat16, roundings):
    model = Body(
        lambda m, x: poptorch.identity_loss(F.linear(F.linear(x, m.w[:2]), m.w[:, :2]).float().sum(), "sum"),
        w=torch.nn.Parameter(torch.eye(4).half()),
    )
    executor = poptorch.trainingModel(model, make_options(), adam(model))
    for call in range(3):
        executor(torch.ones(1, 4).half())
        assert len(roundings) == 2 * (call + 1)


def test_which_copy_is_one_of_the_whole_weight():
    weight = torch.randn(3, 4).requires_grad_()
    assert half_products.whole_copy(weight) is None
    half_products.keep_rounded(weight)
    for part in (weight[:2], weight[:, :3], weight[1:], weight[0].expand(3, 4), weight.view(-1)[1:]):
        half_products.rounded_weight(part, BFLOAT16)
    assert half_products.whole_copy(weight) is None
    copy = half_products.rounded_weight(weight.t(), BFLOAT16)
    entry = half_products.whole_copy(weight)
    assert entry.copy is copy and entry.version == weight._version
    assert copy.t().is_contiguous() and torch.equal(copy.t(), weight.to(BFLOAT16))


def test_weights_that_the_host_changes_are_rounded_again(bfloat16, roundings):
    model = Body(lambda m, x: F.linear(x, m.w).relu(), w=torch.nn.Parameter(torch.ones(2, 2).half()))
    executor = poptorch.inferenceModel(model)
    x = torch.ones(1, 2).half()
    assert executor(x).tolist() == executor(x).tolist() == [[2.0, 2.0]]
    assert len(roundings) == 1
    with torch.no_grad():
        model.w.mul_(2)
    executor.copyWeightsToDevice()
    assert executor(x).tolist() == [[4.0, 4.0]] and len(roundings) == 2


def test_an_inference_program_follows_the_training_one(bfloat16):
    model = Body(
        lambda m, x: (F.linear(x, m.w).relu(), poptorch.identity_loss(F.linear(x, m.w).float().sum(), "sum")),
        w=torch.nn.Parameter(torch.ones(2, 2).half()),
    )
    x = torch.ones(1, 2).half()
    training = poptorch.trainingModel(model, make_options(), torch.optim.SGD(model.parameters(), lr=0.5))
    inference = poptorch.inferenceModel(model)
    assert inference(x)[0].tolist() == [[2.0, 2.0]]
    training(x)
    assert inference(x)[0].tolist() == [[1.0, 1.0]]


# -- training ----------------------------------------------------------------------------------------------------------


def adam(model, scaling=16.0):
    halves = {"accum_type": torch.float16, "first_order_momentum_accum_type": torch.float16}
    return poptorch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, loss_scaling=scaling, **halves)


def trainer(model, optimizer, recompute=False):
    options = make_options(1, 3).randomSeed(7)
    if recompute:
        for layer in model.layers:
            layer["down"].register_forward_hook(lambda m, args, out: poptorch.recomputationCheckpoint(out))
    return poptorch.trainingModel(model, options, optimizer)


def test_a_resumed_run_continues_to_the_bit(bfloat16, monkeypatch):
    model = Transformer(0.1).half()
    optimizer = adam(model)
    executor = trainer(model, optimizer)
    executor(*batch())
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    random = executor.rng_state
    assert state[RECORD]["products of half"] == "bfloat16"

    monkeypatch.delenv(policy.HALF_VARIABLE)  # this machine would choose otherwise
    monkeypatch.setattr(policy, "type_of_products", lambda: "float32")
    other = Transformer(0.1).half()
    other.load_state_dict(weights)
    resumed_optimizer = adam(other)
    resumed_optimizer.load_state_dict(state)
    resumed = trainer(other, resumed_optimizer)
    resumed.compile(*batch())
    resumed.rng_state = random
    for call in range(3):
        expected, found = executor(*batch(seed=call)), resumed(*batch(seed=call))
        assert torch.equal(expected[1], found[1]), call
    first, second = optimizer.state_dict()["ipu_master_weights"], resumed_optimizer.state_dict()["ipu_master_weights"]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_recomputing_changes_nothing(bfloat16):
    found = []
    for recompute in (False, True):
        model = Transformer(0.1).half()
        executor = trainer(model, adam(model), recompute)
        found.append([executor(*batch(seed=call))[1].item() for call in range(3)])
    assert found[0] == found[1]


@pytest.mark.parametrize("factor", [2.0**-6, 2.0**6])
def test_the_loss_scaling_cancels(factor, bfloat16):
    """Powers of two change no bit of a bfloat16 product."""
    found = []
    for scaling in (16.0, 16.0 * factor):
        model = Transformer().half()
        optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, loss_scaling=scaling, accum_type=torch.float32)
        executor = poptorch.trainingModel(model, make_options(1, 3), optimizer)
        executor(*batch())
        found.append(optimizer.state_dict()["ipu_master_weights"])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_automatic_loss_scaling_rises_as_in_float32(monkeypatch):
    found = {}
    for word in ("float32", "bfloat16"):
        monkeypatch.setenv(policy.HALF_VARIABLE, word)
        model = Transformer().half()
        options = make_options(1, 3)
        options.Training.setAutomaticLossScaling(True)
        optimizer = adam(model, scaling=1.0)
        executor = poptorch.trainingModel(model, options, optimizer)
        losses = [executor(*batch(seed=call))[1].item() for call in range(4)]
        found[word] = losses, {k: float(v) for k, v in optimizer.state_dict()["ipu_state"].items() if not v.dim()}
    assert found["bfloat16"][0] == pytest.approx(found["float32"][0], rel=2e-3)
    assert found["bfloat16"][1] == found["float32"][1]


# -- what is said, and who decides -------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["bf16", "Float32", "1", "native "])
def test_an_unknown_word_is_named(word, monkeypatch):
    monkeypatch.setenv(policy.HALF_VARIABLE, word)
    with pytest.raises(poptorch.Error) as error:
        poptorch.inferenceModel(torch.nn.Linear(2, 2))
    told = f"environment variable {policy.HALF_VARIABLE}={word!r} must be"
    assert error.value.message == f"{told} bfloat16, float16, float32 or native, or be unset"


@pytest.fixture
def speeds(monkeypatch):
    """`speeds(bfloat16=4.5)`: how many times as fast as float32 products of a type are; others have no units."""
    monkeypatch.delenv(policy.HALF_VARIABLE, raising=False)

    def speeds(**ratios):
        def speed(dtype):
            name = str(dtype).removeprefix("torch.")
            return half_units.Speed(ratios.get(name), "" if name in ratios else f"this CPU has no units for {name}")

        monkeypatch.setattr(half_units, "speed", speed)

    return speeds


@pytest.mark.parametrize(
    ("ratios", "chosen"),
    [
        ({}, "float32"),
        ({"bfloat16": 4.5}, "bfloat16"),
        ({"bfloat16": 1.4}, "float32"),
        ({"bfloat16": 4.0, "float16": 3.9}, "float16"),
        ({"bfloat16": 4.0, "float16": 2.0}, "bfloat16"),
        ({"float16": 1.2}, "float32"),
    ],
)
def test_the_fastest_type_is_taken(ratios, chosen, speeds):
    speeds(**ratios)
    assert policy.type_of_products() == chosen


def test_products_that_torch_makes_slowly_are_emulated(speeds):
    speeds(bfloat16=0.02)
    assert policy.products_of("bfloat16") == policy.Products(BFLOAT16, native=False)
    speeds(bfloat16=0.9)
    assert policy.products_of("bfloat16") == policy.Products(BFLOAT16, native=True)


def said(capsys, monkeypatch, model=None):
    monkeypatch.setattr(poptorch.notices, "_said", set())
    poptorch.inferenceModel(model or torch.nn.Linear(2, 2).half())(torch.ones(1, 2, dtype=torch.float16))
    return capsys.readouterr().err


def test_one_line_says_what_was_chosen(speeds, capsys, monkeypatch):
    for ratios, expected in (
        ({}, "Half is slow on a CPU: float32 serves"),
        ({"bfloat16": 1.2}, "Half is slow on a CPU: float32 serves"),
        ({"bfloat16": 0.9, "float16": 3.0}, "products of half are in float16 (3.0 times float32's speed)"),
    ):
        speeds(**ratios)
        monkeypatch.setattr(policy, "products_of", lambda name: policy.Products(getattr(torch, name), native=True))
        text = said(capsys, monkeypatch)
        assert text.count("\n") == 1 and expected in text, ratios


def test_the_line_says_that_it_is_emulated(speeds, capsys, monkeypatch):
    speeds()
    monkeypatch.setenv(policy.HALF_VARIABLE, "bfloat16")
    text = said(capsys, monkeypatch)
    assert "products of half are in bfloat16, emulated (this CPU has no units for bfloat16)" in text


def _of_each_process(rank_words):
    import os

    import popdist.poptorch

    os.environ[policy.HALF_VARIABLE] = rank_words[int(os.environ["RANK"])]
    popdist.init()
    options = popdist.poptorch.Options(ipus_per_replica=1)
    model = Transformer().half()
    optimizer = adam(model)
    executor = poptorch.trainingModel(model, options, optimizer)
    loss = executor(*batch())[1].item()
    state = optimizer.state_dict()
    return loss, state[RECORD], executor._compiled.products.name


def test_the_first_process_decides_for_all():
    found = together(2, _of_each_process, ("bfloat16", "float32"))
    assert [record for _, record, _ in found] == [{"products of half": "bfloat16"}] * 2
    assert [name for *_, name in found] == ["bfloat16"] * 2
    assert found[0][0] == found[1][0]  # the same samples


def _on_two_ipus():
    """Losses of three calls of a pipeline of two stages, [3][4]; this process's share of the weights."""
    import popdist.poptorch

    options = popdist.poptorch.Options(ipus_per_replica=2).outputMode(poptorch.OutputMode.All)
    options.Training.gradientAccumulation(4)
    options.randomSeed(3)
    model = Transformer(0.1).half()
    poptorch.BeginBlock(model.layers[1]["ln_1"], ipu_id=1)
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=1e-3, accum_type=torch.float32)
    executor = poptorch.trainingModel(model, options, optimizer)
    losses = [executor(*batch(4, seed=call))[1].tolist() for call in range(3)]
    assert executor._compiled.products.name == "bfloat16"
    return losses, sum(parameter.device.type != "meta" for parameter in model.parameters())


def test_a_pipeline_of_two_processes_is_one(bfloat16):
    variables = {policy.HALF_VARIABLE: "bfloat16", "POPDIST_NUM_TOTAL_REPLICAS": "1"}
    ((alone, held),) = together(1, _on_two_ipus, **variables)
    (first, part), (second, _) = together(2, _on_two_ipus, **variables)
    assert part < held and first == second
    # What is the same in the first call is rounded otherwise after an update: sums of gradients have another order.
    assert first[0] == pytest.approx(alone[0], rel=1e-6)
    torch.testing.assert_close(torch.tensor(first), torch.tensor(alone), rtol=1e-3, atol=0)


def test_micro_batches_run_as_one_in_16_bits_too(bfloat16, monkeypatch):
    losses = []
    for number in ("1", "4"):
        monkeypatch.setenv(VARIABLE, number)
        model = Transformer().half()
        executor = poptorch.trainingModel(
            model, make_options(1, 4, mode=poptorch.OutputMode.All), torch.optim.SGD(model.parameters(), lr=0.1)
        )
        losses.append(executor(*batch(4))[1])
        assert executor._session.runner.as_one.number == int(number)
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)


def test_attention_that_is_emulated_rounds_no_probabilities():
    """Whatever units this CPU has: the products are float32's, of operands that were rounded."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 80, 16, generator=generator) for _ in range(3))
    found = half_products.attention(query, key, value, None, 0.0, True, BFLOAT16, native=False)
    rounded = (tensor.to(BFLOAT16).float() for tensor in (query, key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(*rounded, is_causal=True)
    assert torch.equal(found, expected.to(BFLOAT16))
