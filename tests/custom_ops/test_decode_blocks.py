"""The native decode step against its meaning in plain torch: every precision, activation and kind of kernel.

`CUSTOM_OPS_KERNELS`, which names a kind of kernels, is read once in a process: for those that are not the fastest here
this file runs as a program that makes every check_* function. So is POPTORCH_PORTABLE_HALF, with whose bfloat16 it
makes one.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
import warm_process

import custom_ops
from custom_ops import decode_blocks as native
from custom_ops.top_scores import top_scores
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel

ROOT = Path(__file__).resolve().parents[2]
# float16: a key or value in the cache may round either way. int8: the native operator quantises its inputs too.
ATOL = {"float32": 5e-6, "float16": 1e-3, "int8": 0.03}


def operators():
    if custom_ops.load() != "native" or not native.available():
        pytest.skip("custom_ops.so is not built: no native operators")
    return torch.ops.gpt2_decode


class Case:
    """Random blocks and a cache for each side."""

    def __init__(
        self, precision, width=64, heads=2, inner=96, layers=2, batch=3, slots=48, activation="gelu", parallel=False,
        slopes=(),
    ):  # fmt: skip
        torch.manual_seed(len(precision) + width)
        config = GPT2Config(
            vocab_size=48, real_vocab_size=41, n_positions=slots, n_embd=width, n_layer=layers, n_head=heads,
            n_inner=inner, activation_function=activation, bos_token_id=None, eos_token_id=None,
            parallel_residual=parallel,
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config).eval()
        for parameter in self.model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        states = (block.state_dict() for block in self.model.transformer.h)
        self.weights, self.vectors = native.pack_blocks(states, precision)
        self.settings = dict(
            n_head=heads, inner=inner, precision=native.PRECISIONS.index(precision), activation=activation,
            epsilon=1e-5, parallel=int(parallel), slopes=list(slopes),
        )  # fmt: skip
        cache = torch.float32 if precision == "float32" else torch.int16
        shape = (layers, batch, heads, slots, width // heads)
        self.caches = [torch.zeros(shape, dtype=cache) for _ in range(4)]
        self.start = torch.zeros(batch, dtype=torch.int32)

    def both(self, hidden, count):
        """The step by the operator and by the reference."""
        count = torch.tensor(count, dtype=torch.int32)
        shared = (hidden, self.start, count, self.weights, self.vectors)
        ours = operators().DecodeBlocks(*shared, *self.caches[:2], **self.settings)
        theirs = native.decode_blocks(*shared, *self.caches[2:], **self.settings)
        self.start = self.start + count
        real = torch.arange(hidden.shape[1]) < count[:, None]
        return ours[real], theirs[real]

    def check(self, width_of_step, count, atol):
        hidden = torch.randn(3, width_of_step, self.model.config.n_embd)
        torch.testing.assert_close(*self.both(hidden, count), atol=atol, rtol=atol)


def check_prompts_tokens_and_unequal_rows():
    for precision, atol in ATOL.items():
        case = Case(precision)
        case.check(9, [9, 4, 0], atol)  # few tokens: the kernels
        case.check(1, [1, 1, 1], atol)
        case.check(
            20, [20, 1, 13], atol
        )  # many: products of the runtime's or torch's, behind what those left in the cache
        case.check(5, [1, 5, 0], atol)
        for ours, theirs in zip(case.caches[:2], case.caches[2:]):
            kind = torch.float32 if precision == "float32" else torch.float16
            torch.testing.assert_close(ours.view(kind), theirs.view(kind), atol=atol, rtol=2 * atol)


def check_alibi_and_one_sum_a_block():
    """Few tokens, many, and many behind others; threads that share each phase."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for form in (dict(slopes=(0.5, 0.004)), dict(parallel=True), dict(parallel=True, slopes=(0.25, 2.0))):
                for precision, atol in ATOL.items():
                    sizes = {} if precision == "int8" else dict(width=128, inner=640)  # whose inputs are rounded too
                    case = Case(precision, **sizes, **form)
                    for step, count in ((9, [9, 4, 0]), (1, [1, 1, 1]), (20, [20, 1, 13]), (5, [1, 5, 0])):
                        case.check(step, count, 3 * atol)
    finally:
        torch.set_num_threads(before)


