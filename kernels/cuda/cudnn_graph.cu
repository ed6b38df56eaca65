#include "kernels/cuda/cudnn_graph.h"

#include <utility>

#include "runtime/error.h"

namespace transxssm::cuda::cudnn {

Descriptor::Descriptor(cudnnBackendDescriptorType_t type) {
  check(library().create_descriptor(type, &descriptor_), "create a descriptor");
}
Descriptor::~Descriptor() {
  if (descriptor_ != nullptr) library().destroy_descriptor(descriptor_);
}
Descriptor::Descriptor(Descriptor&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, nullptr)) {}
Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}
void Descriptor::set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                     const void* values) {
  const cudnnStatus_t status = library().set_attribute(descriptor_, name, type, count, values);
  if (status != CUDNN_STATUS_SUCCESS) check(status, ("set attribute " + std::to_string(name)).c_str());
}
void Descriptor::finalize(const char* what) {
  check(library().finalize(descriptor_), what);
}

Sizes contiguous(const Sizes& sizes) {
  return {sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1};
}

Graph::Id Graph::declare(cudnnDataType_t type, const Sizes& sizes, const Sizes& strides, bool is_inside,
                         bool by_value) {
  const Id id = static_cast<Id>(tensors_.size()) + 1;
  Descriptor tensor(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, id);
  tensor.set(CUDNN_ATTR_TENSOR_DATA_TYPE, type);
  tensor.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, int64_t{16});
  tensor.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, sizes.data());
  tensor.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides.data());
  tensor.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, is_inside);
  tensor.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, by_value);
  tensor.finalize("a tensor");
  tensors_.push_back(std::move(tensor));
  return id;
}
Graph::Id Graph::in_memory(cudnnDataType_t type, const Sizes& sizes, const Sizes& strides) {
  return declare(type, sizes, strides, false, false);
}
Graph::Id Graph::inside(cudnnDataType_t type, const Sizes& sizes, const Sizes& strides) {
  return declare(type, sizes, strides, true, false);
}
Graph::Id Graph::number() {
  return declare(CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, false, true);
}

void Graph::matmul(Id a, Id b, Id c) {
  Descriptor how(CUDNN_BACKEND_MATMUL_DESCRIPTOR), operation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  how.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
  how.finalize("a matrix product");
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, tensor(a));
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, tensor(b));
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, tensor(c));
  operation.finalize("a matrix product's operation");
  operations_.push_back(std::move(operation));
}

void Graph::reduce(cudnnReduceTensorOp_t kind, Id x, Id y) {
  Descriptor how(CUDNN_BACKEND_REDUCTION_DESCRIPTOR), operation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  how.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
  how.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &kind);
  how.finalize("a reduction");
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, tensor(x));
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, tensor(y));
  operation.finalize("a reduction's operation");
  operations_.push_back(std::move(operation));
}

void Graph::reshape(Id x, Id y) {
  Descriptor operation(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, tensor(x));
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, tensor(y));
  operation.finalize("a reshape");
  operations_.push_back(std::move(operation));
}

void Graph::pointwise(cudnnPointwiseMode_t mode, std::initializer_list<Id> inputs, Id y,
                      cudnnDataType_t compute) {
  Descriptor how(CUDNN_BACKEND_POINTWISE_DESCRIPTOR), operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  how.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
  how.set(CUDNN_ATTR_POINTWISE_MATH_PREC, compute);
  how.finalize("an elementwise operation");
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
  constexpr cudnnBackendAttributeName_t kInputs[] = {CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
                                                     CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
                                                     CUDNN_ATTR_OPERATION_POINTWISE_TDESC};
  int input = 0;
  for (Id id : inputs) operation.set(kInputs[input++], tensor(id));
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, tensor(y));
  operation.finalize("an elementwise operation's operation");
  operations_.push_back(std::move(operation));
}

