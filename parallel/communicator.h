// A group of ranks that exchange tensors. Every implementation answers every method; size one is identity.
// Reductions on the host are this project's own: partial sums are exchanged pairwise and added in rank order, so
// ranks as threads and ranks as processes give the same bits, and every rank holds the same bits.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "runtime/tensor.h"

namespace transxssm {

enum class ReduceOp { sum, max };

// A pending send or receive; the tensor must stay alive and untouched until wait(). Waits on destruction.
class Request {
 public:
  class Impl {
   public:
    virtual ~Impl() = default;
    // True once complete. Called again and again by wait(), which owns time-outs and back-off.
    virtual bool test() = 0;
  };
  Request() = default;
  Request(std::unique_ptr<Impl> impl, std::string what) : impl_(std::move(impl)), what_(std::move(what)) {}
  Request(Request&&) = default;
  Request& operator=(Request&&) = default;
  void wait();  // throws CommunicationError naming the operation after the time limit (section timeouts)
  bool pending() const { return impl_ != nullptr; }

 private:
  std::unique_ptr<Impl> impl_;
  std::string what_;
};

// What this rank sent through one communicator so far (payload of collectives and point-to-point messages).
struct Traffic {
  int64_t bytes_sent = 0;
  int64_t messages = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Ranks of equal color form a group, ordered by key, then by rank here. Collective.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;

  // Asynchronous; messages between a pair of ranks arrive in the order sent. Contiguous tensors.
  virtual Request send(const Tensor& tensor, int destination) = 0;
  virtual Request receive(const Tensor& tensor, int source) = 0;

  // x of every rank becomes the rank-ordered reduction. f32 or f64.
  void all_reduce(const Tensor& x, ReduceOp op = ReduceOp::sum);
  // `output` is piece rank() of the reduction of `input`, which holds size() equal pieces.
  void reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op = ReduceOp::sum);
  // `output` holds the `input` of every rank in rank order. Any dtype.
  void all_gather(const Tensor& input, const Tensor& output);
  void broadcast(const Tensor& x, int root);
  void barrier();

  // Name in messages, such as "tp" or "pp 0->1".
  const std::string& name() const { return name_; }
  void set_name(std::string name) { name_ = std::move(name); }
  const Traffic& traffic() const { return traffic_; }

 protected:
  void count_sent(int64_t bytes) {
    traffic_.bytes_sent += bytes;
    ++traffic_.messages;
  }

 private:
  std::string name_ = "world";
  Traffic traffic_;
};

}  // namespace transxssm