def check_activations():
    for activation in ("gelu", "gelu_new", "relu"):
        Case("float32", activation=activation).check(4, [4, 4, 4], 5e-6)


def check_sizes_that_no_vector_divides():
    for precision in ("float32", "float16"):
        case = Case(precision, width=42, heads=6, inner=75)
        case.caches = [torch.zeros(cache.shape) for cache in case.caches]  # float32: no key rounds either way
        case.check(4, [4, 2, 1], 5e-6)


def check_a_row_does_not_depend_on_the_rows_beside_it():
    case = Case("float32")
    hidden = torch.randn(3, 7, 64)
    together, _ = case.both(hidden, [5, 4, 7])
    alone = Case("float32")
    first, _ = alone.both(hidden, [5, 0, 0])
    assert torch.equal(together[:5], first)


ROWS = (1, 2, 3, 5, 6, 7, 8, 12, 16)  # in one pass over the weights, and in several


def check_the_sums_of_a_row_have_one_order_however_many_rows_there_are():
    for precision in ATOL:
        for vocabulary, width in ((7, 768), (131, 96), (40, 3072), (1, 64)):
            same_logits_in_any_company(precision, vocabulary, width)
        if precision != "int8":
            for vocabulary, width in ((29, 75), (300, 42), (13, 5), (41, 2733)):
                same_logits_in_any_company(precision, vocabulary, width)


def check_the_head_of_many_rows_of_any_size():
    """The runtime's products or torch's, whichever is faster here; narrow and deep ones, and less than a tile."""
    for rows, vocabulary, width in ((17, 3, 8), (20, 1, 1), (33, 7, 33), (260, 300, 75), (17, 5, 9000)):
        torch.manual_seed(width)
        hidden, head = torch.randn(rows, 2, width), torch.randn(vocabulary, width)
        count = torch.full((rows,), 2)
        count[3] = 0
        unused = torch.zeros(width)
        ours = operators().NextLogits(
            hidden, count, unused, unused, native.pack([head], "float32"), vocab_size=vocabulary, precision=0,
            epsilon=1e-5, norms=0,
        )  # fmt: skip
        expected = hidden[:, 1].double() @ head.double().t() * (count > 0)[:, None]
        error, size = (ours - expected).abs(), hidden[:, 1].double().abs() @ head.double().abs().t()
        assert (error <= 1e-6 * size).all(), (rows, vocabulary, width)


def check_so_they_have_where_the_weights_are_more_than_caches_hold():
    same_logits_in_any_company("float32", 24_000, 768)  # 74 MB


def same_logits_in_any_company(precision, vocabulary, width):
    """The head's product: bits of each row alone and among others, and the rows against float64."""
    torch.manual_seed(width)
    hidden, norm, bias = torch.randn(16, 1, width), torch.randn(width), torch.randn(width)
    head = native.pack([torch.randn(vocabulary, width)], precision)
    settings = dict(vocab_size=vocabulary, precision=native.PRECISIONS.index(precision), epsilon=1e-5)

    def logits(rows):
        return operators().NextLogits(rows, torch.ones(len(rows), dtype=torch.int32), norm, bias, head, **settings)

    alone = torch.cat([logits(row.unsqueeze(0)) for row in hidden])
    for rows in ROWS:
        assert torch.equal(logits(hidden[:rows]), alone[:rows]), (precision, vocabulary, width, rows)
    if precision != "int8":  # there the inputs are rounded, too
        rows, stored = hidden[:, 0].double(), native._Unpacked(head, settings["precision"]).matrix(vocabulary, width)
        normed = torch.nn.functional.layer_norm(rows, (width,), norm.double(), bias.double(), 1e-5)
        difference = alone.double() - normed @ stored.double().t()
        assert (difference.abs() <= 1e-6 * (normed.abs() @ stored.double().abs().t())).all()


