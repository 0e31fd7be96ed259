// RemapCE on an IPU: the input copied into a new variable that lies linearly over the tiles, `grain_size` elements
// at a time; the gradient likewise. remap_ce.py says what it means elsewhere. Loading the library registers it.

#include <popart/datatype.hpp>
#include <popart/error.hpp>
#include <popart/op.hpp>
#include <popart/opmanager.hpp>
#include <popart/opserialiser.hpp>
#include <popart/popx/devicex.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>
#include <popart/shapeinference.hpp>
#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>
#include <poputil/TileMapping.hpp>

namespace {

const popart::OperatorIdentifier remap_ce_id = {"ai.graphcore", "RemapCE", 1};
const popart::OperatorIdentifier remap_ce_grad_id = {"ai.graphcore", "RemapCEGrad", 1};

// What the operator and its gradient share: one input, one output of the same shape, the two attributes.
class RemapBaseOp : public popart::Op {
public:
  RemapBaseOp(const popart::OperatorIdentifier& id, int64_t grain_size, const std::string& debug_str,
              const popart::Op::Settings& settings)
      : popart::Op(id, settings), grain_size(grain_size), debug_str(debug_str) {
    if (grain_size < 1) {
      throw popart::error("RemapCE: grain_size must be at least 1, not {}", grain_size);
    }
  }

  void setup() final {
    outInfo(0) = inInfo(0);
  }

  void appendAttributes(popart::OpSerialiserBase& os) const override {
    popart::Op::appendAttributes(os);
    os.appendAttribute("grain_size", grain_size);
    os.appendAttribute("debug_str", debug_str);
  }

  // Two of them share code only if their tile mappings agree.
  void appendOutlineAttributes(popart::OpSerialiserBase& os) const override {
    popart::Op::appendOutlineAttributes(os);
    os.appendAttribute("grain_size", grain_size);
  }

  // A bare copy: nothing worth a subgraph of its own.
  float getSubgraphValue() const final {
    return getLowSubgraphValue();
  }

  const int64_t grain_size; // elements
  const std::string debug_str;
};

class RemapCEGradOp : public RemapBaseOp {
public:
  explicit RemapCEGradOp(const RemapBaseOp& forward)
      : RemapBaseOp(remap_ce_grad_id, forward.grain_size, forward.debug_str + "_grad", forward.settings) {
  }

  std::unique_ptr<popart::Op> clone() const final {
    return std::make_unique<RemapCEGradOp>(*this);
  }

  // Its input 0 is the gradient of the forward operator's output 0 …
  const std::vector<popart::GradInOutMapper>& gradInputInfo() const final {
    static const std::vector<popart::GradInOutMapper> in_info = {{0, 0, popart::GradOpInType::GradOut}};
    return in_info;
  }

  // … and its output 0 that of the forward operator's input 0.
  const std::map<int, int>& gradOutToNonGradIn() const final {
    static const std::map<int, int> out_info = {{0, 0}};
    return out_info;
  }
};

class RemapCEOp : public RemapBaseOp {
public:
  using RemapBaseOp::RemapBaseOp;

  std::unique_ptr<popart::Op> clone() const final {
    return std::make_unique<RemapCEOp>(*this);
  }

  std::vector<std::unique_ptr<popart::Op>> getGradOps() final {
    std::vector<std::unique_ptr<popart::Op>> grad_ops;
    grad_ops.emplace_back(std::make_unique<RemapCEGradOp>(*this));
    return grad_ops;
  }
};

class RemapOpx : public popart::popx::Opx {
public:
  RemapOpx(popart::Op* op, popart::popx::Devicex* devicex) : popart::popx::Opx(op, devicex) {
    verifyOp<RemapBaseOp>(op, {remap_ce_id, remap_ce_grad_id});
  }

  void grow(poplar::program::Sequence& program) const final {
    const auto& op = getOp<RemapBaseOp>();
    const poplar::Tensor& in = getInTensor(0);
    poplar::Tensor out = graph().addVariable(in.elementType(), in.shape(), debugContext(op.debug_str));
    const auto grain = static_cast<unsigned>(op.grain_size);
    poputil::mapTensorLinearly(graph(), out, /*minElementsPerTile=*/grain, /*grainSize=*/grain);
    program.add(poplar::program::Copy(in, out, /*dontOutline=*/false, debugContext(op.debug_str)));
    setOutTensor(0, out);
  }
};

const popart::OpDefinition::DataTypes half_or_float = {popart::DataType::FLOAT16, popart::DataType::FLOAT};

const popart::OpDefinition remap_ce_definition({
    popart::OpDefinition::Inputs({{"input", half_or_float}}),
    popart::OpDefinition::Outputs({{"output", half_or_float}}),
    popart::OpDefinition::Attributes({{"grain_size", {"*"}}, {"debug_str", {"*"}}}),
});

const popart::OpCreator<RemapCEOp> remap_ce_creator(
    popart::OpDefinitions({{remap_ce_id, remap_ce_definition}}),
    [](const popart::OpCreatorInfo& info) -> std::unique_ptr<popart::Op> {
      const int64_t grain_size = info.attributes.getAttribute<popart::Attributes::Int>("grain_size", 8);
      const std::string debug_str = info.attributes.getAttribute<popart::Attributes::String>("debug_str", "remap");
      return std::make_unique<RemapCEOp>(info.opid, grain_size, debug_str, info.settings);
    },
    /*isPublic=*/true);

const popart::popx::OpxCreator<RemapOpx> remap_ce_opx_creator({remap_ce_id, remap_ce_grad_id});

// For the shapes of the ONNX graph, before PopART has an operator.
const popart::RegisterShapeInferenceFunction remap_ce_shape_inference(remap_ce_id,
                                                                      [](popart::ShapeInferenceContext& context) {
                                                                        context.outInfo(0) = context.inInfo(0);
                                                                      });

} // namespace
