// What the cases of the communicator suite send: elements known by rank and index, in host memory or on a
// device.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "parallel/communicator.h"
#include "runtime/stream.h"

namespace transxssm {

// Of the thread, set by PlaceOnDevice.
extern thread_local Stream* device_stream;
extern thread_local bool exact_sums;

// The elements of a vector where the communicator is to find them: the vector itself, or while this lives a
// copy on the device.
class Placed {
 public:
  template <class T>
  explicit Placed(std::vector<T>& v)
      : host_(v.data(), DTypeOf<T>::value, {static_cast<int64_t>(v.size())}), placed_(host_) {
    if (device_stream == nullptr || v.empty()) return;
    memory_ = Arena(host_.num_bytes(), device_stream->device());
    placed_ = memory_.carver().take(host_.dtype(), host_.shape());
    transfer(*device_stream, host_, placed_);
  }
  ~Placed() {
    if (memory_.bytes() == 0) return;
    transfer(*device_stream, placed_, host_);
    device_stream->synchronize();
  }
  Placed(const Placed&) = delete;
  operator const Tensor&() const { return placed_; }
  Tensor slice(int64_t begin, int64_t count) const { return placed_.slice(0, begin, count); }

 private:
  Tensor host_;
  Arena memory_;
  Tensor placed_;
};

// Magnitudes over 2^24, so that the order of a sum shows in its last bits.
template <class T>
T element(int rank, int64_t i) {
  uint64_t h = (static_cast<uint64_t>(rank) * 1000003u + static_cast<uint64_t>(i)) * 0x9E3779B97F4A7C15u;
  h ^= h >> 29;
  h *= 0xBF58476D1CE4E5B9u;
  h ^= h >> 32;
  const double mantissa = static_cast<double>(h >> 40) / (1 << 24) - 0.5;
  return static_cast<T>(std::ldexp(mantissa / 3, static_cast<int>(h % 24)));
}

template <class T>
std::vector<T> elements(int rank, int64_t count) {
  std::vector<T> v(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) v[static_cast<size_t>(i)] = element<T>(rank, i);
  return v;
}

// Element i of the reduction over n ranks.
template <class T>
T rank_ordered(int n, int64_t i, ReduceOp op) {
  T sum = element<T>(0, i);
  for (int r = 1; r < n; ++r) {
    sum = op == ReduceOp::sum ? sum + element<T>(r, i) : std::max(sum, element<T>(r, i));
  }
  return sum;
}

// Messages of float lengths that differ, out and in.
class Messages {
 public:
  explicit Messages(int seed) {
    for (int k = 0; k < kCount; ++k) {
      out_.push_back(elements<float>(seed * 100 + k, length(k)));
      in_.emplace_back(static_cast<size_t>(length(k)));
    }
  }
  void send(Communicator& communicator, int destination) {
    for (std::vector<float>& v : out_)
      start(v, [&](const Tensor& x) { return communicator.send(x, destination); });
  }
  void receive(Communicator& communicator, int source) {
    for (std::vector<float>& v : in_)
      start(v, [&](const Tensor& x) { return communicator.receive(x, source); });
  }
  void wait() {
    for (Request& request : requests_) request.wait();
    for (const Request& request : requests_) EXPECT_FALSE(request.pending());
    placed_.clear();  // back to the host
  }
  void expect_received(int seed) const {
    for (int k = 0; k < kCount; ++k)
      EXPECT_EQ(in_[static_cast<size_t>(k)], elements<float>(seed * 100 + k, length(k))) << k;
  }

 private:
  static constexpr int kCount = 12;
  static int64_t length(int k) { return k % 3 == 0 ? 0 : (k % 3 == 1 ? 5 : 40'000); }
  template <class Start>
  void start(std::vector<float>& v, Start&& start_one) {
    placed_.push_back(std::make_unique<Placed>(v));
    requests_.push_back(start_one(*placed_.back()));
  }

  std::vector<std::vector<float>> out_, in_;
  std::vector<std::unique_ptr<Placed>> placed_;
  std::vector<Request> requests_;
};

}  // namespace transxssm
