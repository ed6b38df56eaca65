#include "parallel/pipeline.h"

#include <algorithm>

namespace transxssm {
namespace {

constexpr int kSender = 0;  // ranks of Mesh::edge
constexpr int kReceiver = 1;
constexpr int kPrefetch = 1;  // compute actions by which a receive is posted early

int take_lowest(std::vector<bool>& used, const char* what) {
  const auto at = std::find(used.begin(), used.end(), false);
  TRANSXSSM_CHECK(at != used.end(), "no free {} of {}", what, used.size());
  *at = true;
  return static_cast<int>(at - used.begin());
}

}  // namespace

int64_t PipelineBuffers::bytes(const Shape& boundary, DType dtype) const {
  Carver carver;
  for (int i = 0; i < receive + send_forward + send_backward; ++i) carver.take(dtype, boundary);
  return carver.used();
}

PipelineBuffers pipeline_buffers(const Schedule& lowered, int rank) {
  PipelineBuffers buffers;
  int receives = 0;
  int slots = 0;
  std::vector<int> held(static_cast<size_t>(lowered.num_microbatches), 0);
  bool sends_forward = false;
  bool sends_backward = false;
  for (const Action& action : lowered.ranks[static_cast<size_t>(rank)]) {
    switch (action.kind) {
      case ActionKind::receive_forward:
      case ActionKind::receive_backward:
        ++held[static_cast<size_t>(action.microbatch)];
        buffers.receive = std::max(buffers.receive, ++receives);
        break;
      case ActionKind::forward:
        buffers.num_slots = std::max(buffers.num_slots, ++slots);
        break;
      case ActionKind::backward:
      case ActionKind::backward_weight:
        --slots;
        receives -= std::exchange(held[static_cast<size_t>(action.microbatch)], 0);
        break;
      case ActionKind::send_forward:
        sends_forward = true;
        break;
      case ActionKind::send_backward:
        sends_backward = true;
        break;
      default:
        break;
    }
  }
  // An evaluation posts the receive of the next microbatch before the forward of this one.
  if (lowered.stage_ranks.front() != rank) buffers.receive = std::max(buffers.receive, 1 + kPrefetch);
  // The fewest (two, to compute while one travels) with which a sender that waits for buffers never closes a
  // cycle.
  int send_buffers = std::min(2, lowered.num_microbatches);
  for (; send_buffers < lowered.num_microbatches; ++send_buffers) {
    try {
      ScheduleLimits limits;
      limits.send_buffers = send_buffers;
      validate(lowered, {}, limits);
      break;
    } catch (const UsageError&) {
      continue;
    }
  }
  buffers.send_forward = sends_forward ? send_buffers : 0;
  buffers.send_backward = sends_backward ? send_buffers : 0;
  return buffers;
}

Tensor Pipeline::OutgoingRing::take() {
  Outgoing& outgoing = buffers[next];
  outgoing.request.wait();
  return outgoing.buffer;
}

void Pipeline::OutgoingRing::send(Communicator& edge) {
  buffers[next].request = edge.send(buffers[next].buffer, kReceiver);
  next = (next + 1) % buffers.size();
}

void Pipeline::OutgoingRing::finish() {
  for (Outgoing& outgoing : buffers) outgoing.request.wait();
}

Pipeline::Pipeline(Mesh& mesh, const Schedule& schedule, const Shape& boundary, DType dtype, Device device)
    : mesh_(mesh), stage_(mesh.coordinate().pp) {
  TRANSXSSM_CHECK(schedule.num_stages() == mesh.shape().pp && schedule.num_ranks() == mesh.shape().pp &&
                      !schedule.forward_only,
                  "{} stages on {} ranks for pp {}", schedule.num_stages(), schedule.num_ranks(),
                  mesh.shape().pp);
  for (int s = 0; s < schedule.num_stages(); ++s) {
    TRANSXSSM_CHECK(schedule.stage_ranks[static_cast<size_t>(s)] == s, "stage {} is not on rank {}", s, s);
  }
  report_ = validate(schedule);
  lowered_ = lower(schedule, kPrefetch);
  validate(lowered_);
  buffers_ = pipeline_buffers(lowered_, stage_);
  arena_ = Arena(buffers_.bytes(boundary, dtype), device);
  Carver carver = arena_.carver();
  const auto carve = [&](int count, OutgoingRing& ring) {
    for (int i = 0; i < count; ++i) ring.buffers.push_back({carver.take(dtype, boundary), {}});
  };
  for (int i = 0; i < buffers_.receive; ++i) receive_buffers_.push_back(carver.take(dtype, boundary));
  carve(buffers_.send_forward, outputs_);
  carve(buffers_.send_backward, input_gradients_);
}

void Pipeline::run(StageWork& work) {
  execute(lowered_, work);
}

void Pipeline::run_forward(StageWork& work, int num_microbatches) {
  if (evaluation_.num_microbatches != num_microbatches) {
    evaluation_ = lower(forward_only_schedule(mesh_.shape().pp, num_microbatches), kPrefetch);
  }
  execute(evaluation_, work);
}

void Pipeline::execute(const Schedule& lowered, StageWork& work) {
  // Also drops what a run that threw has left; the memory of the lists stays.
  const auto m = static_cast<size_t>(lowered.num_microbatches);
  inputs_.clear();
  inputs_.resize(m);
  output_gradients_.clear();
  output_gradients_.resize(m);
  slots_.assign(m, -1);
  receive_used_.assign(receive_buffers_.size(), false);
  slot_used_.assign(static_cast<size_t>(std::max(1, buffers_.num_slots)), false);
  for (const Action& action : lowered.ranks[static_cast<size_t>(stage_)]) {
    step(action, lowered.forward_only, work);
    // Some transports move a message only while its sender looks at it.
    for (OutgoingRing* ring : {&outputs_, &input_gradients_}) {
      for (Outgoing& outgoing : ring->buffers) outgoing.request.test();
    }
  }
  outputs_.finish();
  input_gradients_.finish();
}

void Pipeline::step(const Action& action, bool forward_only, StageWork& work) {
  const int k = action.microbatch;
  int& slot = slots_[static_cast<size_t>(k)];
  Incoming& input = inputs_[static_cast<size_t>(k)];
  Incoming& d_output = output_gradients_[static_cast<size_t>(k)];
  const auto backward_input = [&] {
    const Tensor received = take_received(d_output);
    work.backward_input(k, slot, received, mesh_.is_first_stage() ? Tensor() : input_gradients_.take());
  };
  const auto backward_weight = [&] {
    work.backward_weight(k, slot);
    release(k);
  };
  switch (action.kind) {
    case ActionKind::receive_forward:
      return post_receive(input, stage_ - 1);
    case ActionKind::receive_backward:
      return post_receive(d_output, stage_ + 1);
    case ActionKind::send_forward:
      return outputs_.send(mesh_.edge(stage_, stage_ + 1));
    case ActionKind::send_backward:
      return input_gradients_.send(mesh_.edge(stage_, stage_ - 1));
    case ActionKind::forward: {
      slot = take_lowest(slot_used_, "slot");
      const Tensor received = take_received(input);
      work.forward(k, slot, received, mesh_.is_last_stage() ? Tensor() : outputs_.take());
      if (forward_only) release(k);
      return;
    }
    case ActionKind::backward_input:
      return backward_input();
    case ActionKind::backward_weight:
      return backward_weight();
    case ActionKind::backward:
      backward_input();
      return backward_weight();
    case ActionKind::reduce_gradients:
      return work.reduce_gradients();
  }
}

void Pipeline::post_receive(Incoming& incoming, int from_stage) {
  incoming.buffer = take_lowest(receive_used_, "receive buffer");
  incoming.request =
      mesh_.edge(from_stage, stage_).receive(receive_buffers_[static_cast<size_t>(incoming.buffer)], kSender);
}

Tensor Pipeline::take_received(Incoming& incoming) {
  if (incoming.buffer < 0) return {};  // first or last stage
  incoming.request.wait();
  return receive_buffers_[static_cast<size_t>(incoming.buffer)];
}

void Pipeline::release(int microbatch) {
  slot_used_[static_cast<size_t>(slots_[static_cast<size_t>(microbatch)])] = false;
  for (Incoming* incoming :
       {&inputs_[static_cast<size_t>(microbatch)], &output_gradients_[static_cast<size_t>(microbatch)]}) {
    if (incoming->buffer >= 0)
      receive_used_[static_cast<size_t>(std::exchange(incoming->buffer, -1))] = false;
  }
}

}  // namespace transxssm