def check_sums_of_int8_are_exact():
    """Whole numbers with scales of 1: every sum is one below 2^24, at the ends of the range of bytes too."""
    torch.manual_seed(0)
    for width in (32, 96, 544, 768, 1024):
        matrix, inputs = (torch.randint(-127, 128, (count, width)).float() for count in (37, 16))
        for rows in (matrix, inputs):
            rows[:, ::32] = 127  # of each group
            rows[0], rows[1] = 127, -127
            rows[1, ::32] = rows[2, ::32] = -127
        packed, unused = native.pack([matrix], "int8"), torch.full((width,), torch.nan)
        settings = dict(vocab_size=37, precision=native.PRECISIONS.index("int8"), epsilon=1e-5, norms=0)
        for rows in ROWS:
            count = torch.ones(rows, dtype=torch.int32)
            found = operators().NextLogits(inputs[:rows, None], count, unused, unused, packed, **settings)
            assert torch.equal(found.double(), inputs[:rows].double() @ matrix.double().t()), (width, rows)


def check_a_step_has_the_same_bits_however_many_texts_share_it():
    """Blocks over a cache with tokens in it, by one thread and by three."""
    threads_before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for precision in ATOL:
                same_bits_in_any_company(precision, width=128, heads=4, inner=640)
            same_bits_in_any_company("float32", width=42, heads=6, inner=75)
            same_bits_in_any_company("float16", width=42, heads=6, inner=75)
    finally:
        torch.set_num_threads(threads_before)


def same_bits_in_any_company(precision, **sizes):
    case = Case(precision, batch=16, slots=24, activation="gelu_new", **sizes)
    hidden, start = torch.randn(16, 1, sizes["width"]), torch.arange(16, dtype=torch.int32)
    kept = [torch.randn(cache.shape) for cache in case.caches[:2]]
    if precision != "float32":
        kept = [cache.half().view(torch.int16) for cache in kept]

    def step(texts):
        """Output, keys and values of `texts`, (texts, ...) each, after a step of theirs together."""
        count, caches = torch.zeros(16, dtype=torch.int32), [cache.clone() for cache in kept]
        count[texts] = 1
        shared = (hidden, start, count, case.weights, case.vectors, *caches)
        output = operators().DecodeBlocks(*shared, **case.settings)
        return [part[texts] for part in (output, *(cache.transpose(0, 1) for cache in caches))]

    alone = [step([text]) for text in range(16)]
    for rows in ROWS:
        for parts, together in zip(zip(*alone[:rows]), step(list(range(rows)))):
            assert torch.equal(together, torch.cat(parts)), (precision, sizes, rows, torch.get_num_threads())


