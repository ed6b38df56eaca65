// The small steps of the loss between its passes over the logits.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

namespace transxssm::cpu {

namespace {

template <class T>
void combine(const CrossEntropyCombine& args) {
  const int64_t slices = args.slices.size(0), tokens = args.combined.size(1);
  for (int64_t t = 0; t < tokens; ++t) {
    T max = args.slices.at<T>({0, 0, t});
    for (int64_t r = 1; r < slices; ++r) max = std::max(max, args.slices.at<T>({r, 0, t}));
    T sum = 0, hit = 0;
    for (int64_t r = 0; r < slices; ++r) {
      sum += args.slices.at<T>({r, 1, t}) * std::exp(args.slices.at<T>({r, 0, t}) - max);
      hit += args.slices.at<T>({r, 2, t});  // zero but on the rank that holds the target
    }
    args.combined.at<T>({0, t}) = max;
    args.combined.at<T>({1, t}) = sum;
    args.combined.at<T>({2, t}) = hit;
  }
}

template <class T>
double loss_of_valid(const CrossEntropyLoss& args) {
  double loss = 0;
  for (int64_t t = 0; t < args.valid.size(0); ++t)
    if (args.valid.at<uint8_t>({t}))
      loss += std::log(static_cast<double>(args.sum.at<T>({t}))) + args.max.at<T>({t}) -
              args.target_logit.at<T>({t});
  return loss;
}

}  // namespace

void run(Stream&, const CrossEntropyCombine& args) {
  expect_float(args.combined, "CrossEntropyCombine.combined");
  const DType dtype = args.combined.dtype();
  const int64_t tokens = args.combined.size(1);
  expect(args.combined, "CrossEntropyCombine.combined", dtype, {3, tokens});
  expect(args.slices, "CrossEntropyCombine.slices", dtype, {args.slices.size(0), 3, tokens});
  dtype == DType::f32 ? combine<float>(args) : combine<double>(args);
}

void run(Stream&, const CrossEntropyLoss& args) {
  expect_float(args.sum, "CrossEntropyLoss.sum");
  const DType dtype = args.sum.dtype();
  const Shape tokens = {args.sum.size(0)};
  expect(args.sum, "CrossEntropyLoss.sum", dtype, tokens);
  expect(args.max, "CrossEntropyLoss.max", dtype, tokens);
  expect(args.target_logit, "CrossEntropyLoss.target_logit", dtype, tokens);
  expect(args.valid, "CrossEntropyLoss.valid", DType::u8, tokens);
  expect(args.loss, "CrossEntropyLoss.loss", DType::f64, {1});
  args.loss.at<double>({0}) += dtype == DType::f32 ? loss_of_valid<float>(args) : loss_of_valid<double>(args);
}

}  // namespace transxssm::cpu
