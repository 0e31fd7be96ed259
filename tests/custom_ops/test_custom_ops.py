"""RemapCE, native and as the plain-torch reference, behind one operator name; and custom_ops.load().

An operator can be registered only once in a process, so each implementation gets a process of its own: it runs this
file as a program, which makes every check_* function below with it and prints the outcomes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import warm_process

import custom_ops
from custom_ops.build import NATIVE

ROOT = Path(custom_ops.__file__).resolve().parent.parent


def operator():
    import torch

    return torch.ops.ai_graphcore.RemapCE


def inputs():
    """Float64 tensors of several shapes, a transposed and an expanded one among them."""
    import torch

    torch.manual_seed(0)
    shapes = [(), (1,), (0, 3), (3, 4), (2, 3, 5)]
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return tensors + [torch.randn(4, 3, dtype=torch.float64).t(), torch.randn(4, dtype=torch.float64).expand(3, 4)]


def check_forward_is_a_copy():
    import torch

    for x in inputs():
        y = operator()(x, grain_size=4, debug_str="here")
        assert torch.equal(y, x) and y.dtype == x.dtype
        assert x.numel() == 0 or y.data_ptr() != x.data_ptr()
        expected = x.clone()
        y.add_(1)
        assert torch.equal(x, expected)


def check_gradient_is_a_copy():
    import torch

    for x in inputs():
        x.requires_grad_()
        grad = torch.randn(x.shape, dtype=x.dtype)
        (out,) = torch.autograd.grad(operator()(x, grain_size=2), x, grad)
        assert torch.equal(out, grad)
        assert x.numel() == 0 or out.data_ptr() != grad.data_ptr()


def check_numerical_gradients():
    import torch

    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: operator()(x).sin(), x)
    assert torch.autograd.gradgradcheck(lambda x: operator()(x).sin(), x)


def check_half():
    import torch

    # 1e-7 is subnormal in float16: kept, not flushed.
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = torch.tensor([1.0, -0.0, 1e-7, 65504.0, float("inf")], dtype=dtype, requires_grad=True)
        y = operator()(x)
        y.sum().backward()
        assert y.dtype == x.grad.dtype == dtype
        assert torch.equal(y, x) and torch.equal(y.signbit(), x.signbit()) and torch.equal(x.grad, torch.ones_like(x))


def check_no_gradient_asked_for():
    import torch

    assert not operator()(torch.ones(2)).requires_grad
    with torch.no_grad():
        assert not operator()(torch.ones(2, requires_grad=True)).requires_grad


def check_attributes_have_defaults():
    schema = str(operator().default._schema)
    assert schema == 'ai_graphcore::RemapCE(Tensor x, int grain_size=8, str debug_str="remap") -> Tensor', schema


def check_bad_grain_is_refused():
    import torch

    for grain_size in (0, -8):
        with pytest.raises(ValueError, match=f"grain_size must be at least 1, not {grain_size}"):
            operator()(torch.ones(2), grain_size=grain_size)


def check_shape_without_data():
    import torch

    y = operator()(torch.empty(7, 5, dtype=torch.float16, device="meta"))
    assert y.device.type == "meta" and y.shape == (7, 5) and y.dtype == torch.float16


def linear_model():
    """A linear layer, the operator, tanh, and the sum as the loss; and an input of 3 rows."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4).double()

        def forward(self, x):
            return operator()(self.linear(x), grain_size=16, debug_str="logits").tanh().sum()

    torch.manual_seed(1)
    return Model(), torch.randn(3, 4, dtype=torch.float64)


def expected_gradient(model, x):
    """d(loss)/d(weight) by hand: (1 - tanh^2)^T x."""
    import torch

    return (1 - torch.tanh(x @ model.linear.weight.t() + model.linear.bias) ** 2).t().detach() @ x


def check_export():
    import torch

    model, x = linear_model()
    program = torch.export.export(model, (x,), strict=False)
    nodes = [node for node in program.graph.nodes if node.target is operator().default]
    assert len(nodes) == 1
    assert list(nodes[0].args[1:]) + list(nodes[0].kwargs.values()) == [16, "logits"]
    module = program.module()
    loss = module(x)
    loss.backward()
    assert torch.equal(loss, model(x))
    torch.testing.assert_close(dict(module.named_parameters())["linear.weight"].grad, expected_gradient(model, x))


def check_vmap_over_export():
    import torch

    model, x = linear_model()
    module = torch.export.export(model, (x,), strict=False).module()
    parameters = dict(module.named_parameters())
    batches = torch.randn(5, 3, 4, dtype=torch.float64)
    losses = torch.vmap(lambda x: torch.func.functional_call(module, parameters, (x,)))(batches)
    torch.testing.assert_close(losses, torch.stack([model(x) for x in batches]))
    losses.sum().backward()
    torch.testing.assert_close(
        parameters["linear.weight"].grad, torch.stack([expected_gradient(model, x) for x in batches]).sum(0)
    )


def check_compiled_gradient():
    import torch

    model, x = linear_model()
    torch.compile(model, backend="aot_eager", fullgraph=True)(x).backward()
    torch.testing.assert_close(model.linear.weight.grad, expected_gradient(model, x))


