"""Operations beyond torch's: conditionals, dynamic slices, callbacks, printing, decoding, point clouds (section 11)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from programs import Body, gradient_of, infer, make_options, train

import poptorch

# -- cond


def branch(condition, x):
    return poptorch.cond(condition, lambda a: a * 2, [x], lambda a, b: a - b, [x, torch.ones_like(x)])


def test_cond_chooses_at_run_time():
    executor = poptorch.inferenceModel(Body(lambda m, c, x: branch(c > 0, x)))
    x = torch.tensor([5.0])
    assert [executor(torch.tensor([c]), x)[0].item() for c in (1.0, -1.0, 2.0)] == [10, 4, 10]


def test_cond_outside_an_executor_returns_a_list():
    x = torch.tensor([5.0])
    assert [branch(torch.tensor(flag), x)[0].item() for flag in (True, False)] == [10, 4]
    assert isinstance(branch(torch.tensor(True), x), list)


def test_cond_takes_its_inputs_by_value():
    def forward(m, x):
        out = poptorch.cond(x.sum() > 0, lambda a: a.add_(1), [x], lambda a: a.sub_(1), [x])
        return out[0], x * 1

    out, x = infer(forward, torch.ones(1))
    assert (out.item(), x.item()) == (2, 1)


def test_cond_inside_a_loop_and_a_loop_inside_cond():
    def body(a):
        return poptorch.cond(
            a.sum() > 4, lambda b: b - 1, [a], lambda b: poptorch.for_loop(2, lambda c: c * 3, [b]), [a]
        )

    assert infer(lambda m, x: poptorch.for_loop(3, body, [x])[0], torch.ones(1)).item() == 7  # 9, 8, 7


def test_cond_reads_weights_and_writes_buffers():
    def forward(m, x):
        def count(a):
            m.count.add_(1)
            return a + m.w

        return poptorch.cond(x.sum() > 0, count, [x], lambda a: a * 1, [x])[0], m.count * 1

    members = dict(w=torch.nn.Parameter(torch.ones(1)), count=torch.zeros(1))
    executor = poptorch.inferenceModel(Body(forward, **members))
    assert [executor(torch.tensor([v]))[1].item() for v in (1.0, -1.0, 1.0)] == [1, 1, 2]


def test_cond_is_for_inference_only():
    with pytest.raises(poptorch.Error, match=r"poptorch.cond\(\) is only supported in inference"):
        train(lambda m, x: poptorch.identity_loss(branch(x.sum() > 0, x * m.w)[0], "sum"), torch.ones(1))


def test_cond_checks_its_arguments():
    x = torch.ones(1)
    with pytest.raises(ValueError, match="must be of type list"):
        poptorch.cond(torch.tensor(True), lambda a: a, x, lambda a: a, [x])
    with pytest.raises(ValueError, match="one element"):
        poptorch.cond(torch.ones(2), lambda a: a, [x], lambda a: a, [x])
    with pytest.raises(poptorch.Error, match="same number, shapes and types"):
        infer(lambda m, x: poptorch.cond(x.sum() > 0, lambda a: a, [x], lambda a: a.long(), [x])[0], x)


# -- dynamic_slice, dynamic_update


@pytest.mark.parametrize(
    "dim, start, size, step", [(0, 1, 3, 1), (1, 0, 4, 2), (1, 2, 3, 2), (0, -2, 2, 1), (-1, 1, 1, 1)]
)
def test_dynamic_slice_equals_indexing(dim, start, size, step):
    x = torch.arange(30.0).reshape(5, 6)
    index = [slice(None)] * 2
    first = start % x.shape[dim]
    index[dim] = slice(first, first + size, step)

    def forward(m, x, start):
        return poptorch.dynamic_slice(x, dim, start, size, step)

    assert torch.equal(infer(forward, x, torch.tensor([start], dtype=torch.int32)), x[tuple(index)])
    assert torch.equal(poptorch.dynamic_slice(x, dim, torch.tensor(start), size, step), x[tuple(index)])


def test_dynamic_slice_passes_its_gradient_on():
    def forward(m, start):
        return poptorch.identity_loss(poptorch.dynamic_slice(m.w, 0, start, 2, 1), "sum")

    found = gradient_of(forward, torch.tensor([1], dtype=torch.int32), w=torch.nn.Parameter(torch.zeros(4)))
    assert found["w"].tolist() == [0, 1, 1, 0]


def test_dynamic_update_writes_a_copy():
    def forward(m, x, src, start):
        return poptorch.dynamic_update(x, src, 1, start, 2), x * 1

    x, src = torch.zeros(2, 5), torch.ones(2, 2)
    out, same = infer(forward, x, src, torch.tensor([3], dtype=torch.int32))
    assert out[:, 3:].eq(1).all() and out.sum() == 4 and same.sum() == 0


@pytest.mark.parametrize(
    "start, size, step",
    [(torch.tensor(1.0), 1, 1), (torch.tensor([1, 2]), 1, 1), (torch.tensor(0), 9, 1), (torch.tensor(0), 1, 0)],
)
def test_dynamic_slice_checks_its_arguments(start, size, step):
    with pytest.raises(ValueError, match="dynamic_slice"):
        poptorch.dynamic_slice(torch.zeros(4), 0, start, size, step)


def test_dynamic_update_checks_its_arguments():
    with pytest.raises(ValueError, match="float32 but src is torch.int32"):
        poptorch.dynamic_update(torch.zeros(4), torch.ones(1, dtype=torch.int32), 0, torch.tensor(0), 1)
    with pytest.raises(ValueError, match="src has 1 elements"):
        poptorch.dynamic_update(torch.zeros(4), torch.ones(1), 0, torch.tensor(0), 2)


# -- CPU


def test_a_host_callback_runs_once_for_each_micro_batch():
    calls = []

    def host(x):
        calls.append(x.tolist())
        return {"twice": torch.tensor((x.numpy() * 2).tolist()), "name": "host"}

    executor = poptorch.inferenceModel(
        Body(lambda m, x: poptorch.CPU(host, "double")(x + 1)["twice"] * 10), make_options(2)
    )
    assert executor(torch.tensor([1.0, 2.0])).tolist() == [40, 60]
    assert calls[1:] == [[2.0], [3.0]]  # the first one, at compilation, found the shapes
    assert executor(torch.tensor([5.0, 6.0])).tolist() == [120, 140]


def test_no_gradient_passes_through_a_host_callback():
    def forward(m, x):
        return poptorch.identity_loss(poptorch.CPU(lambda y: y * 3, "triple")(x * m.w) + m.w, "sum")

    assert gradient_of(forward, torch.ones(1), w=torch.nn.Parameter(torch.ones(1)))["w"].item() == 1


def test_a_host_callback_is_a_plain_call_outside():
    assert poptorch.CPU(lambda a, b: a - b, "minus")(torch.tensor(3), b=torch.tensor(1)).item() == 2


def test_execute_calls_a_host_callback_once_more():
    calls = []
    host = poptorch.CPU(lambda y: calls.append(y.item()) or y * 2, "double")
    infer(lambda m, x: host(x) + 1, torch.tensor([4.0]))
    host.execute()
    assert calls[1:] == [4.0, 4.0] and host.outputs[0].item() == 8.0
    host.registerPersistentData()


def test_a_module_can_be_a_host_callback():
    layer = torch.nn.Linear(2, 3)
    model = Body(lambda m, x: m.host[0](x))
    model.host = [poptorch.CPU(layer, "linear")]
    x = torch.randn(4, 2)
    torch.testing.assert_close(poptorch.inferenceModel(model)(x), layer(x).detach())


# -- ipu_print_tensor


def test_printing_shows_values_and_gradients(capsys):
    def forward(m, x):
        return poptorch.identity_loss(poptorch.ipu_print_tensor(x * m.w, "product") * 2, "sum")

    train(forward, torch.tensor([1.0, 2.5]), options=None)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["product: (1.0000, 2.5000)", "product_gradient: (2.0000, 2.0000)"]


def test_printing_without_the_gradient_and_nothing_at_compilation(capsys):
    def forward(m, x):
        return poptorch.identity_loss(poptorch.ipu_print_tensor(x * m.w, "p", False), "sum")

    model = Body(forward, w=torch.nn.Parameter(torch.ones(1)))
    executor = poptorch.trainingModel(model)
    executor.compile(torch.ones(1))
    assert capsys.readouterr().err == ""
    executor(torch.ones(1))
    assert capsys.readouterr().err == "p: (1.0000)\n"


def test_what_is_printed_must_be_used(capsys):
    def forward(m, x):
        poptorch.ipu_print_tensor(x, "unused")
        poptorch.CPU(lambda y: print("called") or y, "unused")(x)
        return poptorch.ipu_print_tensor(x, "used") + 1

    executor = poptorch.inferenceModel(Body(forward))
    executor.compile(torch.ones(1))
    capsys.readouterr()
    executor(torch.ones(1))
    assert capsys.readouterr() == ("", "used: (1.0000)\n")


def test_printing_outside_an_executor_is_the_identity(capsys):
    x = torch.ones(1)
    assert poptorch.ipu_print_tensor(x) is x and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "tensor, arguments, text",
    [
        (torch.tensor([[1, 22], [3, 4]]), {}, "(( 1, 22),\n ( 3,  4))"),
        (torch.tensor(2.0), {}, "2.0000"),
        (torch.arange(10), dict(summarise_threshold=4, edge_items=2), "(0, 1, ..., 8, 9)"),
        (torch.tensor([1e-9, 1.0]), dict(digits=2), "(1.00e-09, 1.00e+00)"),
        (torch.tensor([1.5]), dict(float_format="none", open_bracket="[", close_bracket="]"), "[1.5]"),
        (torch.arange(6), dict(max_line_width=6, separator="; "), "(0; 1;\n 2; 3;\n 4; 5)"),
    ],
)
def test_print_format(tensor, arguments, text, capsys):
    infer(lambda m, x: poptorch.ipu_print_tensor(x, "t", **arguments) + 0, tensor)
    assert capsys.readouterr().err == f"t: {text}\n"


@pytest.mark.parametrize("arguments", [dict(float_format="hex"), dict(digits=-1), dict(title=3)])
def test_print_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match="ipu_print_tensor"):
        poptorch.ipu_print_tensor(torch.ones(1), **arguments)


# -- ctc_beam_search_decoder


def exhaustive_paths(log_probs, blank):
    """{labels: log-probability}, by adding up every alignment. `log_probs` is (T, C)."""
    found = {}
    steps, classes = log_probs.shape
    for alignment in itertools.product(range(classes), repeat=steps):
        labels = tuple(label for label, _ in itertools.groupby(alignment) if label != blank)
        score = sum(log_probs[t, label].item() for t, label in enumerate(alignment))
        found[labels] = found.get(labels, 0.0) + math.exp(score)
    return sorted(((math.log(p), labels) for labels, p in found.items()), reverse=True)


@pytest.mark.parametrize("blank", [0, 2])
def test_beam_search_equals_exhaustive_search(blank):
    log_probs = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    lengths = torch.tensor([4, 3], dtype=torch.int32)

    def forward(m, probs, lengths):
        return poptorch.ctc_beam_search_decoder(probs.transpose(0, 1), lengths, blank, beam_width=100, top_paths=3)

    scores, sizes, labels = infer(forward, log_probs.transpose(0, 1), lengths)
    assert sizes.dtype == labels.dtype == torch.int32 and labels.shape == (2, 3, 4)
    for n, length in enumerate(lengths.tolist()):
        for p, (score, path) in enumerate(exhaustive_paths(log_probs[:length, n].double(), blank)[:3]):
            assert tuple(labels[n, p, : sizes[n, p]].tolist()) == path
            assert scores[n, p].item() == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("arguments", [dict(blank=5), dict(top_paths=0), dict(beam_width=1, top_paths=2)])
def test_beam_search_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match="ctc_beam_search_decoder"):
        poptorch.ctc_beam_search_decoder(torch.zeros(2, 1, 3), torch.tensor([2]), **arguments)


# -- fps, nearest


def test_farthest_points_by_hand():
    points = torch.tensor([[0.0], [1.0], [10.0], [4.0], [0.0], [3.0]])
    out = infer(lambda m, x: poptorch.fps(x, [0, 4, 6], ratio=0.75), points)
    assert out.tolist() == [0, 2, 3, 4, 5] and out.dtype == torch.int32
    assert poptorch.fps(points, [0, 4, 6], ratio=0.75).tolist() == [0, 2, 3, 4, 5]


def test_farthest_points_from_a_random_start():
    points = torch.randn(8, 3)
    starts = {
        infer(lambda m, x: poptorch.fps(x, [0, 8], 0.1, True), points, options=seeded(s)).item() for s in range(8)
    }
    assert len(starts) > 1


def seeded(seed):
    return poptorch.Options().randomSeed(seed)


@pytest.mark.parametrize("ptr, ratio", [([0, 3], 0.5), ([0, 2, 1, 4], 0.5), ([0, 4], 0.0), ([4], 0.5)])
def test_farthest_points_checks_its_arguments(ptr, ratio):
    with pytest.raises(ValueError, match="fps"):
        poptorch.fps(torch.zeros(4, 2), ptr, ratio)


def test_nearest_with_and_without_batches():
    x = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    y = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    assert infer(lambda m, x, y: poptorch.nearest(x, y), x, y).tolist() == [0, 0, 1, 1]
    batches = [torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1])]
    assert infer(lambda m, x, y, a, b: poptorch.nearest(x, y.flip(0), a, b), x, y, *batches).tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="both"):
        poptorch.nearest(x, y, [0, 0, 0, 0])


# -- scopes, hints


def test_scopes_change_nothing():
    outline = poptorch.Attribute(__outline={"layer": "a"})

    def forward(m, x):
        with poptorch.NameScope("one"), outline, poptorch.MultiConv().planType(poptorch.MultiConvPlanType.Serial):
            x = x + 1
        with outline:
            return x * 2

    assert infer(forward, torch.ones(1)).item() == 4
    assert poptorch.attributes_lists == []


def test_nested_multi_conv():
    def forward(m, x):
        with poptorch.MultiConv(), poptorch.MultiConv():
            return x + 1

    with pytest.raises(poptorch.Error, match="Nested poptorch.MultiConv is not supported"):
        infer(forward, torch.ones(1))
    infer(lambda m, x: x + 1, torch.ones(1))  # and it is over


def test_multi_conv_that_ends_without_a_start():
    def forward(m, x):
        poptorch.MultiConv().__exit__(None, None, None)
        return x + 1

    with pytest.raises(poptorch.Error, match="never started"):
        infer(forward, torch.ones(1))


@pytest.mark.parametrize(
    "setter, good, bad",
    [
        ("availableMemoryProportions", (0.1, 0.2), ["a"]),
        ("availableMemoryProportions", 0.1, 1.5),
        ("planType", poptorch.MultiConvPlanType.Parallel, 0),
        ("perConvReservedTiles", 50, 50.0),
        ("cycleBackOff", 0.1, 1),
        ("enableConvDithering", True, 1),
        ("partialsTypes", torch.float16, "half"),
    ],
)
def test_multi_conv_setters(setter, good, bad):
    multi_conv = poptorch.MultiConv()
    assert getattr(multi_conv, setter)(good) is multi_conv
    with pytest.raises(AssertionError):
        getattr(multi_conv, setter)(bad)


def test_multi_conv_partials_of_another_type():
    with pytest.raises(ValueError, match="partialsTypes"):
        poptorch.MultiConv().partialsTypes(torch.int32)


def with_io_tiles():
    options = poptorch.Options()
    options.TensorLocations.numIOTiles(32)
    return options


MODE = poptorch.OverlapMode.OverlapAccumulationLoop


def test_overlap_keeps_the_structure():
    def forward(m, x, y):
        inputs = poptorch.set_overlap_for_input({"a": x, "b": (y,)}, MODE)
        return poptorch.set_overlap_for_output([inputs["a"] + inputs["b"][0]], MODE)

    (out,) = infer(forward, torch.ones(1), torch.ones(1), options=with_io_tiles())
    assert out.item() == 2
    x = torch.ones(1)
    assert poptorch.set_overlap_for_input(x, MODE) is x


def test_overlap_is_checked():
    x = torch.ones(1)
    with pytest.raises(ValueError, match="OverlapMode"):
        poptorch.set_overlap_for_input(x, "overlap")
    with pytest.raises(ValueError, match="expects a tensor"):
        poptorch.set_overlap_for_output(["a"], MODE)
    with pytest.raises(poptorch.Error, match="numIOTiles"):
        infer(lambda m, x: poptorch.set_overlap_for_input(x, MODE) + 1, x)
    with pytest.raises(poptorch.Error, match="not a host input"):
        infer(lambda m, x: poptorch.set_overlap_for_input(x + 1, MODE) + 1, x, options=with_io_tiles())
    with pytest.raises(poptorch.Error, match="already set"):
        infer(lambda m, x: poptorch.set_overlap_for_input([x, x], MODE)[0] + 1, x, options=with_io_tiles())


def test_nop_and_available_memory():
    assert infer(lambda m, x: poptorch.set_available_memory(poptorch.nop(x) + 1, 0.3), torch.ones(1)).item() == 2
    with pytest.raises(AssertionError):
        poptorch.nop([1])


# -- custom ops from Python


def test_a_kernel_in_python_with_attributes_of_every_type():
    seen = {}

    @poptorch.ops.register_custom_op("Mix", "com.example.python", 3)
    def mix(x, y, **attributes):
        seen.update(attributes)
        return x * attributes["factor"] + y, x - y

    attributes = dict(factor=2.0, count=3, word="a", factors=[1.0, 2.0], counts=(1, 2), words=["b", "c"])

    def forward(m, x, y):
        return poptorch.custom_op([x, y], "Mix", "com.example.python", 3, [x, y], attributes)

    out = infer(forward, torch.ones(1), torch.ones(1) * 5)
    assert [t.item() for t in out] == [7, -4] and seen == attributes
    with pytest.raises(poptorch.Error, match="No kernel"):
        infer(lambda m, x: poptorch.custom_op([x], "Mix", "com.example.python", 2, [x])[0], torch.ones(1))


def test_a_kernel_in_python_says_how_it_is_differentiated():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x**3

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 100

    poptorch.ops.register_custom_op("Cube", "com.example.python")(Cube.apply)

    def forward(m, x):
        return poptorch.identity_loss(poptorch.custom_op([x * m.w], "Cube", "com.example.python", 1, [x])[0], "sum")

    assert gradient_of(forward, torch.ones(1), w=torch.nn.Parameter(torch.full((1,), 2.0)))["w"].item() == 100


# -- profiling, testing


def test_channels_are_seen_by_the_profiler():
    class Loader:
        def load(self):
            return 3

    loader = Loader()
    channel = poptorch.profiling.Channel("data")
    channel.instrument(loader, "load")
    with torch.profiler.profile() as profile, channel.tracepoint("all"):
        assert loader.load() == 3
    assert {"data::all", "data::load"} <= {event.key for event in profile.key_averages()}


def test_allclose_of_structures():
    a, b = torch.ones(2), torch.zeros(2)
    assert poptorch.testing.allclose({"x": (a, b)}, {"x": (a, b + 1e-9)})
    assert not poptorch.testing.allclose([a], [b])
    with pytest.raises(AssertionError):
        poptorch.testing.allclose([a], (a,))


# -- hooks


def test_hooks_around_compilation():
    order = []
    handles = [
        poptorch.registerPreCompileHook(lambda: order.append(("pre", poptorch.isRunningOnIpu()))),
        poptorch.registerPostCompileHook(lambda: order.append("post")),
    ]
    try:
        executor = poptorch.inferenceModel(Body(lambda m, x: order.append("forward") or x + 1))
        executor(torch.ones(1))
        executor(torch.ones(1))
        assert order == [("pre", True), "forward", "post"]
        with pytest.raises(poptorch.Error):
            infer(lambda m, x: x.item(), torch.ones(1))
        assert order[3:] == [("pre", True), "post"]  # a failed compilation is over as well
    finally:
        for handle in handles:
            handle.remove()
    infer(lambda m, x: x + 1, torch.ones(1))
    assert len(order) == 5
    with pytest.raises(RuntimeError):
        poptorch.registerPreCompileHook("hook")
