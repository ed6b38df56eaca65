// The one interpreter of pipeline schedules: runs this rank's actions against the work of its stage.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/mesh.h"
#include "parallel/schedule.h"
#include "runtime/arena.h"

namespace transxssm {

// What a stage does. `slot` is in [0, Pipeline::num_slots()): the place of the microbatch's saved activations
// from its forward until its backward_weight (in an evaluation: during the call). Tensors have the boundary's
// shape.
class StageWork {
 public:
  virtual ~StageWork() = default;
  // input: empty on the first stage; stays as it is until the microbatch's backward_weight has returned, so
  // it need not be copied. output: empty on the last stage; write it whole.
  virtual void forward(int microbatch, int slot, const Tensor& input, const Tensor& output) = 0;
  // d_output: empty on the last stage; stays as it is until backward_weight has returned. d_input: empty on
  // the first stage; write it whole.
  virtual void backward_input(int microbatch, int slot, const Tensor& d_output, const Tensor& d_input) = 0;
  // Adds to the stage's gradients. Called in ascending order of microbatches under every schedule.
  virtual void backward_weight(int microbatch, int slot) = 0;
  // After the last backward_weight: sums over data parallel ranks may begin.
  virtual void reduce_gradients() = 0;
};

// Buffers of boundary size that one rank needs for a valid lowered schedule and for evaluation.
struct PipelineBuffers {
  int receive = 0;
  int send_forward = 0;
  int send_backward = 0;
  int num_slots = 0;
  int64_t bytes(const Shape& boundary, DType dtype) const;
};
PipelineBuffers pipeline_buffers(const Schedule& lowered, int rank);

class Pipeline {
 public:
  // `schedule` is one of mesh.shape().pp stages, one a rank, not lowered. boundary: shape of the tensor
  // between two stages, [B, T, D] of a microbatch, in memory of `device`. Validates the schedule; no
  // communication. The mesh must outlive it.
  Pipeline(Mesh& mesh, const Schedule& schedule, const Shape& boundary, DType dtype, Device device = {});

  // One step: every microbatch forward and backward, then reduce_gradients.
  void run(StageWork& work);
  // Forward of microbatches 0 .. num_microbatches - 1, every one in slot 0.
  void run_forward(StageWork& work, int num_microbatches);

  int num_slots() const { return buffers_.num_slots; }  // 1F1B: at most pp - stage
  int64_t buffer_bytes() const { return arena_.bytes(); }
  const Schedule& schedule() const { return lowered_; }
  const ScheduleReport& report() const { return report_; }  // with unit costs

 private:
  // A message's buffer on its way out.
  struct Outgoing {
    Tensor buffer;
    Request request;
  };
  // The few buffers of one direction, used in turn.
  struct OutgoingRing {
    std::vector<Outgoing> buffers;
    size_t next = 0;
    Tensor take();  // waits until the next one is free
    void send(Communicator& edge);
    void finish();
  };
  // A message's buffer on its way in, from the posting of the receive to the microbatch's W.
  struct Incoming {
    Request request;
    int buffer = -1;  // none
  };

  void execute(const Schedule& lowered, StageWork& work);
  void step(const Action& action, bool forward_only, StageWork& work);
  void post_receive(Incoming& incoming, int from_stage);
  Tensor take_received(Incoming& incoming);
  void release(int microbatch);

  Mesh& mesh_;
  const int stage_;
  Schedule lowered_;
  Schedule evaluation_;  // of the last run_forward
  ScheduleReport report_;
  PipelineBuffers buffers_;
  Arena arena_;
  std::vector<Tensor> receive_buffers_;
  std::vector<bool> receive_used_, slot_used_;
  OutgoingRing outputs_, input_gradients_;
  std::vector<Incoming> inputs_, output_gradients_;  // by microbatch
  std::vector<int> slots_;                           // by microbatch
};

}  // namespace transxssm