def check_threads():
    """Weights enough for three threads, which share every phase."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        case = Case("float32", width=256, inner=1024)
        for _ in range(4):
            case.check(4, [4, 1, 2], 3e-5)  # from float64 the reference is up to 2.4e-5 away, the operator 1.1e-5
    finally:
        torch.set_num_threads(before)


def check_head():
    for precision, atol in ATOL.items():
        case = Case(precision)
        norm, hidden, count = case.model.transformer.ln_f, torch.randn(3, 6, 64), torch.tensor([6, 1, 3])
        head = native.pack([case.model.lm_head.weight.detach()[:41]], precision)
        shared = (hidden, count, norm.weight.detach(), norm.bias.detach(), head)
        settings = dict(vocab_size=41, precision=native.PRECISIONS.index(precision), epsilon=1e-5)
        ours = operators().NextLogits(*shared, **settings)
        torch.testing.assert_close(ours, native.next_logits(*shared, **settings), atol=atol, rtol=atol)
        many = (hidden.repeat(7, 1, 1), count.repeat(7), *shared[2:])
        torch.testing.assert_close(
            operators().NextLogits(*many, **settings)[:3], native.next_logits(*shared, **settings), atol=atol, rtol=atol
        )


def check_a_product_without_a_norm():
    for precision, atol in ATOL.items():
        hidden, count, matrix = torch.randn(3, 6, 64), torch.tensor([6, 0, 3]), torch.randn(41, 64)
        packed, unused = native.pack([matrix], precision), torch.full((64,), torch.nan)
        settings = dict(vocab_size=41, precision=native.PRECISIONS.index(precision), epsilon=1e-5, norms=0)
        for rows in (1, 7):
            inputs = (hidden.repeat(rows, 1, 1), count.repeat(rows), unused, unused, packed)
            ours, theirs = operators().NextLogits(*inputs, **settings), native.next_logits(*inputs, **settings)
            torch.testing.assert_close(ours, theirs, atol=20 * atol, rtol=atol)


def check_head_passes_over_rows_without_tokens():
    """And gives the others what they have without such rows beside them."""
    case = Case("float32")
    norm, hidden = case.model.transformer.ln_f, torch.randn(20, 6, 64)
    head = native.pack([case.model.lm_head.weight.detach()[:41]], "float32")
    settings = dict(vocab_size=41, precision=0, epsilon=1e-5)
    for real in ([], [4], [0, 3, 19], [0, 1, 2], list(range(18))):
        count = torch.zeros(20, dtype=torch.int32)
        count[real] = 5
        vectors = (norm.weight.detach(), norm.bias.detach(), head)
        found = operators().NextLogits(hidden, count, *vectors, **settings)
        torch.testing.assert_close(found, native.next_logits(hidden, count, *vectors, **settings), atol=5e-6, rtol=5e-6)
        assert not found[count == 0].any()
        if real:
            alone = operators().NextLogits(hidden[real], count[real], *vectors, **settings)
            assert torch.equal(found[real], alone)


def check_top_scores():
    """Against a stable sort in float64: ties, penalties either way, more rows than threads, one and many of them."""
    for rows, vocabulary, k in ((1, 700, 1), (9, 700, 4), (3, 1031, 300), (2, 5, 5), (3, 9000, 300), (2, 9000, 9000)):
        for penalty in (1.0, 2.0, 0.5):  # exact in float32
            logits = torch.randn(rows, vocabulary).mul(20).round().div(4)  # many are equal, 0 and -0 among them
            seen = torch.rand(rows, vocabulary) < 0.3
            scores, ids, log_probs = operators().TopScores(logits, seen, k=k, penalty=penalty)
            wide = logits.double()
            changed = torch.where(seen, torch.where(wide > 0, wide / penalty, wide * penalty), wide).float()
            expected, order = changed.sort(dim=-1, descending=True, stable=True)
            assert torch.equal(ids.long(), order[:, :k])
            torch.testing.assert_close(scores, expected[:, :k])
            torch.testing.assert_close(
                log_probs.double(), wide.log_softmax(-1).gather(1, ids.long()), atol=2e-6, rtol=1e-6
            )


def check_top_scores_of_few_finite_ones():
    """Blocks of nothing but -inf add nothing, infinite logits and NaNs show in the logarithms."""
    for k in (2, 600):
        logits = torch.full((3, 900), float("-inf"))
        logits[:, [300, 850]] = torch.tensor([1.5, -0.5])
        logits[1, 700], logits[2, 0] = float("inf"), float("nan")
        scores, ids, log_probs = operators().TopScores(logits, logits > 0, k=k, penalty=1.0)
        assert ids[0, :2].tolist() == [300, 850] and scores[0, :2].tolist() == [1.5, -0.5]
        torch.testing.assert_close(log_probs[0], logits[0].log_softmax(-1)[ids[0].long()], atol=2e-6, rtol=1e-6)
        assert ids[1, 0] == 700 and log_probs[1:].isnan()[:, 0].all()


def check_top_scores_of_a_row_are_its_own():
    logits = torch.randn(11, 9000)
    for k in (1, 40, 9000):
        together = operators().TopScores(logits, logits > 0, k=k, penalty=1.2)
        for row in range(11):
            alone = operators().TopScores(logits[row : row + 1], logits[row : row + 1] > 0, k=k, penalty=1.2)
            assert all(torch.equal(ours[row : row + 1], own) for ours, own in zip(together, alone))


def check_embedding():
    case = Case("float32")
    wte, wpe = case.model.transformer.wte.weight.detach(), case.model.transformer.wpe.weight.detach()
    ids, start, count = torch.randint(0, 41, (3, 5)), torch.tensor([0, 40, 7]), torch.tensor([5, 2, 0])
    real = torch.arange(5) < count[:, None]
    for places in (wpe, wpe[:, :1].contiguous(), wpe.t().contiguous().t()):  # ALiBi has a column for all
        ours = operators().EmbedTokens(ids, start, count, wte, places)
        assert torch.equal(ours[real], native.embed_tokens(ids, start, count, wte, places)[real])


CHECKS = {name: check for name, check in list(globals().items()) if name.startswith("check_")}


@pytest.mark.parametrize("name", CHECKS)
def test_native(name):
    operators()
    CHECKS[name]()


@pytest.mark.parametrize("kind", ["avx512", "avx2", "portable"])
def test_other_kernels(kind):
    if operators().Kernels() == kind:
        pytest.skip("test_native runs them")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUSTOM_OPS_KERNELS": kind}
    done = warm_process.run([__file__], environment)
    assert done.returncode == 0, done.stderr
    ran, *checks = done.stdout.split()
    if ran != kind:
        pytest.skip(f"this processor cannot run them: {ran} serve")
    assert checks == list(CHECKS)


def prompts_in_bfloat16():
    """Many tokens through float16 weights, behind none and behind others; float32's and int8's are not rounded."""
    for precision, tolerance in {"float32": 1e-5, "float16": 2.0**-7, "int8": 0.03}.items():
        for form in ({}, dict(activation="relu", parallel=True), dict(slopes=(0.5, 0.004))):
            case = Case(precision, slots=400, **form)
            for step, count in ((300, [300, 20, 150]), (20, [20, 20, 3]), (1, [1, 1, 1])):
                ours, theirs = case.both(torch.randn(3, step, 64), count)
                assert (ours - theirs).norm() < tolerance * theirs.norm(), (precision, form, step)


def prompt_in_bits():
    case = Case("float16", slots=400)
    print(case.both(torch.randn(3, 300, 64), [300, 20, 150])[0].double().sum().item().hex())


@pytest.mark.parametrize("kernels", ["", "none"])
def test_prompts_of_half_in_bfloat16(kernels):
    """With the CPU's units where it has them, and by torch's own means where not; attention by the runtime's kernel
    where that is built, and by torch's."""
    assert of_prompts("prompts_in_bfloat16", kernels) == ["prompts_in_bfloat16"]


