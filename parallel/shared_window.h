// The collectives of ranks that share memory. Each rank copies what others need into its slots, sums its own
// share of each round, and copies out what others have summed; a round's parts stay in cache, and copying in,
// summing and copying out of three rounds overlap. Counters in the memory, one writer each, say how far a
// rank is. The sums are those of messages: r0 + r1 + ... on every element.
#pragma once

#include <functional>

#include "parallel/communicator.h"
#include "parallel/shared_segment.h"

namespace transxssm {

class SharedWindow {
 public:
  using Wait = std::function<void(Awaited&)>;

  // Of a segment for so many ranks.
  static int64_t segment_bytes(int num_ranks);
  // `wait` returns when what it is given is there. Ranks call the same methods in the same order; where the
  // calls differ, CommunicationError says so on those that wait for one that differs.
  SharedWindow(SharedSegment segment, int rank, int num_ranks, Wait wait);

  // As the methods of Communicator, which checks and counts.
  void all_reduce(const Tensor& x, ReduceOp op);
  void reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op);
  void all_gather(const Tensor& input, const Tensor& output);
  void broadcast(const Tensor& x, int root);
  void barrier();

 private:
  struct Progress;
  class Reached;
  enum class Counter : uint8_t { written, reduced, read };
  enum class Operation : uint8_t { all_reduce, reduce_scatter, all_gather, broadcast, barrier };

  Progress& progress(int rank) const;
  std::byte* slot(int rank, int64_t round) const;
  std::byte* sums(int rank, int64_t round) const;
  void begin(Operation operation, int64_t bytes, int64_t detail);
  // Waits until a counter of all other ranks, or of `from` alone, has reached `value`.
  void await(Counter counter, int64_t value, int from = -1);
  void check_same_call(int from) const;
  // Rounds of two parts: `give(k)` fills this rank's slot, `take(k)` reads the slots of others, or of `from`
  // alone.
  template <class Give, class Take>
  void exchange(int64_t rounds, Give&& give, Take&& take, int from = -1);
  void reduce_whole(const Tensor& x, ReduceOp op);
  void reduce_pieces(const Tensor& x, ReduceOp op);
  // Writes the reduction of `own` and of what lies `offset` bytes into the others' slots.
  void combine(const void* own, int64_t round, int64_t offset, DType dtype, void* out, int64_t count,
               ReduceOp op);

  SharedSegment segment_;
  int rank_;
  int n_;
  Wait wait_;
  std::vector<const void*> sources_;  // of one sum
  int64_t round_ = 0;                 // the next one; the same on all ranks between calls
};

}  // namespace transxssm