def check_vmap():
    import torch

    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    torch._C._functorch._set_vmap_fallback_enabled(False)  # an operator without a batching rule fails, not crawls
    try:
        for dim in range(3):
            assert torch.equal(torch.vmap(operator(), in_dims=dim, out_dims=dim)(x), x)
        assert torch.equal(torch.vmap(torch.vmap(operator()))(x), x)
        loss = torch.vmap(lambda row: (operator()(row) ** 2).sum())(x).sum()
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(True)
    (grad,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(grad, 2 * x.detach())


def check_function_transforms():
    import torch

    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(torch.func.grad(lambda x: (operator()(x) ** 2).sum())(x), 2 * x)
    torch.testing.assert_close(torch.vmap(torch.func.grad(lambda x: (operator()(x) ** 2).sum()))(x), 2 * x)


def check_opcheck():
    import torch

    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(operator().default, (x,), {"grain_size": 4})


CHECKS = {name: check for name, check in list(globals().items()) if name.startswith("check_")}


def outcomes(library):
    """Every check in a fresh process with the operator from `library`, None for the reference: name -> error."""
    path = str(library) if library else "none"
    run = warm_process.run([__file__, path], environment())
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def environment(**variables):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUSTOM_OPS_SO": "", **variables}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """custom_ops.so as `make` builds it, in a folder of its own; copies of the libraries there are, if up to date."""
    path = tmp_path_factory.mktemp("native") / "custom_ops.so"
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler (g++): the native operator cannot be built")
    for name in [path.name, *(library.name for library in NATIVE)]:
        built, copy = custom_ops.LIBRARY.parent / name, path.parent / name
        if built.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(built), str(copy))
    command = [sys.executable, "-m", "custom_ops.build", "--output", str(path)]
    run = subprocess.run(command, cwd=str(ROOT), env=environment(POPLAR_SDK_ENABLED=""), capture_output=True)
    assert run.returncode == 0, run.stdout.decode() + run.stderr.decode()
    return path


@pytest.fixture(scope="module")
def native_outcomes(library):
    return outcomes(library)


@pytest.fixture(scope="module")
def reference_outcomes():
    return outcomes(None)


@pytest.mark.parametrize("name", CHECKS)
def test_native(native_outcomes, name):
    assert native_outcomes[name] == "", native_outcomes[name]


@pytest.mark.parametrize("name", CHECKS)
def test_reference(reference_outcomes, name):
    assert reference_outcomes[name] == "", reference_outcomes[name]


def python(code, **variables):
    return warm_process.run(["-c", code], environment(**variables))


# What __builtin_cpu_supports() takes in clang 14, Debian 12's: no F16C, for which GCC before 11 has no name, either.
NAMED_FEATURES = {"avx2", "fma", *("avx512" + part for part in ("f", "bw", "dq", "vl", "vnni", "bf16"))}


@pytest.mark.parametrize("folder", ["custom_ops", "tokenizer", "data/megatron", "portable/poptorch/device/native"])
def test_units_ask_for_features_that_older_compilers_know(folder):
    sources = [path for pattern in ("*.cpp", "*.h") for path in (ROOT / folder).glob(pattern)]
    asked = {name for path in sources for name in re.findall(r'cpu_supports\("(\w+)"\)', path.read_text())}
    assert sources and asked <= NAMED_FEATURES


def test_loads_the_library_once(library):
    run = python("import custom_ops; print(custom_ops.load(), custom_ops.load())", CUSTOM_OPS_SO=str(library))
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["native", "native"]


def test_reference_serves_and_says_so_once():
    code = "import custom_ops, pathlib; custom_ops.LIBRARY = pathlib.Path('none')"
    run = python(code + "; print(custom_ops.load(), custom_ops.load())")
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["reference", "reference"]
    assert run.stderr.count("custom_ops.so is not built") == 1 and run.stderr.count("run `make`") == 1


def test_import_loads_no_torch():
    command = [sys.executable, "-c", "import sys, custom_ops; print('torch' in sys.modules)"]
    run = subprocess.run(command, cwd=str(ROOT), env=environment(), capture_output=True, text=True)
    assert run.stdout.split() == ["False"], run.stderr


def test_library_of_another_torch_is_refused(library, tmp_path):
    stamp = custom_ops.build_stamp(library)
    other = tmp_path / "custom_ops.so"
    other.write_bytes(library.read_bytes().replace(stamp.encode(), stamp.replace("torch 2", "torch 9", 1).encode()))
    run = python("import custom_ops; custom_ops.load()", CUSTOM_OPS_SO=str(other))
    assert f"RuntimeError: {other} was built for torch 9." in run.stderr
    assert "HINT: run `make clean && make`" in run.stderr


def test_file_that_is_no_library_is_refused(tmp_path):
    path = tmp_path / "custom_ops.so"
    path.write_bytes(b"not a library")
    run = python("import custom_ops; custom_ops.load()", CUSTOM_OPS_SO=str(path))
    assert f"RuntimeError: {path} cannot be loaded" in run.stderr
    assert "HINT: run `make clean && make`" in run.stderr


def test_override_that_is_missing_is_refused(tmp_path):
    run = python("import custom_ops; custom_ops.load()", CUSTOM_OPS_SO=str(tmp_path / "gone.so"))
    assert "ValueError: CUSTOM_OPS_SO={}: no such file".format(tmp_path / "gone.so") in run.stderr


def main(path):
    if path == "none":
        custom_ops.LIBRARY = Path("none")
    else:
        os.environ["CUSTOM_OPS_SO"] = path
    assert custom_ops.load() == ("reference" if path == "none" else "native")
    results = {}
    for name, check in CHECKS.items():
        try:
            check()
            results[name] = ""
        except BaseException:  # whatever it is, it is that check's outcome
            results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
