// What the ops write in place counts as an edit, on every device: autograd then notices that a tensor it saved has changed, and what was
// made of a tensor is made anew.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <vector>

namespace sparsekern {
namespace {

void count(const at::Tensor& t) {
  if (t.defined() && !t.is_inference()) t.unsafeGetTensorImpl()->bump_version();
}

void count_edits(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  std::vector<c10::IValue> written;
  for (size_t i = 0; i < arguments.size(); ++i)
    if (arguments[i].alias_info() && arguments[i].alias_info()->isWrite()) written.push_back(torch::jit::peek(*stack, i, arguments.size()));
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  }
  for (const c10::IValue& value : written) {
    if (value.isTensor()) count(value.toTensor());
    if (value.isTensorList())
      for (const c10::IValue& t : value.toListRef()) count(t.toTensor());
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, ADInplaceOrView, m) {
  for (const char* name : {"masked_sgd_", "masked_sgd_.tensor_lr", "packed_sgd_", "nm_apply_", "project_conflict_", "project_conflict_sgd_",
                           "project_conflict_sgd_.tensor_lr", "prune_regrow_", "prune_regrow_.int_k"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&count_edits>());
}

}  // namespace sparsekern
