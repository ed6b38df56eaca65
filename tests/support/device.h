// The device that the tests of operations run on: the CPU, or what the test program sets before its tests
// start.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "runtime/stream.h"

namespace transxssm {

struct TestDevice {
  std::string name = "cpu";
  Device device;
  std::vector<DType> dtypes = {DType::f64, DType::f32, DType::bf16};
  int64_t row_bytes = 1;  // rows of the last dim start at multiples of this many bytes
  // Zeroed memory that host and device both see; null: the host's.
  std::shared_ptr<void> (*allocate)(int64_t bytes) = nullptr;
};
inline TestDevice& test_device() {
  static TestDevice device;
  return device;
}

inline bool on_cpu() {
  return test_device().device.is_cpu();
}
inline Stream test_stream(int num_threads = 1) {
  return Stream(test_device().device, num_threads);
}

// Runs an operation; afterwards the host may read its tensors.
template <class Args>
void run_and_wait(Stream& stream, const Args& args) {
  run(stream, args);
  stream.synchronize();
}

// Calls fn(T{}) for those types that the device computes in.
template <class... Types, class Fn>
void for_dtypes(Fn&& fn) {
  const auto& dtypes = test_device().dtypes;
  const auto call = [&](auto type) {
    if (std::count(dtypes.begin(), dtypes.end(), DTypeOf<decltype(type)>::value)) fn(type);
  };
  (call(Types{}), ...);
}

// Calls fn(S{}, T{}) for the types of a residual stream and of the branches that meet it.
template <class Fn>
void for_stream_dtypes(Fn&& fn) {
  for_dtypes<float, double, BFloat16>([&](auto type) {
    fn(type, type);
    if constexpr (sizeof(type) == 2) fn(float{}, type);
  });
}

}  // namespace transxssm
