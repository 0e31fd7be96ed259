"""A custom op from a library that a C++ compiler makes: name, domain, version, attributes of every type."""

from __future__ import annotations

import pathlib
import subprocess
import textwrap

import pytest
import torch
from programs import infer, make_options
from torch.utils import cpp_extension

import examples_utils
import poptorch

SOURCE = """
    #include <torch/library.h>
    #include <ATen/ATen.h>
    #include <vector>
    #include <string>

    // Two outputs; no shape function: the example outputs say what comes out.
    std::tuple<at::Tensor, at::Tensor> mix(const at::Tensor& x, const at::Tensor& y, double factor, int64_t count,
                                           c10::string_view word, at::ArrayRef<double> factors,
                                           at::IntArrayRef counts, std::vector<std::string> words) {
      double sum = factor + count + word.size();
      for (auto f : factors) sum += f;
      for (auto c : counts) sum += c;
      for (const auto& w : words) sum += w.size();
      return {x * sum, y.sum().reshape({1})};
    }

    TORCH_LIBRARY_FRAGMENT(com_example_compiled, library) {
      library.def("Mix_v3(Tensor x, Tensor y, float factor, int count, str word, float[] factors, int[] counts, "
                  "str[] words) -> (Tensor, Tensor)");
      library.impl("Mix_v3", c10::DispatchKey::CPU, mix);
    }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("ops")
    source = folder / "mix.cpp"
    source.write_text(textwrap.dedent(SOURCE))
    target = source.with_suffix(".so")
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-lc10", "-ltorch_cpu", "-ltorch"]
    command = [
        "g++",
        "-std=c++20",
        "-shared",
        "-fPIC",
        "-O0",
        abi,
        *includes,
        str(source),
        "-o",
        str(target),
        *libraries,
    ]
    subprocess.run(command, check=True, capture_output=True)
    return target


@pytest.mark.long
def test_a_compiled_op_with_attributes_of_every_type(library):
    attributes = dict(factor=0.5, count=2, word="abc", factors=[1.5, 2.0], counts=(3, 4), words=["ab", "c"])

    def forward(m, x, y):
        return poptorch.custom_op([x, y], "Mix", "com.example.compiled", 3, [x, x.new_zeros(1)], attributes)

    x, y = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])
    with pytest.raises(poptorch.Error, match="No kernel for the custom op com.example.compiled.Mix version 3"):
        infer(forward, x, y)
    assert examples_utils.load_lib(library.with_suffix(".cpp")) is not None
    product, total = infer(forward, x, y, options=make_options(2))
    assert product.tolist() == [19.0, 38.0] and total.tolist() == [10.0, 20.0]
    attributes["surplus"] = 1
    with pytest.raises(poptorch.Error, match="could not be traced.*8 argument.*received 9"):
        infer(forward, x, y)
