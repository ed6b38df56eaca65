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
}

void GradientReducer::add_shared(const FlatRange& range, Communicator& sharers) {
  TRANSXSSM_CHECK(
      range.begin >= 0 && range.count >= 0 && range.begin + range.count <= gradient_.num_elements(),
      "range [{}, +{}) of {} elements", range.begin, range.count, gradient_.num_elements());
  shared_.push_back({range, &sharers});
}

void GradientReducer::reduce_shared() {
  for (const Shared& shared : shared_) {
    shared.sharers->all_reduce(gradient_.slice(0, shared.range.begin, shared.range.count));
  }
}

void GradientReducer::reduce(int bucket) {
  const FlatRange& range = buckets_[static_cast<size_t>(bucket)];
  dp_.all_reduce(gradient_.slice(0, range.begin, range.count));
}

void GradientReducer::reduce_all() {
  reduce_shared();
  for (int i = 0; i < num_buckets(); ++i) reduce(i);
}

}  // namespace transxssm
