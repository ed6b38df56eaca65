#include "launch/step_graphs.h"

#include <algorithm>

#include "runtime/error.h"
#include "runtime/log.h"

namespace transxssm {

StepGraphs::Entry& StepGraphs::entry_of(const Variant& variant) {
  auto found = std::find_if(entries_.begin(), entries_.end(),
                            [&](const Entry& entry) { return entry.variant == variant; });
  if (found == entries_.end()) {
    if (entries_.size() == kMaxVariants) entries_.pop_back();
    entries_.push_back({.variant = variant});
    found = entries_.end() - 1;
  }
  std::rotate(entries_.begin(), found, found + 1);
  return entries_.front();
}

void StepGraphs::run(const Variant& variant, const std::function<void()>& work) {
  if (!can_record_) return work();
  Entry& entry = entry_of(variant);
  if (entry.scratch_bytes != stream_.scratch_bytes()) {
    entry.graph.reset();
    work();
    entry.scratch_bytes = stream_.scratch_bytes();
    return;
  }
  if (!entry.graph) {
    try {
      entry.graph = stream_.queue()->capture(work);
    } catch (const DeviceError& error) {
      log_warning("training steps run without CUDA graphs, which may be slower: {}", error.what());
      can_record_ = false;
      return work();
    }
    ++recorded_;
  }
  stream_.queue()->launch(*entry.graph);
  ++launched_;
}

}  // namespace transxssm
