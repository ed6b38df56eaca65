#include "parallel/gradient_reducer.h"

#include <algorithm>

namespace transxssm {

int64_t default_bucket_elements(int dp) {
  return std::max<int64_t>(40'000'000, int64_t{1'000'000} * dp);
}

std::vector<FlatRange> make_buckets(std::span<const FlatRange> parameters, int64_t bucket_elements) {
  std::vector<FlatRange> buckets;
  for (size_t i = parameters.size(); i-- > 0;) {
    const FlatRange& parameter = parameters[i];
    const int64_t end = parameter.begin + parameter.count;
    if (i + 1 < parameters.size())
      TRANSXSSM_CHECK(end <= parameters[i + 1].begin, "parameter {} out of place", i);
    if (parameter.count == 0) continue;
    if (!buckets.empty()) {
      const int64_t bucket_end = buckets.back().begin + buckets.back().count;
      if (bucket_end - parameter.begin <= bucket_elements) {
        buckets.back() = {parameter.begin, bucket_end - parameter.begin};
        continue;
      }
    }
    buckets.push_back(parameter);
  }
  return buckets;
}

GradientReducer::GradientReducer(Communicator& dp, const Tensor& gradient, std::vector<FlatRange> buckets)
    : dp_(dp), gradient_(gradient), buckets_(std::move(buckets)) {
  for (const FlatRange& range : buckets_) {
    TRANSXSSM_CHECK(
        range.begin >= 0 && range.count >= 0 && range.begin + range.count <= gradient_.num_elements(),
        "bucket [{}, +{}) of {} elements", range.begin, range.count, gradient_.num_elements());
  }
  started_.reserve(buckets_.size());
}

void GradientReducer::add_shared(const FlatRange& range, Communicator& sharers) {
  TRANSXSSM_CHECK(
      range.begin >= 0 && range.count >= 0 && range.begin + range.count <= gradient_.num_elements(),
      "range [{}, +{}) of {} elements", range.begin, range.count, gradient_.num_elements());
  const auto place = std::find_if(shared_.begin(), shared_.end(),
                                  [&](const Shared& other) { return other.range.begin < range.begin; });
  shared_.insert(place, {range, &sharers});
}

// Sums over copies come as soon as they can, not with their bucket: buckets differ where tensor parallel
// ranks hold parts of different sizes, and the sharers must meet at the same point of the backward pass.
void GradientReducer::complete(int64_t first) {
  for (; shares_summed_ < shared_.size() && shared_[shares_summed_].range.begin >= first; ++shares_summed_) {
    const Shared& shared = shared_[shares_summed_];
    shared.sharers->all_reduce(gradient_.slice(0, shared.range.begin, shared.range.count));
  }
  while (started_.size() < buckets_.size() && buckets_[started_.size()].begin >= first) {
    const FlatRange& range = buckets_[started_.size()];
    started_.push_back(dp_.start_all_reduce(gradient_.slice(0, range.begin, range.count)));
  }
}

void GradientReducer::finish() {
  complete(0);
  for (Request& request : started_) request.wait();
  started_.clear();
  shares_summed_ = 0;
}

}  // namespace transxssm