def test_the_runtimes_kernel_computes_a_prompts_attention():
    if not (ROOT / "portable" / "poptorch" / "device" / "native" / "poptorch_kernels.so").is_file():
        pytest.skip("the runtime's kernels are not built")
    assert of_prompts("prompt_in_bits", "") != of_prompts("prompt_in_bits", "none")


def of_prompts(check, kernels):
    """What one of the checks above prints, in a process with those kernels of the runtime."""
    operators()
    settings = {"POPTORCH_PORTABLE_HALF": "bfloat16", "POPTORCH_PORTABLE_KERNELS": kernels}
    done = warm_process.run([__file__, check], {**os.environ, "PYTHONPATH": str(ROOT), **settings})
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[1:]


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_reference_is_the_model(kind):
    """Unpacking and arithmetic of the reference against the modules, whose matrices are rounded in the same way."""
    case = Case(kind)
    model = case.model
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.to(getattr(torch, kind)).float()
    ids = torch.randint(0, 41, (1, 8))
    with torch.no_grad():
        expected = model(ids)[0, -1, :41]
        hidden = model.transformer.wte(ids) + model.transformer.wpe(torch.arange(8))
        zero, count = torch.zeros(1, dtype=torch.int32), torch.tensor([8])
        caches = [torch.zeros(2, 1, 2, 48, 32) for _ in range(2)]
        hidden = native.decode_blocks(hidden, zero, count, case.weights, case.vectors, *caches, **case.settings)
        norm, head = model.transformer.ln_f, native.pack([model.lm_head.weight[:41]], kind)
        found = native.next_logits(
            hidden, count, norm.weight, norm.bias, head, 41, native.PRECISIONS.index(kind), 1e-5
        )[0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_top_scores_is_its_meaning():
    logits, seen = torch.randn(4, 90), torch.rand(4, 90) < 0.5  # no two are equal
    for k in (1, 6):
        for theirs, ours in zip(
            top_scores(logits, seen, k, 1.3), operators().TopScores(logits, seen, k=k, penalty=1.3)
        ):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": 0}, "k must be 1 to 8, not 0"),
        ({"k": 9}, "k must be 1 to 8, not 9"),
        ({"penalty": 0.0}, "penalty must be above 0"),
        ({"seen": torch.zeros(2, 7, dtype=torch.bool)}, "seen must be bool"),
        ({"logits": torch.zeros(2, 8, dtype=torch.float64)}, "in float32"),
    ],
)
def test_top_scores_refuses(change, said):
    inputs = dict(logits=torch.zeros(2, 8), seen=torch.zeros(2, 8, dtype=torch.bool), k=2, penalty=2.0)
    with pytest.raises((ValueError, RuntimeError), match=said):
        operators().TopScores(**{**inputs, **change})


