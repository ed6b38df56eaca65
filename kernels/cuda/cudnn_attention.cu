#include "kernels/cuda/cudnn_attention.h"

#include <limits>
#include <map>
#include <memory>
#include <vector>

#include "kernels/cuda/queue.h"

namespace transxssm::cuda::cudnn {

namespace {

// A graph and the plan that runs it.
template <class G>
struct Compiled {
  Compiled(const AttentionLayout& layout, const Target& target)
      : graph(layout), plan(graph.graph.finish(target), target) {}
  G graph;
  Plan plan;
};

// What a thread needs to use one device: plans must not be shared between threads.
class Context {
 public:
  Context() { check(library().create(&handle_), "cudnnCreate"); }  // for the device that is current
  ~Context() { library().destroy(handle_); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  cudnnHandle_t handle_on(cudaStream_t queue) {
    check(library().set_stream(handle_, queue), "cudnnSetStream");
    return handle_;
  }
  const Compiled<ForwardGraph>& forward(const AttentionLayout& layout) { return find(forward_, layout); }
  const Compiled<BackwardGraph>& backward(const AttentionLayout& layout) { return find(backward_, layout); }

 private:
  template <class C>
  const C& find(std::map<AttentionLayout, std::unique_ptr<C>>& plans, const AttentionLayout& layout) {
    std::unique_ptr<C>& plan = plans[layout];
    if (!plan) plan = std::make_unique<C>(layout, Target(handle_));
    return *plan;
  }

  cudnnHandle_t handle_ = nullptr;
  std::map<AttentionLayout, std::unique_ptr<Compiled<ForwardGraph>>> forward_;
  std::map<AttentionLayout, std::unique_ptr<Compiled<BackwardGraph>>> backward_;
};

Context& context_of(const Stream& stream) {
  thread_local std::map<int, Context> contexts;
  return contexts[stream.device().index];
}

// Tensors of a plan and where they are.
class Arguments {
 public:
  void add(Graph::Id id, void* pointer) {
    ids_.push_back(id);
    pointers_.push_back(pointer);
  }
  void add(Graph::Id id, const Tensor& tensor) { add(id, tensor.raw()); }
  void run(const Plan& plan, cudnnHandle_t handle, void* workspace) const {
    plan.run(handle, ids_, pointers_, workspace);
  }

 private:
  std::vector<Graph::Id> ids_;
  std::vector<void*> pointers_;
};

}  // namespace

int64_t run(Stream& stream, const AttentionForward& args) {
  Context& context = context_of(stream);
  const auto& [graph, plan] = context.forward(AttentionLayout(args));
  float scale = static_cast<float>(args.scale), unseen = -std::numeric_limits<float>::infinity();
  Arguments arguments;
  arguments.add(graph.q, args.q);
  arguments.add(graph.k, args.k);
  arguments.add(graph.v, args.v);
  arguments.add(graph.out, args.out);
  if (graph.log_sum_exp != 0) arguments.add(graph.log_sum_exp, args.log_sum_exp);
  arguments.add(graph.scale, &scale);
  arguments.add(graph.unseen, &unseen);
  Scratch scratch(stream, plan.workspace_bytes());
  arguments.run(plan, context.handle_on(queue_of(stream)), scratch.data<uint8_t>());
  return plan.engine();
}

int64_t run(Stream& stream, const AttentionBackward& args) {
  Context& context = context_of(stream);
  const auto& [graph, plan] = context.backward(AttentionLayout(args));
  float scale = static_cast<float>(args.scale), unseen = -std::numeric_limits<float>::infinity(), one = 1;
  const int64_t rows = args.q.size(0), tokens = args.q.size(1), heads = args.q.size(2), p = args.q.size(3);
  Tensor sums, dq_sums, workspace;
  const auto carve = [&](Carver carver) {
    sums = carver.take(DType::f32, {rows, heads, tokens});
    dq_sums = carver.take(DType::f32, {rows, heads, tokens, p});
    workspace = carver.take(DType::u8, {plan.workspace_bytes()});
    return carver.used();
  };
  Scratch scratch(stream, carve(Carver()));
  carve(scratch.carver());
  Arguments arguments;
  arguments.add(graph.q, args.q);
  arguments.add(graph.k, args.k);
  arguments.add(graph.v, args.v);
  arguments.add(graph.out, args.out);
  arguments.add(graph.d_out, args.d_out);
  arguments.add(graph.log_sum_exp, args.log_sum_exp);
  arguments.add(graph.dq, args.dq);
  arguments.add(graph.dk, args.dk);
  arguments.add(graph.dv, args.dv);
  arguments.add(graph.sums, sums);
  arguments.add(graph.dq_sums, dq_sums);
  arguments.add(graph.scale, &scale);
  arguments.add(graph.one, &one);
  arguments.add(graph.unseen, &unseen);
  arguments.run(plan, context.handle_on(queue_of(stream)), workspace.raw());
  return plan.engine();
}

}  // namespace transxssm::cuda::cudnn