void Graph::index(int64_t dim, Id x, Id y) {
  constexpr cudnnPointwiseMode_t kMode = CUDNN_POINTWISE_GEN_INDEX;
  Descriptor how(CUDNN_BACKEND_POINTWISE_DESCRIPTOR), operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  how.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &kMode);
  how.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT);
  how.set(CUDNN_ATTR_POINTWISE_AXIS, dim);
  how.finalize("an index");
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, tensor(x));
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, tensor(y));
  operation.finalize("an index's operation");
  operations_.push_back(std::move(operation));
}

Descriptor Graph::finish(const Target& target) const {
  std::vector<cudnnBackendDescriptor_t> operations;
  for (const Descriptor& operation : operations_) operations.push_back(operation.get());
  Descriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
            static_cast<int64_t>(operations.size()), operations.data());
  target.apply(graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, 0);
  graph.finalize("a graph of operations");
  return graph;
}

Target::Target(const std::string& json) : properties_(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR) {
  properties_.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                  static_cast<int64_t>(json.size()), json.data());
  properties_.finalize("a device described in JSON");
}

void Target::apply(Descriptor& to, int handle_name, int properties_name) const {
  if (handle_ != nullptr && handle_name != 0)
    to.set(static_cast<cudnnBackendAttributeName_t>(handle_name), CUDNN_TYPE_HANDLE, 1, &handle_);
  if (handle_ == nullptr && properties_name != 0)
    to.set(static_cast<cudnnBackendAttributeName_t>(properties_name), properties_);
}

namespace {

int64_t int_attribute(const Descriptor& of, cudnnBackendAttributeName_t name) {
  int64_t value = 0, count = 0;
  check(library().get_attribute(of.get(), name, CUDNN_TYPE_INT64, 1, &count, &value), "an attribute");
  return value;
}

Proposal described(Descriptor configuration) {
  Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t raw = engine.get();
  int64_t count = 0;
  check(library().get_attribute(configuration.get(), CUDNN_ATTR_ENGINECFG_ENGINE,
                                CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &raw),
        "a proposed engine");
  const int64_t workspace = int_attribute(configuration, CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE);
  return {std::move(configuration), int_attribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX), workspace};
}

}  // namespace

std::vector<Proposal> propose(const Descriptor& graph, const Target& target) {
  constexpr int64_t kMost = 32;
  constexpr cudnnBackendHeurMode_t kMode = CUDNN_HEUR_MODE_A;
  Descriptor heuristic(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &kMode);
  target.apply(heuristic, 0, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP);
  heuristic.finalize("what engines there are");
  std::vector<Descriptor> found;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (int64_t i = 0; i < kMost; ++i) {
    found.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    raw.push_back(found.back().get());
  }
  int64_t count = 0;
  check(library().get_attribute(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                kMost, &count, raw.data()),
        "engines for a graph");
  std::vector<Proposal> proposals;
  for (int64_t i = 0; i < count; ++i)
    proposals.push_back(described(std::move(found[static_cast<size_t>(i)])));
  return proposals;
}

cudnnStatus_t compile(const Proposal& proposal, const Target& target, Descriptor& plan) {
  plan = Descriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, proposal.configuration);
  target.apply(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP);
  return library().finalize(plan.get());
}

Plan::Plan(const Descriptor& graph, const Target& target) {
  std::string answers;
  for (const Proposal& proposal : propose(graph, target)) {
    const cudnnStatus_t status = compile(proposal, target, plan_);
    if (status == CUDNN_STATUS_SUCCESS) {
      engine_ = proposal.engine;
      workspace_bytes_ = int_attribute(plan_, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
      return;
    }
    answers += fmt::format(" engine {}: {};", proposal.engine, library().get_error_string(status));
  }
  throw DeviceError("cuDNN {} has no engine for a graph:{}", library().get_version(),
                    answers.empty() ? " none is proposed" : answers);
}

void Plan::run(cudnnHandle_t handle, std::span<const Graph::Id> ids, std::span<void* const> pointers,
               void* workspace) const {
  Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, static_cast<int64_t>(ids.size()),
           ids.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, static_cast<int64_t>(pointers.size()),
           pointers.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
  pack.finalize("the tensors of a plan");
  check(library().execute(handle, plan_.get(), pack.get()), "run a plan");
}

}  // namespace transxssm::cuda::cudnn
