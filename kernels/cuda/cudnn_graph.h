// Graphs of cuDNN operations on tensors of 4 dims, and plans that run them: a thin layer over the descriptors
// of cuDNN's backend interface.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/cudnn_library.h"

namespace transxssm::cuda::cudnn {

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(cudnnBackendDescriptorType_t type);
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  cudnnBackendDescriptor_t get() const { return descriptor_; }

  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
           const void* values);
  void set(cudnnBackendAttributeName_t name, int64_t value) { set(name, CUDNN_TYPE_INT64, 1, &value); }
  void set(cudnnBackendAttributeName_t name, bool value) { set(name, CUDNN_TYPE_BOOLEAN, 1, &value); }
  void set(cudnnBackendAttributeName_t name, cudnnDataType_t value) {
    set(name, CUDNN_TYPE_DATA_TYPE, 1, &value);
  }
  void set(cudnnBackendAttributeName_t name, const Descriptor& value) {
    set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value.descriptor_);
  }
  // `what` names the descriptor in the error.
  void finalize(const char* what);

 private:
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

using Sizes = std::array<int64_t, 4>;

// Row-major strides.
Sizes contiguous(const Sizes& sizes);

// What plans are made for: the device of a handle, or one described in JSON, for which a plan can be made,
// but not run, without a GPU.
class Target {
 public:
  explicit Target(cudnnHandle_t handle) : handle_(handle) {}
  explicit Target(const std::string& json);
  // Sets whichever it is on a descriptor; a name of 0: that kind is not set.
  void apply(Descriptor& to, int handle_name, int properties_name) const;

 private:
  cudnnHandle_t handle_ = nullptr;
  Descriptor properties_;
};

// Tensors are named by the numbers 1, 2, ... in the order in which they are declared.
class Graph {
 public:
  using Id = int64_t;
  Id in_memory(cudnnDataType_t type, const Sizes& sizes, const Sizes& strides);
  Id inside(cudnnDataType_t type, const Sizes& sizes, const Sizes& strides);  // never leaves the kernel
  Id inside(cudnnDataType_t type, const Sizes& sizes) { return inside(type, sizes, contiguous(sizes)); }
  Id number();  // one f32 on the host, given when a plan runs

  void matmul(Id a, Id b, Id c);
  void reduce(cudnnReduceTensorOp_t operation, Id x, Id y);
  // y takes x's elements in the order of its own sizes and strides.
  void reshape(Id x, Id y);
  // y = mode(x), mode(x, b) or, for CUDNN_POINTWISE_BINARY_SELECT, t ? x : b.
  void pointwise(cudnnPointwiseMode_t mode, std::initializer_list<Id> inputs, Id y,
                 cudnnDataType_t compute = CUDNN_DATA_FLOAT);
  void index(int64_t dim, Id x, Id y);  // y = each element's place along a dim of x

  Descriptor finish(const Target& target) const;  // the operation graph

 private:
  Id declare(cudnnDataType_t type, const Sizes& sizes, const Sizes& strides, bool is_inside, bool by_value);
  const Descriptor& tensor(Id id) const { return tensors_[static_cast<size_t>(id - 1)]; }

  std::vector<Descriptor> tensors_, operations_;
};

// A way to run a graph that cuDNN's heuristics propose.
struct Proposal {
  Descriptor configuration;
  int64_t engine;  // cuDNN's number of it
  int64_t workspace_bytes;
};
// Best first; none where no engine knows the graph.
std::vector<Proposal> propose(const Descriptor& graph, const Target& target);
// Compiles a proposal for the device. Without a GPU the last step fails:
// CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER.
cudnnStatus_t compile(const Proposal& proposal, const Target& target, Descriptor& plan);

class Plan {
 public:
  // The first proposal that compiles. DeviceError where there is none: what became of each.
  Plan(const Descriptor& graph, const Target& target);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  int64_t engine() const { return engine_; }
  // pointers[i] belongs to tensor ids[i]; numbers lie on the host.
  void run(cudnnHandle_t handle, std::span<const Graph::Id> ids, std::span<void* const> pointers,
           void* workspace) const;

 private:
  Descriptor plan_;
  int64_t workspace_bytes_ = 0, engine_ = -1;
};

}  // namespace transxssm::cuda::cudnn
