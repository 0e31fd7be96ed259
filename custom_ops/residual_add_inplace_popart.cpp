// ResidualAddInPlacePattern: the residual sum is written dropout(f(x)) + x, and PopART may add into either operand.
// The dropout's output is the better balanced over the tiles of the two; with this pattern the sum lands there.

#include <popart/op.hpp>
#include <popart/op/add.hpp>
#include <popart/op/dropout.hpp>
#include <popart/patterns/pattern.hpp>
#include <popart/patterns/patterns.hpp>
#include <popart/tensor.hpp>

namespace {

class ResidualAddInPlacePattern : public popart::PreAliasPattern {
public:
  bool matches(popart::Op* op) const override {
    // A priority that is set, by the program or by this pattern before, stands.
    if (!op->isConvertibleTo<popart::AddOp>() || !op->settings.inplacePriorityVeto.empty()) {
      return false;
    }
    const popart::Tensor* lhs = op->inTensor(popart::AddOp::getArg0InIndex());
    return lhs->hasProducer() && lhs->getProducer()->isConvertibleTo<popart::DropoutOp>();
  }

  // No tensor is replaced: only a setting of the Add changes.
  std::vector<const popart::Tensor*> touches(popart::Op*) const override {
    return {};
  }

  bool apply(popart::Op* op) const override {
    // 1000 is above every default priority, and settings come before the defaults that
    // UpdateInplacePrioritiesForIpu works out.
    op->settings.inplacePriorityVeto.emplace_back("AddLhsInplace", 1000.0f);
    return true;
  }
};

const popart::PatternCreator<ResidualAddInPlacePattern> pattern_creator("ResidualAddInPlacePattern", /*enabled=*/true);

} // namespace