def test_int8_rounds_each_group_to_its_own_scale():
    matrix = torch.cat([torch.randn(5, 32), torch.randn(5, 32) * 100], dim=1)
    whole, scales = native.quantise(matrix)
    assert whole.dtype == torch.int8 and scales.shape == (5, 2)
    restored = (whole.view(5, 2, 32) * scales.float().unsqueeze(-1)).view(5, 64)
    largest = matrix.view(5, 2, 32).abs().amax(-1).repeat_interleave(32, 1)
    assert ((restored - matrix).abs() <= largest / 127 * 0.51).all()


def test_int8_refuses_sizes_that_have_no_whole_groups():
    with pytest.raises(ValueError, match="sizes that 32 divides.*48 columns"):
        native.quantise(torch.zeros(4, 48))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"start": torch.tensor([46, 0, 0])}, "row 0: 3 tokens from slot 46 on do not fit into 4 columns and 48 slots"),
        ({"weights": torch.zeros(100, dtype=torch.uint8)}, "packed bytes, got 100"),
        ({"vectors": torch.zeros(7)}, "vectors: expected"),
        ({"hidden": torch.zeros(3, 4, 64, dtype=torch.float64)}, "in float32"),
        ({"keys": torch.zeros(2, 3, 2, 48, 31)}, "keys and values must be"),
        ({"activation": "tanh"}, "activation must be gelu, gelu_new or relu, not tanh"),
        ({"slopes": [0.5]}, "slopes: expected 2 or none, got 1"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    case = Case("float32")
    inputs = dict(
        hidden=torch.zeros(3, 4, 64), start=case.start, count=torch.tensor([3, 3, 3]), weights=case.weights,
        vectors=case.vectors, keys=case.caches[0], values=case.caches[1], **case.settings,
    )  # fmt: skip
    with pytest.raises((ValueError, RuntimeError), match=said):
        operators().DecodeBlocks(**{**inputs, **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wpe": torch.zeros(48, 3)}, r"wpe must be \(slots, C\) or \(slots, 1\)"),
        ({"input_ids": torch.tensor([[5, 48]])}, "input_ids: 48 is none of the 48 of wte"),
        ({"input_ids": torch.tensor([[5, -1]])}, "input_ids: -1 is none of the 48 of wte"),
    ],
)
def test_tokens_that_have_no_embedding_are_refused(change, said):
    one = torch.ones(1, dtype=torch.int32)
    inputs = dict(
        input_ids=torch.tensor([[5, 47]]), start=one, count=2 * one, wte=torch.zeros(48, 64), wpe=torch.zeros(48, 64)
    )
    with pytest.raises((ValueError, IndexError), match=said):
        operators().EmbedTokens(**{**inputs, **change})


if __name__ == "__main__":
    torch.set_num_threads(3)
    print(operators().Kernels())
    for name in sys.argv[1:] or CHECKS:
        globals()[name]()
        print(name)
