#include "launch/trainer.h"

#include <array>
#include <cmath>

#include "launch/plan.h"
#include "runtime/trace.h"

namespace transxssm {
namespace {

// The tp ranks that hold copies of one state group.
int group_copies(const TrainConfig& config) {
  return Shard::of(model_config(config), config.parallel().tp(), 0).groups.num_copies;
}

}  // namespace

Trainer::Trainer(const TrainConfig& config, Communicator& world, Stream& stream)
    : config_(config),
      stream_(stream),
      mesh_(world, mesh_shape(config)),
      cuts_(cut_layers(model_config(config), config.data().sequence_length(), config.parallel().pp())),
      network_(model_config(config), Shard::of(model_config(config), mesh_.shape().tp, mesh_.coordinate().tp),
               cuts_[static_cast<size_t>(mesh_.coordinate().pp)], mesh_.tp(), config.data().sequence_length(),
               &mesh_.tp_share(group_copies(config)), precision_of(config, stream.device()), &stream),
      pipeline_(
          mesh_, pipeline_schedule(config),
          {config.parallel().microbatch_size(), config.data().sequence_length(), config.model().d_model()},
          network_.precision().residual, stream.device()),
      learning_rate_(settle_learning_rate(config)),
      feed_(stream, network_.config(), num_microbatches(config) * config.parallel().microbatch_size(),
            config.data().sequence_length()) {
  const int64_t rows = config.parallel().microbatch_size(), tokens = config.data().sequence_length();
  ParameterStore& parameters = network_.parameters();
  parameters.allocate(true, stream.device());
  parameters.initialise(stream, config.seed(), network_.config().initializer_range);
  work_ = std::make_unique<TrainingWork>(stream, network_, rows, tokens, pipeline_.num_slots(),
                                         recompute_policy(config));
  const auto& o = config.optimizer();
  optimizer_ =
      std::make_unique<Optimizer>(stream, parameters, mesh_,
                                  OptimizerOptions{.beta1 = o.beta1(),
                                                   .beta2 = o.beta2(),
                                                   .eps = o.eps(),
                                                   .weight_decay = o.weight_decay(),
                                                   .clip_norm = o.clip_norm(),
                                                   .bucket_elements = config.parallel().bucket_elements()});
  work_->sum_gradients({.complete = [this](int64_t first) { optimizer_->gradients_complete(first); },
                        .finish = [this] { optimizer_->reduce_gradients(); }});
  // Ranks that talk in the midst of a step wait for each other on the host.
  if (stream.queue() != nullptr && mesh_.world().size() == 1 && config.parallel().cuda_graph())
    graphs_ = std::make_unique<StepGraphs>(stream);
}

void Trainer::upload_microbatches() {
  feed_.upload();
  microbatches_.clear();
  const int64_t rows = config_.parallel().microbatch_size();
  for (int64_t row = 0; row < batch().rows(); row += rows) microbatches_.push_back(feed_.rows(row, rows));
}

int64_t Trainer::first_row() const {
  return mesh_.coordinate().dp * feed_.host().rows();
}

int64_t Trainer::count_valid_targets() {
  double count = 0;  // exact: far below 2^53
  const Tensor& valid = batch().valid;
  for (int64_t i = 0; i < valid.num_elements(); ++i) count += valid.data<uint8_t>()[i];
  mesh_.dp().all_reduce(Tensor(&count, DType::f64, {1}));
  return static_cast<int64_t>(count);
}

StepResult Trainer::step() {
  StepResult result;
  // Every microbatch's loss is scaled by the number of valid targets of the whole step: gradients are sums.
  result.valid_targets = count_valid_targets();
  if (result.valid_targets == 0)
    throw DataError("step {}: no token of the batch counts in the loss; documents of one token?",
                    steps_done() + 1);
  upload_microbatches();
  work_->begin_training(microbatches_, 1.0 / static_cast<double>(result.valid_targets));

  compute_gradients();

  // The last stage knows the loss; its tp ranks all know the same.
  const double loss_sum = work_->loss_sum();
  result.loss = mesh_.coordinate().tp == 0 ? loss_sum / static_cast<double>(result.valid_targets) : 0;
  mesh_.world().all_reduce(Tensor(&result.loss, DType::f64, {1}));
  if (!std::isfinite(result.loss))
    throw NumericsError(
        "step {}: the loss is {}; nothing was saved since the last checkpoint. Lower "
        "optimizer.learning_rate, or look at the rows of this step.",
        steps_done() + 1, result.loss);

  const Span span(Activity::optimizer, "optimizer");
  result.gradient_norm = optimizer_->gradient_norm();
  if (!std::isfinite(result.gradient_norm))
    throw NumericsError("step {}: the gradient norm is {} (loss {:.4f}); {}", steps_done() + 1,
                        result.gradient_norm, result.loss, not_finite_gradients());

  ++consumed_.steps;
  ++consumed_.updates;
  consumed_.rows += config_.parallel().global_batch();
  consumed_.tokens += tokens_per_step(config_);
  result.learning_rate = learning_rate_.at(consumed_.tokens);
  optimizer_->update(result.learning_rate, result.gradient_norm, consumed_.updates);
  return result;
}

// Queues everything from gradients of zero to the last weight gradient. Where microbatches have documents,
// their attention is another operation.
void Trainer::compute_gradients() {
  const auto queue_all = [this] {
    network_.parameters().zero_gradients(stream_);
    pipeline_.run(*work_);
  };
  if (!graphs_ || Trace::active() || work_->is_observed()) return queue_all();
  StepGraphs::Variant has_documents;
  for (const TokenRows& rows : microbatches_) has_documents.push_back(!rows.first_key.empty());
  graphs_->run(has_documents, queue_all);
}

// Which gradients are not finite, the same words on every rank.
std::string Trainer::not_finite_gradients() {
  const std::string name = optimizer_->first_not_finite();
  double lowest = name.empty() ? -1e9 : -mesh_.world().rank();  // the maximum names the lowest rank
  mesh_.world().all_reduce(Tensor(&lowest, DType::f64, {1}), ReduceOp::max);
  if (lowest == -1e9) return "every rank's own gradients are finite, their squares overflow";
  const int rank = static_cast<int>(-lowest);
  std::array<char, 256> text{};
  name.copy(text.data(), text.size() - 1);
  mesh_.world().broadcast(Tensor(text.data(), DType::u8, {static_cast<int64_t>(text.size())}), rank);
  return fmt::format("first not finite on rank {}: {}", rank, text.data());
}

const std::vector<double>& Trainer::evaluate(int64_t num_microbatches) {
  upload_microbatches();
  work_->begin_evaluation(microbatches_);
  if (num_microbatches > 0) pipeline_.run_forward(*work_, static_cast<int>(num_microbatches));
  return work_->row_losses();
}

std::vector<CheckpointTensor> Trainer::checkpoint_tensors() const {
  std::vector<CheckpointTensor> tensors;
  for (const Parameter& p : network_.parameters().all()) {
    auto add = [&](TensorKind kind, const Tensor& data) {
      tensors.push_back({.name = p.spec.name,
                         .kind = kind,
                         .global_shape = p.spec.global_shape,
                         .offset = p.spec.box.offset,
                         .extent = p.spec.box.extent,
                         .data = data,
                         .owner = p.spec.owner && mesh_.coordinate().dp == 0,
                         .stream = &stream_});
    };
    add(TensorKind::master, p.weight);
    add(TensorKind::exp_avg, p.exp_avg);
    add(TensorKind::exp_avg_sq, p.exp_avg_sq);
  }
  return tensors;
}

}  // namespace transxssm
